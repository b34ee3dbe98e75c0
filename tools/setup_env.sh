# Sourced by tools/demo.sh and tools/test.sh: makes .venv, installs what EXTRAS names (once), activates it.
extras=${EXTRAS:-}
stamp=.venv/.installed-$(cat pyproject.toml constraints.txt tools/setup_env.sh | sha256sum | cut -c1-16)${extras:+-$extras}
if [[ ! -f $stamp ]]; then
  python_bin=${PYTHON:-python3}
  "$python_bin" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
  echo "installing into .venv (a few minutes, once)"
  if [[ ! -x .venv/bin/python ]] && ! "$python_bin" -m venv .venv; then
    apt-get install -y python3-venv && "$python_bin" -m venv .venv # Debian ships venv apart
  fi
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet -c constraints.txt -e ".${extras:+[$extras]}"
  if [[ $extras == test ]]; then
    # torchvision has no CPU build; without its dependencies it serves as an oracle (tests/conftest.py)
    .venv/bin/python -m pip install --quiet --no-deps -c constraints.txt torchvision
  fi
  touch "$stamp"
fi
source .venv/bin/activate
