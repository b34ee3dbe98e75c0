#!/usr/bin/env bash
# All figures that need a GPU, in one go: tools/gpu_figures.sh OUT [--rehearse]
# Writes OUT/*.json and OUT/plan-*.txt; docs/benchmarks.md says what they show. --rehearse: small sizes, on any machine.
set -euo pipefail
cd "$(dirname "$0")/.."

out='' full=3b lora=7b-lora rows=(3b-64-rows 3b-256-rows) mesh=data=1 chip=h200
while (($#)); do
  case $1 in
    --rehearse) full=tiny lora=tiny-lora rows=(tiny) ;;
    --chip) chip=${2:?--chip needs a name}; shift ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    -*) echo "error: unknown option $1; see tools/gpu_figures.sh --help" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
[[ $out ]] || { echo "error: name a folder for the figures: tools/gpu_figures.sh OUT" >&2; exit 2; }
mkdir -p "$out"

bench() { # PART SHAPE: one that fails, as for lack of memory, costs only itself
  python tools/bench.py "$1" --shape "$2" --json "$out/$1-$2.json" || echo "failed: $1 $2" | tee -a "$out/failed.txt"
}

for part in vision prefill score update step; do bench "$part" "$full"; done
for shape in "${rows[@]}"; do bench decode "$shape"; done
bench step "$lora"

# what the planner says of the same steps: 8 prompts, 16 frames of 224x448, 512 new tokens
same=(--mesh "$mesh" --chip "$chip" --config.batch.micro=8 --config.batch.per_step=1
  "--config.data.buckets=(('video',8,8,1224,512),)")
jvr1 plan --config configs/tgrpo_3b.py --model 3b "${same[@]}" >"$out/plan-3b.txt" || true
jvr1 plan --config configs/tgrpo_7b.py --model 7b --config.lora.rank=16 "${same[@]}" >"$out/plan-7b-lora.txt" || true
