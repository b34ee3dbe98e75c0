#!/usr/bin/env bash
# Sets up .venv, lints, checks types, runs the tests in two workers. Other arguments go to pytest.
#   --quick        without slow tests
#   --since REV    only tests of what changed since a revision (with or without --quick)
#   --all          nightly tests too
# On a bare machine: Python 3.11 or newer, pip. Fast when nothing about the dependencies changed.
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu
EXTRAS="test"

marker="not nightly"
since=""
while [[ ${1-} == --quick || ${1-} == --since || ${1-} == --all ]]; do
  case $1 in
    --quick) marker="not nightly and not slow" ;;
    --all) marker="" ;;
    --since) since=${2:?--since needs a revision}; shift ;;
  esac
  shift
done
source tools/setup_env.sh

ruff check .
ruff format --check .
mypy

files=()
if [[ -n $since ]]; then
  found=$(python tools/changed_tests.py "$since")
  mapfile -t files < <(printf '%s' "$found")
fi
workers=${JVR1_TEST_WORKERS:-2}
exec python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder -m "$marker" "${files[@]}" "$@"
