#!/usr/bin/env bash
# Runs every benchmark of one kind; a script says on its first lines which kind it is ("runs on: cpu|gpu").
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?cpu or gpu}
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=src
for script in $(grep -lE "^(# |\"\"\")?.*runs on:.*$kind" benchmarks/*.py); do
  echo "== $script"
  python "$script"
done
