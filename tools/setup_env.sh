# shellcheck shell=bash
# Sourced by tools/demo.sh and tools/test.sh: makes .venv on a bare machine, installs jvr1 and the extras named by
# $EXTRAS (once for each state of pyproject.toml and constraints.txt), activates it.
export PIP_DISABLE_PIP_VERSION_CHECK=1
_stamp=.venv/.jvr1-${EXTRAS:-runtime}-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
if [[ ! -e $_stamp ]]; then
  _python=${PYTHON:-python3}
  "$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
  if [[ ! -x .venv/bin/python ]] && ! "$_python" -m venv .venv; then
    apt-get install -y python3-venv && "$_python" -m venv .venv # Debian ships venv apart
  fi
  echo "installing into .venv: minutes, once" >&2
  # from PyPI torch (a test oracle) brings gigabytes of CUDA;
  # PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives the CPU build
  .venv/bin/pip install -q -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
  if [[ ${EXTRAS:-} == test ]]; then
    # no CPU build of torchvision: an oracle only, without its dependencies (tests/conftest.py makes it import)
    .venv/bin/pip install -q --no-deps torchvision==0.28.0
  fi
  if [[ ${EXTRAS:-} == test && $(uname -sm) == "Linux x86_64" ]]; then
    # the compiler for GPUs, where JAX does not find it by itself: every process would speak of a driver that is missing
    .venv/bin/pip install -q --no-deps --upgrade -c constraints.txt --target .venv/gpu-compiler \
      jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
  fi
  if [[ ${EXTRAS:-} == test ]] && ! command -v chromium > /dev/null; then
    # the tests open reports in a browser
    apt-get install -y -q chromium > /dev/null || { apt-get update -q && apt-get install -y -q chromium; } > /dev/null ||
      { echo "error: install chromium: the tests open reports in it" >&2; exit 2; }
  fi
  rm -f .venv/.jvr1-"${EXTRAS:-runtime}"-*
  touch "$_stamp"
fi
# shellcheck source=/dev/null
source .venv/bin/activate
