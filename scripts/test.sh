#!/usr/bin/env bash
# What CI runs: format, lint, types, tests, docs and examples, in that order; or only the steps named.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=src TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
steps=${*:-format lint types unit docs}
code="src tests benchmarks examples"
for step in $steps; do
  echo "== $step"
  case $step in
    format) ruff format --check $code ;;
    lint) ruff check $code ;;
    types) basedpyright --pythonpath .venv/bin/python --level error ;;
    # One process a core, one thread a process: the tests are many small ones.
    unit) OMP_NUM_THREADS=1 pytest -n "${FEWER_TEST_PROCESSES:-2}" --dist worksteal -rs --durations 15 \
            --ignore tests/test_examples.py --ignore tests/test_docs.py ;;
    docs) OMP_NUM_THREADS=1 pytest -n "${FEWER_TEST_PROCESSES:-2}" --dist worksteal -rs \
            tests/test_examples.py tests/test_docs.py ;;
    *) echo "unknown step $step; known: format lint types unit docs" >&2; exit 2 ;;
  esac
done
