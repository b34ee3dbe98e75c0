#!/usr/bin/env bash
# Sets up .venv, lints, checks types, runs the tests. Arguments go to pytest; --all adds the nightly tests.
# On a bare machine: Python 3.11 or newer, pip. Fast when nothing about the dependencies changed.
set -euo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu PIP_DISABLE_PIP_VERSION_CHECK=1
python=${PYTHON:-python3}

stamp=.venv/.jvr1-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed" >&2; exit 2; }
  if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    apt-get install -y python3-venv && "$python" -m venv .venv # Debian ships venv apart
  fi
  # from PyPI torch brings gigabytes of CUDA: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives the CPU build
  .venv/bin/pip install -q -c constraints.txt -e '.[test]'
  # no CPU build of torchvision: an oracle only, without its dependencies (tests/conftest.py makes it import)
  .venv/bin/pip install -q --no-deps torchvision==0.28.0
  rm -f .venv/.jvr1-*
  touch "$stamp"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy

marker=(-m "not nightly")
if [ "${1-}" = --all ]; then
  shift
  marker=()
fi
exec .venv/bin/python -m pytest "${marker[@]}" "$@"
