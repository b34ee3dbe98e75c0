#!/usr/bin/env bash
# Kills SFT and T-GRPO at random moments and compares with runs that nothing disturbed: tools/soak.sh [OUT] [--kills N]
# N (20) times kill -9 each, on the demo's tiny model; in the end every number but the times must be equal to the bit.
set -euo pipefail
cd "$(dirname "$0")/.."

out=soak_out kills=20 steps=150
while (($#)); do
  case $1 in
    --kills) kills=${2:?--kills needs a number}; shift ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    -*) echo "error: unknown option $1; see tools/soak.sh --help" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done

source tools/setup_env.sh
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$PWD/$out/xla JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
[[ $out = /* ]] && JAX_COMPILATION_CACHE_DIR=$out/xla
RANDOM=1
mkdir -p "$out"
[[ -d $out/data ]] || jvr1 demo-data "$out/data" --train 256 --valid 32 --test 32

train() { # STAGE WORKDIR: the last program of this function is the run itself, so that a kill hits it
  local main=$1 settings=()
  # an untrained model rarely earns a reward: T-GRPO starts from what SFT reached
  if [[ $1 == rl ]]; then settings=(--config.model.source="$out/sft-calm" --config.batch.per_step=2)
  else settings=(--config.model.source="$out/data/tiny_model" --config.train.stop_metric=); fi
  exec python -m "jvr1.train_$main" --config "configs/tiny.py:$1" --config.data.root="$out/data" \
    --config.batch.micro=8 --config.train.steps=$steps --config.train.save_every=5 --config.train.validate_every=50 \
    --config.train.pictures_every=0 "${settings[@]}" --workdir "$2" >>"$2.log" 2>&1
}

events() { find "$1" -path "*/tensorboard/*" -type f 2>/dev/null | wc -l || true; }

compare() { # STAGE CALM SOAKED
  python - "$@" <<'PYTHON'
import logging
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart

def numbers(workdir):
    events = EventAccumulator(f"{workdir}/tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    timed = ("seconds/", "tokens_per_second", "flops_")
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"] if not t.startswith(timed)}

stage, calm, soaked = sys.argv[1:]
want, got = numbers(calm), numbers(soaked)
different = sorted(t for t in want.keys() | got.keys() if want.get(t) != got.get(t))
if different:
    sys.exit(f"error: {stage}: {len(different)} of {len(want)} series differ: {', '.join(different[:5])}")
print(f"{stage}: {len(want)} series, {sum(map(len, want.values()))} values of float32, {len(want['loss'])} losses: all equal to the bit")
PYTHON
}

for stage in sft rl; do
  calm=$out/$stage-calm soaked=$out/$stage-soaked
  rm -rf "$soaked"
  echo "$stage: a run of $steps steps that nothing disturbs"
  (train "$stage" "$calm")
  done=0 early=0
  while ((done < kills)); do
    before=$(events "$soaked")
    (train "$stage" "$soaked") &
    pid=$!
    if ((RANDOM % 5)); then # most kills come while it steps and saves, some while it starts
      while kill -0 $pid 2>/dev/null && (($(events "$soaked") == before)); do sleep 0.05; done
    else
      early=$((early + 1))
    fi
    sleep "$((RANDOM % 8)).$((RANDOM % 1000))"
    if ! kill -9 $pid 2>/dev/null; then # it had ended: soak another run
      wait $pid || { echo "error: the run failed by itself, see $soaked.log" >&2; exit 1; }
      compare "$stage" "$calm" "$soaked"
      rm -rf "$soaked"
      continue
    fi
    wait $pid 2>/dev/null || true
    done=$((done + 1))
  done
  (train "$stage" "$soaked")
  compare "$stage" "$calm" "$soaked"
  echo "$stage: killed $done times, $early of them while starting"
done
