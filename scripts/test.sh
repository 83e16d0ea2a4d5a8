#!/usr/bin/env bash
# What CI runs: format, lint, then types beside all tests; or only the steps named.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=src TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# The processes that tests start find the package compiled, also where the caller keeps no bytecode.
unset PYTHONDONTWRITEBYTECODE
code="src tests benchmarks examples"
documents="tests/test_docs.py tests/test_examples.py"

types() { basedpyright --pythonpath .venv/bin/python --level error; }

# One process a core, one thread a process: the tests are many small ones.
tests() {
  OMP_NUM_THREADS=1 pytest -n "${FEWER_TEST_PROCESSES:-2}" --dist worksteal -rs --durations 15 "$@"
}

# The checker of types keeps one core busy: beside the tests no other core waits for it.
types_beside_tests() {
  local said checker status=0
  said=$(mktemp)
  types >"$said" 2>&1 &
  checker=$!
  tests || status=$?
  wait "$checker" || status=$?
  echo "== types"
  cat "$said"
  rm "$said"
  return "$status"
}

for step in ${*:-format lint types_beside_tests}; do
  echo "== $step"
  case $step in
    format) ruff format --check $code ;;
    lint) ruff check $code ;;
    types) types ;;
    unit) tests $(printf -- '--ignore %s ' $documents) ;;
    docs) tests $documents ;;
    types_beside_tests) types_beside_tests ;;
    *) echo "unknown step $step; known: format lint types unit docs" >&2; exit 2 ;;
  esac
done
