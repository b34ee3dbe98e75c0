#!/usr/bin/env bash
# The whole recipe on the embedded tiny model: tools/demo.sh [OUT] [--smoke] [--seed N] [--family qwen3_vl]
# Data, cold start, T-GRPO, evaluation, export to HF and back, one table and the curves. Run again, it resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

out='' smoke='' seed=0 family=qwen2_5_vl
while (($#)); do
  case $1 in
    --smoke) smoke=1 ;;
    --seed) seed=${2:?--seed needs a number}; shift ;;
    --family) family=${2:?--family needs a name}; shift ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    -*) echo "error: unknown option $1; see tools/demo.sh --help" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done

case $family in
  qwen2_5_vl) config=configs/tiny.py out=${out:-demo_out} ;;
  qwen3_vl) config=configs/tiny_qwen3vl.py out=${out:-demo_out_qwen3_vl} ;;
  *) echo "error: --family $family; there are qwen2_5_vl, qwen3_vl" >&2; exit 2 ;;
esac
EXTRAS=plots # the curves
source tools/setup_env.sh
export JAX_PLATFORMS=cpu JVR1_EXIT_ON_PREEMPTION=75 # a stage that was stopped ends the demo
export XLA_FLAGS=${XLA_FLAGS-}
SECONDS=0
data=$out/data
index=$out/index # one for all stages
common=(--config.data.root="$data" --config.data.index="$index" --config.seed="$seed")
size=(--train 2048 --valid 192 --test 768)
warmup=() sft=() rl=()
if [[ $smoke ]]; then
  size=(--train 64 --valid 32 --test 48)
  warmup=(--config.train.steps=4 --config.batch.micro=8) sft=("${warmup[@]}" --config.train.validate_every=4)
  rl=(--config.train.steps=2 --config.batch.micro=8 --config.train.validate_every=2 --config.train.pictures_every=2)
  XLA_FLAGS+=" --xla_backend_optimization_level=0" # most of the smoke run is compilation
fi

say() { printf '\n== %s\n' "$*"; }
evaluate() { # NAME MODEL
  [[ -f $out/eval/$1/report.json ]] ||
    jvr1 evaluate --model "$2" --suite test.json --data "$data" --out "$out/eval/$1" \
      --config "$config":rl --index "$index" --variants ordered,shuffled
}

say "data: clips, pictures, questions, a tiny model ($family) with random weights"
[[ -f $data/settings.json ]] || jvr1 demo-data "$data" "${size[@]}" --seed "$seed" --family "$family"
evaluate initial "$data/tiny_model"

say "cold start 1: text only, which letter stands before a colour"
jvr1 train-sft --config "$config":warmup "${common[@]}" "${warmup[@]}" \
  --config.model.source="$data/tiny_model" --workdir "$out/warmup"

say "cold start 2: chains of thought; stopped early, near 50% on held-out order questions, to leave room for RL"
jvr1 train-sft --config "$config":sft "${common[@]}" "${sft[@]}" \
  --config.model.source="$out/warmup" --workdir "$out/sft"
evaluate sft "$out/sft"

say "T-GRPO"
jvr1 train-rl --config "$config":rl "${common[@]}" "${rl[@]}" \
  --config.model.source="$out/sft" --workdir "$out/rl"
evaluate rl "$out/rl"

say "export to an HF folder, and the same evaluation from there"
[[ -f $out/hf/config.json ]] || jvr1 export "$out/rl" "$out/hf" --dtype float32
evaluate hf "$out/hf"

say "result"
python tools/demo_report.py "$out"
jvr1 report "$out/rl"
printf 'This took %d:%02d after the set-up.\n' $((SECONDS / 60)) $((SECONDS % 60))
