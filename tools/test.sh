#!/usr/bin/env bash
# Sets up .venv, lints, checks types, runs the tests. Arguments go to pytest; --all adds the nightly tests.
# On a bare machine: Python 3.11 or newer, pip. Fast when nothing about the dependencies changed.
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu
EXTRAS="test"
source tools/setup_env.sh

ruff check .
ruff format --check .
mypy

marker=(-m "not nightly")
if [[ ${1-} == --all ]]; then
  shift
  marker=()
fi
exec python -m pytest "${marker[@]}" "$@"
