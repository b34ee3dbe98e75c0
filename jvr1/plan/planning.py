"""A run's memory and time on chips it does not have yet: what fits, a step's time at best, which setting to turn."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.chips import Chip
from jvr1.data.batch import Bucket
from jvr1.errors import UserError
from jvr1.model import hf
from jvr1.model.config import ModelConfig
from jvr1.model.families import published, published_sizes
from jvr1.opening.models import locate
from jvr1.plan import memory
from jvr1.plan.programs import Shapes, chip_bytes, row_counts, step_shapes
from jvr1.sharding import AXES, valid_tensor_sizes
from jvr1.train import flops

TOUCHED = {"forward": 4.0, "backward": 10.0}
"""How often a layer's attention scores are written or read where XLA computes it; a kernel does not write them."""


def named_model(name: str) -> ModelConfig:
    """The shape of a published size, of a folder, or of a hub id whose name holds a size. Raises UserError."""
    sizes = published_sizes()
    if name.lower() in sizes:
        return published(name.lower())
    if name and epath.Path(name).is_dir():
        return hf.read_config(locate(name)[0])
    longest_first = "|".join(map(re.escape, sorted(sizes, key=len, reverse=True)))
    found = re.search(rf"(?<![0-9.])({longest_first})(?![a-z])", name.lower())
    if not found:
        raise UserError(f"model {name!r} is no folder and names no size; give --model {', '.join(sizes)} or a folder")
    return published(found[0])


def largest_bucket(buckets: Sequence[Bucket]) -> Bucket:
    """The one whose rows hold most tokens."""
    return max(buckets, key=lambda b: (b.prompt + b.completion, b.steps * b.windows))


def read_mesh(text: str) -> dict[str, int]:
    """'data=1,fsdp=8,decode_tensor=4' -> settings of config.mesh; an axis not named is 1. Raises UserError."""
    try:
        sizes = {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise UserError(f"--mesh {text!r} cannot be read; write for example data=1,fsdp=8,tensor=1") from None
    known = (*AXES, "decode_tensor")
    for axis, size in sizes.items():
        if axis not in known:
            raise UserError(f"--mesh {text!r}: axis {axis!r} is unknown; the axes are {', '.join(known)}")
        if size < 1 and not (axis == "decode_tensor" and size == 0):
            raise UserError(f"--mesh {text!r}: {axis}={size} must be at least 1")
    return {axis: 1 for axis in AXES} | sizes


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy with {'section.name': value}."""
    other = copy.deepcopy(config)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        other[section][key] = value
    return other


def abstract_mesh(config: ConfigDict) -> AbstractMesh:
    """The training mesh without devices."""
    return AbstractMesh(tuple(config.mesh[axis] for axis in AXES), AXES)


def counted_shapes(config: ConfigDict, model: ModelConfig, platform: str = "tpu") -> Shapes:
    """A step on the config's mesh, to count, on chips of a platform, tpu or gpu. Raises UserError where mesh, model and
    rows do not go together."""
    step = step_shapes(config, model, abstract_mesh(config), platform)
    for name, ways in (
        ("data x fsdp", step.mesh.shape["data"] * step.mesh.shape["fsdp"]),
        ("devices / decode_tensor", step.generation_mesh.shape["data"]),
    ):
        if config.batch.micro % ways:
            raise UserError(
                f"batch.micro={config.batch.micro} rows cannot be split {ways} ways (mesh {name}); "
                f"use a multiple: --config.batch.micro={-(-config.batch.micro // ways) * ways}"
            )
    return step


class Work(NamedTuple):
    """A phase of an optimizer step on one chip: floating-point operations, bytes of its memory, bytes of the link."""

    flops: float
    memory: float
    link: float

    def seconds(self, chip: Chip) -> float:
        """At best: what takes longest, all else hidden behind it."""
        return max(self.flops / chip.flops, self.memory / chip.bandwidth, self.link / chip.link)

    def bound(self, chip: Chip) -> str:
        """Which of the three that is."""
        times = {
            "compute": self.flops / chip.flops,
            "memory": self.memory / chip.bandwidth,
            "link": self.link / chip.link,
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class RunPlan:
    """memory: bucket -> phase -> part -> bytes a chip. work: of an optimizer step whose microbatches are all of the
    largest bucket, completions written to the end or of the given length."""

    step: Shapes
    chip: Chip
    memory: dict[Bucket, dict[str, dict[str, int]]]
    work: dict[str, Work]

    @property
    def chips(self) -> int:
        return self.step.mesh.size

    def peak(self) -> tuple[int, str, Bucket]:
        """Bytes, phase and bucket of the most a chip ever holds; of buckets alike in that, the last."""
        sums = [(sum(parts.values()), phase, b) for b, phases in self.memory.items() for phase, parts in phases.items()]
        return max(reversed(sums), key=lambda one: one[0])

    @property
    def fits(self) -> bool:
        return self.peak()[0] <= self.chip.memory

    @property
    def seconds(self) -> float:
        return sum(work.seconds(self.chip) for work in self.work.values())


def make_plan(config: ConfigDict, model: ModelConfig, chip: Chip, tokens: int | None = None) -> RunPlan:
    """tokens: mean length of a completion; None: as long as the bucket allows. Raises UserError."""
    step = counted_shapes(config, model, "tpu" if chip.topologies else "gpu")
    buckets = settings.buckets(config)
    counted = {bucket: memory.phase_memory(step, bucket) for bucket in buckets}
    return RunPlan(step, chip, counted, step_work(step, largest_bucket(buckets), tokens))


def step_work(step: Shapes, bucket: Bucket, tokens: int | None = None) -> dict[str, Work]:
    """Phase -> its work on one chip in an optimizer step of batch.per_step microbatches of the bucket."""
    config, chips, times = step.config, step.mesh.size, step.config.batch.per_step
    written = float(min(tokens or bucket.completion, bucket.completion))
    generation = [times * part for part in _generation(step, bucket, written)]
    passed, scores = _scoring(step, bucket, written)
    again = passed.head + (passed.layers if config.model.remat == "full" else 0.0)
    copied, layer_reads = step.copied(), _gathered(step, bucket)
    weights = chip_bytes([there for _, there in copied])
    fsdp = step.mesh.shape["fsdp"]
    received = layer_reads * (fsdp - 1) / fsdp
    rows, updates = times * config.batch.micro / chips, config.rl.updates
    anchor = flops.scoring(step.model, bucket, config.rl.group, written)  # without adapters
    work = {
        "weights": Work(0.0, chip_bytes(copied), max(weights - weights / chips, 0.0)),
        "prefill": Work(*generation[:3]),
        "decode": Work(*generation[3:]),
        "reference": Work(rows * anchor.forward, times * (layer_reads + TOUCHED["forward"] * scores), times * received),
        "gradients": Work(
            updates * rows * (passed.both + again),
            updates * times * (3 * layer_reads + TOUCHED["backward"] * scores),
            updates * times * 3 * received,
        ),
        "update": Work(0.0, updates * (2 * chip_bytes(step.state) + chip_bytes(step.total)), 0.0),
    }
    return {name: one for name, one in work.items() if name != "reference" or step.reference}


def useful_flops(step: Shapes, bucket: Bucket) -> dict[str, float]:
    """Phase -> useful FLOPs of one microbatch on one chip, all completions of full length; nothing computed again."""
    rows = step.config.batch.micro / step.mesh.size
    anchor = flops.scoring(step.model, bucket, step.config.rl.group, bucket.completion)  # without adapters
    passed, _ = _scoring(step, bucket, bucket.completion)
    prefill, _, _, decode, _, _ = _generation(step, bucket, bucket.completion)
    return {
        "weights": 0.0,
        "generation": prefill + decode,
        "reference": rows * anchor.forward,
        "gradients": rows * passed.both,
        "update": 0.0,
    }


def _generation(step: Shapes, bucket: Bucket, tokens: float | int) -> tuple[float | int, ...]:
    """FLOPs, bytes and link bytes a chip of prefill, then of sampling `tokens` tokens, for one microbatch."""
    model, rows, chips = step.model, step.config.batch.micro, step.mesh.size
    here, size = memory.local_generation(step, rows), memory.itemsize(step)
    counts, trained = row_counts(step.config, bucket), flops.trained_of(step.params, step.state.params)
    streams, drawn = len(counts), sum(counts)
    weights = chip_bytes(step.generation)
    text = chip_bytes(step.generation["text"])
    if not model.tied:
        text -= chip_bytes(step.generation["text"]["embedding"])  # looked up, not read
    prefix = memory.kv_bytes(model, here, streams * bucket.prompt, size)
    cache = memory.kv_bytes(model, here, drawn * bucket.completion, size)  # as if read to its end
    scores = model.text.layers * streams * memory.text_scores(step, bucket, here, 0)[1]
    scores += _full_layers(model, bucket) * streams * memory.vision_scores(model, bucket, here)
    exchanged = 4 * model.text.layers * here.rows * model.text.hidden * size * (here.tensor > 1)  # two all-reduces
    return (
        rows * flops.prompt_flops(model, bucket, streams, trained) / chips,
        weights + TOUCHED["forward"] * scores,
        exchanged * streams * bucket.prompt,
        rows * flops.completion_flops(model, bucket, drawn, tokens, trained) / chips,
        tokens * (text + prefix + cache),
        tokens * drawn * (exchanged + here.rows * model.text.vocab * memory.FLOAT * (here.tensor > 1)),
    )


def _scoring(step: Shapes, bucket: Bucket, tokens: float | int) -> tuple[flops.Pass, int]:
    """FLOPs of a prompt and its completions, and bytes of a chip's attention scores over a microbatch, as they are
    written."""
    model, group, here = step.model, step.config.rl.group, memory.local(step)
    once = flops.scoring(model, bucket, group, tokens, flops.trained_of(step.params, step.state.params))
    scores = model.text.layers * memory.text_scores(step, bucket, here, group)[1]
    return once, scores + _full_layers(model, bucket) * memory.vision_scores(model, bucket, here)


def _full_layers(model: ModelConfig, bucket: Bucket) -> int:
    """Layers of the tower whose attention scores are counted."""
    return model.family.tower_scores(model.vision, bucket.windows).layers


def _gathered(step: Shapes, bucket: Bucket) -> float:
    """Bytes of the weights as a pass reads them: in the compute dtype, whole but for tensor; the head for each chunk of
    logits."""
    values = sum(x.size for x in jax.tree.leaves(step.params))
    chunks = math.ceil(bucket.completion / step.config.model.logit_chunk)
    return values / step.mesh.shape["tensor"] * memory.itemsize(step) + (chunks - 1) * memory.head_bytes(step)


ALTERS = ("optimizer.moment_dtype", "model.param_dtype", "rl.beta", "optimizer.freeze")
"""Settings that change what a run computes, not only where and when."""


class Suggestion(NamedTuple):
    """A change of settings, and the plan with it."""

    changes: dict[str, Any]
    plan: RunPlan

    @property
    def alters(self) -> bool:
        """Whether the training is another one then."""
        return any(name in ALTERS for name in self.changes)


def suggestions(plan: RunPlan, tokens: int | None = None) -> list[Suggestion]:
    """Changes that lower the peak, each counted anew. First those that make it fit: those that leave the training as it
    is before those that alter it, then by chip-seconds a prompt (roofline). Then the others, the lower peak first."""
    config, model = plan.step.config, plan.step.model
    found = []
    for changes in candidates(config, model):
        try:
            other = make_plan(changed(config, changes), model, plan.chip, tokens)
        except UserError:
            continue  # the mesh or the rows do not allow it
        if other.peak()[0] < plan.peak()[0]:
            found.append(Suggestion(changes, other))

    def rank(one: Suggestion) -> tuple[bool, bool, float]:
        chip_seconds = one.plan.seconds * one.plan.chips / one.plan.step.config.batch.micro
        return (not one.plan.fits, one.alters, chip_seconds if one.plan.fits else float(one.plan.peak()[0]))

    return sorted(found, key=rank)


def candidates(config: ConfigDict, model: ModelConfig) -> list[dict[str, Any]]:
    """Changes worth counting. More chips come as a larger fsdp axis, with the rows they need."""
    mesh, chips = config.mesh, config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    tensors = [t for t in valid_tensor_sizes(model) if chips % t == 0]
    found: list[dict[str, Any]] = [{"model.remat": remat} for remat in ("dots", "full") if remat != config.model.remat]
    found += [{"mesh.decode_tensor": t} for t in tensors if t > (mesh.decode_tensor or mesh.tensor)]
    found += [{"model.logit_chunk": n} for n in (64, 32) if n < config.model.logit_chunk]
    found += [{"optimizer.moment_dtype": "bfloat16"}, {"model.reference": "host"}, {"rl.beta": 0.0}]
    found += [{"model.param_dtype": "bfloat16"}, {"optimizer.freeze": ("visual/.*",)}]
    found += [{"batch.micro": n} for n in range(config.batch.micro // 2, 0, -1) if config.batch.micro % n == 0]
    found += [{"mesh.data": 1, "mesh.fsdp": mesh.data * mesh.fsdp}] if mesh.data > 1 else []
    found += [{"mesh.fsdp": mesh.fsdp // t, "mesh.tensor": mesh.tensor * t} for t in (2, 4) if mesh.fsdp % t == 0]
    found += [{"mesh.fsdp": mesh.fsdp * n, "batch.micro": config.batch.micro * n} for n in (2, 4, 8)]
    return found


def smallest(config: ConfigDict, model: ModelConfig, chip: Chip, sizes: Sequence[int]) -> RunPlan | None:
    """The plan with the fewest chips that fits: over tensor as few ways as possible in training, then in generation,
    the others over fsdp with one prompt of a microbatch each. None when none of the sizes fits."""
    splits = valid_tensor_sizes(model)
    for chips, tensor, decode in itertools.product(sizes, splits, splits):
        if chips % tensor or chips % decode or (chips // tensor) % (chips // decode):
            continue
        mesh = {"mesh.data": 1, "mesh.fsdp": chips // tensor, "mesh.tensor": tensor, "mesh.decode_tensor": decode}
        plan = make_plan(changed(config, mesh | {"batch.micro": chips // tensor}), model, chip)
        if plan.fits:
            return plan
    return None
