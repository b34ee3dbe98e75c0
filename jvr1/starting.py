"""What a training run says before its first step: where it runs, what it trains, on what, and where things are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import jax

from jvr1 import __version__
from jvr1 import config as settings
from jvr1.chips import GIB, chip_of
from jvr1.data.index_summary import IndexSummary, summarise_index
from jvr1.data.schedule import Schedule
from jvr1.plan.memory import phase_memory
from jvr1.plan.programs import STAGES, step_shapes
from jvr1.processes.peers import processes
from jvr1.train.progress import say
from jvr1.train.setup import Run


def tell_start(run: Run) -> None:
    """Prints it, on process 0."""
    if jax.process_index() == 0:
        for line in aligned(start_lines(run)):
            say(line)


def aligned(lines: Iterator[tuple[str, str]]) -> list[str]:
    """'label  text', the labels in a column of their own; a line without one goes on with the one before."""
    every = list(lines)
    width = max(len(label) for label, _ in every)
    return [f"{label:{width}}  {text}" for label, text in every]


def start_lines(run: Run) -> Iterator[tuple[str, str]]:
    """(label, text) of each line."""
    yield "run", f"train-{run.stage}, jvr1 {__version__}"
    yield "devices", device_line()
    yield "mesh", mesh_line(run)
    config = run.settings.model
    apart = config.param_dtype != config.dtype and not run.settings.lora.rank
    kept = f", parameters kept in {config.param_dtype}" if apart else ""
    yield "model", f"{run.config.family.title} from {run.origin.named}, {config.dtype}{kept}"
    yield "parameters", parameter_line(run)
    yield from row_lines(run)
    yield "steps", step_line(run)
    if run.stage in STAGES:
        yield "memory", memory_line(run)
    yield "workdir", f"{run.workdir}, " + ("new" if run.begun is None else f"goes on at step {run.begun.step}")
    yield "to see", f"tensorboard --logdir {run.workdir / 'tensorboard'}"
    yield "", f"jvr1 report {run.workdir}"


def device_line() -> str:
    kind, count = jax.devices()[0].device_kind, processes()
    return f"{jax.device_count()} x {kind}" + (f" of {count} processes" if count > 1 else "")


def mesh_line(run: Run) -> str:
    def axes(shape: dict[str, int]) -> str:
        return " ".join(f"{axis}={size}" for axis, size in shape.items())

    told = axes(dict(run.mesh.shape))
    generation = dict(run.decoder.generation.shape)
    return told if run.stage == "sft" else f"{told}; while sampling {axes(generation)}"


def parameter_line(run: Run) -> str:
    """How many there are and how many of them are trained."""
    total, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (run.params, run.trainable))
    if trained == total:
        return f"{amount(total)}, all trained"
    how = f", LoRA of rank {run.lora.rank}" if run.lora is not None else ""
    return f"{amount(total)}, {amount(trained)} trained ({trained / total:.2%}{how})"


def amount(count: int) -> str:
    """8.29 B, 880 k."""
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return str(count)


def row_lines(run: Run) -> Iterator[tuple[str, str]]:
    """Rows kept by kind of medium and dropped by cause; then each bucket with its rows and their padding."""
    buckets = {bucket.name: bucket for bucket in settings.buckets(run.settings)}
    summary = summarise_index(run.entries, {name: bucket.prompt for name, bucket in buckets.items()})
    yield "rows", kept_line(summary, {name: bucket.kind for name, bucket in buckets.items()})
    for i, (name, use) in enumerate(sorted(summary.buckets.items())):
        padding = "" if use.padding is None else f", {use.padding:.0%} of the prompt is padding"
        yield "" if i else "buckets", f"{name}: {use.records:,} rows{padding}"


def kept_line(summary: IndexSummary, kinds: dict[str, str]) -> str:
    by_kind: Counter[str] = Counter()
    for name, use in summary.buckets.items():
        by_kind[kinds.get(name, name)] += use.records
    told = f"{sum(by_kind.values()):,} of {summary.records:,} kept: " + ", ".join(
        f"{count:,} {kind}" for kind, count in by_kind.most_common()
    )
    dropped = ", ".join(f"{count:,} {cause}" for cause, count in Counter(summary.dropped).most_common())
    return told + (f"; dropped: {dropped}" if dropped else "; none dropped")


def step_line(run: Run) -> str:
    """Steps, prompts and completions a step, steps an epoch."""
    config, schedule = run.settings, run.pipeline.planner
    batch, rl = config.batch, config.rl
    told = f"{config.train.steps:,} of {batch.micro * batch.per_step} prompts ({batch.per_step} x {batch.micro})"
    if run.stage != "sft":
        shuffled = f" + {rl.shuffled} shuffled" if run.stage == "rl" and rl.shuffled else ""
        told += f", {rl.group}{shuffled} completions each"
    if isinstance(schedule, Schedule):
        told += f"; an epoch is {-(-schedule.per_epoch // batch.per_step):,} steps"
    return told


def memory_line(run: Run) -> str:
    """The most that a device holds, as `jvr1 plan` counts it, and what it has."""
    shapes = step_shapes(run.settings, run.config, run.mesh, stage=run.stage)
    peak, phase, bucket = max(
        ((sum(parts.values()), phase, bucket.name)
         for bucket in settings.buckets(run.settings) for phase, parts in phase_memory(shapes, bucket).items())
    )  # fmt: skip
    chip = chip_of(jax.devices()[0].device_kind)
    there = f" of {chip.memory / GIB:.4g}" if chip else ""
    return f"{peak / GIB:.3g} GiB{there} a device at the peak, by count: {phase} of {bucket}"
