#!/usr/bin/env bash
# launch/gpu_host.sh [--gpus LIST] [--deterministic] [--secrets FILE] [--dry-run] -- COMMAND...
#
# Runs COMMAND on this GPU host under launch/retry.sh: one process with all its GPUs, or those of LIST (0,1,2,3).
# --deterministic: the same bits in every run with the same seed, at some cost in speed. --secrets: lines NAME=VALUE for
# its environment, see launch/secrets.sh. XLA_FLAGS, JAX_PLATFORMS and XLA_PYTHON_CLIENT_MEM_FRACTION that are set
# already are respected.
set -euo pipefail

fail() { echo "error: $1; see launch/gpu_host.sh --help" >&2; exit 2; }

gpus='' flags='' secrets=() dry=0
while (($#)); do
  case $1 in
    --gpus) [[ ${2-} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus needs numbers, as in 0,1,2,3"; gpus=$2; shift ;;
    --deterministic) flags=" --xla_gpu_deterministic_ops=true" ;;
    --secrets) [[ ${2-} && $2 != -* ]] || fail "--secrets needs a file"; secrets=("$2"); shift ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (the command follows --)" ;;
  esac
  shift
done
(($#)) || fail "no command after --"

settings=(
  JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" # named, a GPU that cannot be used is an error; else JAX takes the CPU
  XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" # JAX's 0.75 leaves a quarter unused
  # parameters of the next layer are gathered while this one computes; the user's flags come last and win
  XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true$flags${XLA_FLAGS:+ $XLA_FLAGS}"
)
if [[ $gpus ]]; then settings+=(CUDA_VISIBLE_DEVICES="$gpus"); fi
here=$(dirname "$0")
if ((dry)); then
  "$here/secrets.sh" --check "${secrets[@]}" -- "$@"
  if ((${#secrets[@]})); then printf '%q ' "$here/secrets.sh" "${secrets[@]}" -- env; fi
  printf '%q ' "${settings[@]}"
  exec "$here/retry.sh" --dry-run -- "$@"
fi
exec "$here/secrets.sh" "${secrets[@]}" -- env "${settings[@]}" "$here/retry.sh" -- "$@"
