"""What a run takes on chips you do not have yet: memory by phase, time at best, and which setting to turn.

jvr1 plan --config FILE[:ARG] --mesh data=1,fsdp=8[,tensor=N][,decode_tensor=N] --chip NAME
    [--model SIZE|DIR] [--stage rl|sft] [--tokens N] [--compile] [--config.section.name=value ...]
jvr1 plan --config FILE[:ARG] --table
jvr1 plan --against FILE.json ...
jvr1 plan --chips

Counts, from shapes alone. With --compile (needs libtpu or, for GPUs, XLA's compiler for CUDA; takes minutes) the chip's
real compiler compiles the real step besides, and its own memory and collectives are printed. Exit code 0: fits, 1: does
not, 2: a mistake.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jvr1 import config as settings
from jvr1.chips import CHIPS, GIB, chip_named
from jvr1.chips import table as chip_table
from jvr1.command_line import Parser
from jvr1.data.batch import Bucket
from jvr1.errors import UserError, run_main
from jvr1.model.families import published, published_sizes
from jvr1.plan.compiling import compile_all, report
from jvr1.plan.memory import phase_memory
from jvr1.plan.planning import (
    OF_BANDWIDTH,
    OF_PEAK,
    RunPlan,
    Suggestion,
    changed,
    counted_shapes,
    faster,
    largest_bucket,
    make_plan,
    named_model,
    read_mesh,
    smallest,
    stage_of,
    step_prompts,
    suggestions,
    words_of,
)
from jvr1.plan.programs import STAGES, step_shapes
from jvr1.plan.topologies import TARGETS, topology_devices, topology_name
from jvr1.plan.work import useful_flops
from jvr1.sharding import make_mesh

TABLE_CHIPS = ("v5e", "v5p", "v6e", "v7x", "l40s", "h100-80", "h200", "b200")
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SUGGESTED = 6
BEST_OF_N = "counted as a step of train-rl; train-bestofn samples alike and learns from one completion of a group: less"


def main(arguments: Sequence[str] | None = None) -> int:
    args, rest = read_arguments(arguments)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this
    if args.against:
        print("\n".join(against(args.against)))
        return 0
    if args.chips:
        print("\n".join(chip_table()))
        return 0
    if not args.config:
        raise UserError("--config FILE is needed")
    config = settings.from_file(args.config, rest)
    settings.buckets(config)
    if args.table:
        print("\n".join(fewest_chips(config, args.stage or stage_of(args.config))))
        return 0
    if not args.mesh or not args.chip:
        raise UserError("--mesh data=N,fsdp=N and --chip NAME are needed, or --table")
    chip = chip_named(args.chip)
    config = changed(config, {f"mesh.{axis}": size for axis, size in read_mesh(args.mesh).items()})
    model = named_model(args.model or config.model.source)
    plan = make_plan(config, model, chip, args.tokens, args.stage or stage_of(args.config))
    topology = topology_name(chip, plan.chips) if args.compile else None
    print("\n".join(lines(plan, args.tokens)), flush=True)
    if "bestofn" in words_of(args.config) and not args.stage:
        print(BEST_OF_N)
    if topology:
        compile_step(plan, topology)
    return 0 if plan.fits else 1


def read_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The tool's own, and the settings to change."""
    parser = Parser(prog="jvr1 plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE[:ARG]")
    parser.add_argument("--mesh", help="such as data=1,fsdp=8,tensor=1,decode_tensor=4")
    parser.add_argument("--chip", help=", ".join(CHIPS))
    parser.add_argument("--model", help=f"{', '.join(published_sizes())} or a folder; default: what model.source names")
    parser.add_argument(
        "--stage",
        choices=tuple(STAGES),
        help="count a step of train-rl or of train-sft; default: sft for a config with that word in its name, else rl",
    )
    parser.add_argument("--tokens", type=int, help="mean length of a completion; default: what the bucket holds")
    parser.add_argument("--compile", action="store_true", help="ask the chip's real compiler, too (minutes)")
    parser.add_argument("--table", action="store_true", help="the fewest chips for each published size, as markdown")
    parser.add_argument("--chips", action="store_true", help="what is known of each chip, as markdown")
    parser.add_argument("--against", nargs="+", type=Path, metavar="FILE", help="count what compile_*.py compiled")
    return parser.parse_known_args(arguments)


def lines(plan: RunPlan, tokens: int | None) -> Iterator[str]:
    """The plan as it is printed."""
    config, mesh, chip = plan.step.config, plan.step.mesh.shape, plan.chip
    values = sum(x.size for x in jax.tree.leaves(plan.step.params))
    splits = plan.step.generation_mesh.shape
    rollout = f"generation {splits['data']} x tensor={splits['tensor']}; " if plan.step.stage == "rl" else ""
    yield (
        f"{values / 1e9:.2f} B parameters on {plan.chips} x {chip.name}, mesh data={mesh['data']} fsdp={mesh['fsdp']} "
        f"tensor={mesh['tensor']}; {rollout}{config.batch.micro} rows a microbatch, {config.batch.per_step} a step"
    )
    if plan.step.stage == "sft":
        yield "counted as supervised learning (train-sft): no rollout, no reference, no group"
    bytes_, phase, bucket = plan.peak()
    yield from memory_lines(plan, bucket)
    yield from bucket_lines(plan)
    yield from time_lines(plan, tokens)
    left = (chip.memory - bytes_) / GIB
    verdict = f"fits: {left:.1f} GiB left" if left >= 0 else f"does not fit: {-left:.1f} GiB too much"
    yield f"{verdict} of {chip.memory / GIB:.2f} at the peak, {phase} of {bucket.name}"
    if left < 0:
        yield from suggestion_lines("which setting to turn, each counted anew:", suggestions(plan, tokens), plan)
    elif found := faster(plan, tokens):
        yield from suggestion_lines("faster, and fits as well, each counted anew:", found, plan)
    if not chip.topologies:
        yield "a count; by itself JAX takes 75% of a GPU's memory, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 more"


def memory_lines(plan: RunPlan, bucket: Bucket) -> Iterator[str]:
    """Parts by phase, of the bucket with the highest peak."""
    phases = plan.memory[bucket]
    parts = list(dict.fromkeys(part for one in phases.values() for part in one))
    yield f"memory a chip in GiB, bucket {bucket.name}:"
    yield f"  {'':20}" + "".join(f"{name:>12}" for name in phases)
    for part in parts:
        sizes = [one.get(part, 0) for one in phases.values()]
        if max(sizes) >= 0.005 * GIB:
            yield f"  {part:20}" + "".join(f"{size / GIB:12.2f}" if size else f"{'':12}" for size in sizes)
    yield f"  {'peak':20}" + "".join(f"{sum(one.values()) / GIB:12.2f}" for one in phases.values())


def bucket_lines(plan: RunPlan) -> Iterator[str]:
    """What depends on the bucket: activations of the update, keys and values of generation."""
    yield "by bucket, GiB a chip:"
    for bucket, phases in plan.memory.items():
        update, held = phases["gradients"], ""
        if generation := phases.get("generation"):
            held = f"; keys and values {(generation['prefix'] + generation['cache']) / GIB:6.2f}"
        yield (
            f"  {bucket.name:30} kept for the backward pass {update['kept'] / GIB:6.2f}, working "
            f"{update['working'] / GIB:6.2f}{held}"
        )


def time_lines(plan: RunPlan, tokens: int | None) -> Iterator[str]:
    """The roofline: each phase takes what its slowest resource takes."""
    bucket = largest_bucket(settings.buckets(plan.step.config))
    written, what = min(tokens or bucket.completion, bucket.completion), "completions"
    if plan.step.stage == "sft":
        written, what = bucket.completion, "answers"
    yield f"a step at best (roofline), all of {bucket.name}, {what} of {written} tokens:"
    for name, work in plan.work.items():
        yield (
            f"  {name:12}{work.flops / 1e12:10.1f} TFLOP{work.memory / 1e9:10.1f} GB memory{work.link / 1e9:9.1f} GB "
            f"link  {work.seconds(plan.chip):8.2f} s ({work.bound(plan.chip)})"
        )
    prompts = step_prompts(plan.step.config)
    yield f"  together {plan.seconds:.1f} s for {prompts} prompts; at {OF_PEAK:.0%} of the chip's"
    yield f"  operations and {OF_BANDWIDTH:.0%} of its bytes a second {plan.expected:.1f} s"


def suggestion_lines(title: str, found: Sequence[Suggestion], plan: RunPlan) -> Iterator[str]:
    yield title
    for one in found[:SUGGESTED]:
        left = (plan.chip.memory - one.plan.peak()[0]) / GIB
        verdict = f"fits, {left:.1f} GiB left" if left >= 0 else f"{-left:.1f} GiB too much"
        flags = " ".join(f"{name}={_shown(value)}" for name, value in one.changes.items())
        more = f"; {one.plan.chips} chips" if one.plan.chips != plan.chips else ""
        other = "; alters the training" if one.alters else ""
        yield f"  {flags}: {verdict}, {one.plan.expected:.1f} s a step{more}{other}"


def _shown(value: Any) -> str:
    """As the command line takes it."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def compile_step(plan: RunPlan, topology: str) -> None:
    """The real step by the real compiler, phase by phase, beside the count."""
    config = plan.step.config
    mesh = make_mesh(settings.mesh_shape(config), topology_devices(topology))
    step = step_shapes(config, plan.step.model, mesh, stage=plan.step.stage)
    bucket = largest_bucket(settings.buckets(config))
    print(f"compiled for {topology}, bucket {bucket.name}:")
    for one in compile_all(step, bucket):
        counted = sum(plan.memory[bucket][one.phase].values())
        print(report(one, step, bucket))
        print(f"  counted {counted / GIB:.2f} GiB, {counted / one.peak - 1:+.1%}", flush=True)


def fewest_chips(config: settings.ConfigDict, stage: str) -> Iterator[str]:
    """Markdown: for each published size of the config's family and each chip the fewest chips that hold a run
    of the stage, and a step's time at best."""
    yield "| model | chip | chips | mesh | peak GiB of | in | step s | prompts |"
    yield "|---|---|---|---|---|---|---|---|"
    for size in named_model(config.model.source).family.published:
        for name in TABLE_CHIPS:
            chip = chip_named(name)
            counts = chip.sizes or GPUS
            plan = smallest(config, published(size), chip, counts, stage)
            if plan is None:
                yield f"| {size} | {name} | more than {max(counts)} | | | | | |"
                continue
            bytes_, phase, _ = plan.peak()
            sizes = plan.step.config.mesh
            axes = ("fsdp", "tensor", "decode_tensor")[: 3 if stage == "rl" else 2]
            mesh = " ".join(f"{axis}={sizes[axis]}" for axis in axes if sizes[axis] > 1)
            memory = f"{bytes_ / GIB:.1f} of {chip.memory / GIB:.1f} | {phase}"
            time = f"{plan.seconds:.0f} | {step_prompts(plan.step.config)}"
            yield f"| {size} | {name} | {plan.chips} | {mesh} | {memory} | {time} |"


def against(files: Sequence[Path]) -> Iterator[str]:
    """Markdown of what compile_tpu.py or compile_gpu.py --json wrote. The count beside the compiler's figure: memory,
    and useful FLOPs of a microbatch on a chip beside those of the program's matrix products, but for kernels. Then what
    moves."""
    every = [json.loads(file.read_text()) for file in files]
    yield "| model | slice | mesh | phase | counted GiB | compiled GiB | difference | useful TFLOP | products TFLOP |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for said in every:
        mesh = " ".join(f"{axis}={size}" for axis, size in said["mesh"].items() if size > 1)
        for phase, counted, useful in beside(said):
            compiled = said["phases"][phase]
            yield (
                f"| {said['model']} | {said['topology']} | {mesh} | {phase} | {counted / GIB:.2f} | "
                f"{compiled['peak'] / GIB:.2f} | {counted / compiled['peak'] - 1:+.1%} | {useful / 1e12:.1f} | "
                f"{compiled['products'] / 1e12:.1f} |"
            )
    yield "\n| model | slice | phase | compiled in s | collectives: how many, GB a chip |"
    yield "|---|---|---|---|---|"
    for said in every:
        for phase, one in said["phases"].items():
            moved = [f"{kind}: {runs}, {size / 1e9:.2f}" for kind, (_, runs, size) in one["collectives"].items()]
            start = f"| {said['model']} | {said['topology']} | {phase} | {one['seconds']} |"
            yield f"{start} {'; '.join(moved) or 'none'} |"


def beside(said: dict[str, Any]) -> list[tuple[str, int, float]]:
    """(phase, bytes a chip as counted now, useful FLOPs of a microbatch on a chip) for what was compiled."""
    file = said["config"]
    config = settings.from_file(file if Path(file).exists() else Path(file).name.replace(".py", ""), said["settings"])
    config = changed(config, {f"mesh.{axis}": size for axis, size in said["mesh"].items()})
    bucket = next(one for one in settings.buckets(config) if one.name == said["bucket"])
    platform = "gpu" if said["topology"].partition(":")[0] in TARGETS else "tpu"
    step = counted_shapes(config, named_model(said["model"]), platform)
    counted, useful = phase_memory(step, bucket), useful_flops(step, bucket)
    return [(phase, sum(counted[phase].values()), useful[phase]) for phase in said["phases"]]


if __name__ == "__main__":
    run_main(main)
