"""A run's memory and time on chips it does not have yet: what fits, a step's time at best, which setting to turn."""

from __future__ import annotations

import copy
import itertools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from jvr1.model.layers import BATCH, REMAT_POLICIES, batch_ways
from jvr1.opening.models import locate
from jvr1.plan import memory
from jvr1.plan.programs import Shapes, step_shapes
from jvr1.plan.work import Work, step_work
from jvr1.sharding import AXES, valid_tensor_sizes


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


def words_of(name: str) -> list[str]:
    """Words of the last of the names in a config's FILE[:ARG]."""
    return re.split(r"[^a-z0-9]+", name.rpartition("/")[2].lower())


def stage_of(name: str) -> str:
    """What a config named FILE[:ARG] is for: "sft" where the last of its names has that as a word, else "rl"."""
    return "sft" if "sft" in words_of(name) else "rl"


def counted_shapes(config: ConfigDict, model: ModelConfig, platform: str = "tpu", stage: str = "rl") -> Shapes:
    """A step of a stage on the config's mesh, to count, on chips of a platform, tpu or gpu. Raises UserError where
    mesh, model and rows do not go together."""
    step = step_shapes(config, model, abstract_mesh(config), platform, stage)
    meshes = {" x ".join(BATCH): step.mesh}
    if stage == "rl":
        meshes["devices / decode_tensor"] = step.generation_mesh
    for name, ways in ((name, batch_ways(mesh)) for name, mesh in meshes.items()):
        if config.batch.micro % ways:
            raise UserError(
                f"batch.micro={config.batch.micro} rows cannot be split {ways} ways (mesh {name}); "
                f"use a multiple: --config.batch.micro={-(-config.batch.micro // ways) * ways}"
            )
    return step


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
        """Of an optimizer step, at best."""
        return sum(work.seconds(self.chip) for work in self.work.values())

    @property
    def expected(self) -> float:
        """Of an optimizer step, at OF_PEAK of the operations and OF_BANDWIDTH of the bytes."""
        return sum(work.seconds(self.chip, OF_PEAK, OF_BANDWIDTH) for work in self.work.values())


def make_plan(
    config: ConfigDict, model: ModelConfig, chip: Chip, tokens: int | None = None, stage: str = "rl"
) -> RunPlan:
    """tokens: mean length of a completion; None: as long as the bucket allows. stage: "rl" counts a step of T-GRPO,
    "sft" one of supervised learning, whose answers are as long as the bucket allows. Raises UserError."""
    step = counted_shapes(config, model, "tpu" if chip.topologies else "gpu", stage)
    buckets = settings.buckets(config)
    counted = {bucket: memory.phase_memory(step, bucket) for bucket in buckets}
    return RunPlan(step, chip, counted, step_work(step, largest_bucket(buckets), tokens))


OF_PEAK, OF_BANDWIDTH = 0.5, 0.8
"""What good programs reach of a chip's peaks: an assumption, the same for all, for what is expected and not at best."""
OF_A_HOST = 8
"""The most ways that weights are split for decoding in a suggestion."""
ALTERS = ("optimizer.moment_dtype", "model.param_dtype", "rl.beta", "optimizer.freeze", "lora.rank")
"""Settings that change what a run computes, not only where and when."""
SUGGESTED_LORA = {"lora.rank": 32, "lora.alpha": 64.0, "lora.patterns": ("text/layers/.*",)}
"""Adapters as configs/tgrpo_7b_lora.py has them: of all linear maps of the decoder."""


class Suggestion(NamedTuple):
    """A change of settings, the plan with it, and the prompts of a step without it."""

    changes: dict[str, Any]
    plan: RunPlan
    prompts: int

    @property
    def alters(self) -> bool:
        """Whether the training is another one then, be it of other prompts a step."""
        return any(name in ALTERS for name in self.changes) or step_prompts(self.plan.step.config) != self.prompts


def step_prompts(config: ConfigDict) -> int:
    return config.batch.micro * config.batch.per_step


def suggestions(plan: RunPlan, tokens: int | None = None) -> list[Suggestion]:
    """Changes that lower the peak, each counted anew. First those that make it fit: those that leave the training as it
    is before those that alter it, then by chip-seconds a prompt (roofline). Then the others, the lower peak first. Of
    the same prompts in smaller parts, and of LoRA, the best is listed."""
    config, model = plan.step.config, plan.step.model
    parts = smaller_parts(plan.step)
    adapters = [SUGGESTED_LORA | part for part in ({}, *parts)] if not config.lora.rank else []
    found = _counted(plan, candidates(config, model), tokens)
    for several in (parts, adapters):
        found += sorted(_counted(plan, several, tokens), key=_rank)[:1]
    return sorted(found, key=_rank)


def _counted(plan: RunPlan, every: Sequence[dict[str, Any]], tokens: int | None) -> list[Suggestion]:
    """Those of the changes that can be and lower the peak."""
    config, found = plan.step.config, []
    for changes in every:
        try:
            other = make_plan(changed(config, changes), plan.step.model, plan.chip, tokens, plan.step.stage)
        except UserError:
            continue  # the mesh or the rows do not allow it
        if other.peak()[0] < plan.peak()[0]:
            found.append(Suggestion(changes, other, step_prompts(config)))
    return found


def _rank(one: Suggestion) -> tuple[bool, bool, float]:
    chip_seconds = one.plan.seconds * one.plan.chips / step_prompts(one.plan.step.config)
    return (not one.plan.fits, one.alters, chip_seconds if one.plan.fits else float(one.plan.peak()[0]))


def faster(plan: RunPlan, tokens: int | None = None) -> list[Suggestion]:
    """Settings with which a step of the same prompts is expected to take less time, and that fit; the fastest first.
    None of them alters the training."""
    config, model = plan.step.config, plan.step.model
    rows = config.batch.micro
    tensors = [t for t in valid_tensor_sizes(model) if plan.chips % t == 0 and t <= OF_A_HOST]
    micros = [n for n in (rows, 2 * rows) if config.batch.per_step * rows % n == 0]
    lane_counts, slots = {config.rl.lanes, 0}, 0
    if plan.step.stage == "sft":
        tensors, lane_counts, slots = [plan.step.generation_mesh.shape["tensor"]], {config.rl.lanes}, config.rl.slots
    found = []
    for decode, remat, micro, lanes in itertools.product(tensors, REMAT_POLICIES, micros, lane_counts):
        changes = {"mesh.decode_tensor": decode, "model.remat": remat, "batch.micro": micro, "rl.lanes": lanes}
        changes["rl.slots"] = slots
        changes["batch.per_step"] = config.batch.per_step * rows // micro
        now = {name: _setting(config, name) for name in changes}
        now["mesh.decode_tensor"] = plan.step.generation_mesh.shape["tensor"]
        changes = {name: value for name, value in changes.items() if value != now[name]}
        try:
            other = make_plan(changed(config, changes), model, plan.chip, tokens, plan.step.stage)
        except UserError:
            continue  # the mesh or the rows do not allow it
        if other.fits and other.expected < plan.expected:
            found.append(Suggestion(changes, other, step_prompts(config)))
    return sorted(found, key=lambda one: (one.plan.expected, len(one.changes)))


def candidates(config: ConfigDict, model: ModelConfig) -> list[dict[str, Any]]:
    """Changes worth counting. More chips come as a larger fsdp axis, with the rows they need, of the same prompts a
    step where they divide into such rows."""
    mesh, chips = config.mesh, config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    tensors = [t for t in valid_tensor_sizes(model) if chips % t == 0]
    found: list[dict[str, Any]] = [{"model.remat": remat} for remat in ("dots", "full") if remat != config.model.remat]
    found += [{"mesh.decode_tensor": t} for t in tensors if t > (mesh.decode_tensor or 1)]
    found += [{"model.logit_chunk": n} for n in (64, 32) if n < config.model.logit_chunk]
    found += [{"optimizer.moment_dtype": "bfloat16"}, {"model.reference": "host"}, {"rl.beta": 0.0}]
    found += [{"model.param_dtype": "bfloat16"}, {"optimizer.freeze": ("visual/.*",)}]
    found += [{"batch.micro": n} for n in range(config.batch.micro // 2, 0, -1) if config.batch.micro % n == 0]
    found += [{"mesh.data": 1, "mesh.fsdp": mesh.data * mesh.fsdp}] if mesh.data > 1 else []
    found += [{"mesh.fsdp": mesh.fsdp // t, "mesh.tensor": mesh.tensor * t} for t in (2, 4) if mesh.fsdp % t == 0]
    for n in (2, 4, 8):
        more = {"mesh.fsdp": mesh.fsdp * n, "batch.micro": config.batch.micro * n}
        found.append(more if config.batch.per_step % n else more | {"batch.per_step": config.batch.per_step // n})
    return found


def smaller_parts(step: Shapes) -> list[dict[str, Any]]:
    """The prompts of a step, fewer at a time: in a microbatch, in a chunk of logits, and while tokens are sampled."""
    batch, chunk = step.config.batch, min(step.config.model.logit_chunk, 64)
    ways = batch_ways(step.mesh)
    if step.stage == "rl":
        ways = math.lcm(ways, batch_ways(step.generation_mesh))
    prompts = batch.micro * batch.per_step
    if prompts % ways:
        return []
    least = {"batch.micro": ways, "batch.per_step": prompts // ways, "model.remat": "full"}
    found = [least, least | {"model.logit_chunk": chunk}]
    if step.stage == "rl":
        counts = (n * ways for n in (8, 4, 2, 1) if n * ways < (step.config.rl.slots or prompts))
        found += [found[-1] | {"rl.slots": n} for n in counts]
        found += [found[-1] | {"rl.lanes": 4}]
    return [{name: value for name, value in part.items() if value != _setting(step.config, name)} for part in found]


def _setting(config: ConfigDict, name: str) -> Any:
    return operator.attrgetter(name)(config)


def smallest(
    config: ConfigDict, model: ModelConfig, chip: Chip, sizes: Sequence[int], stage: str = "rl"
) -> RunPlan | None:
    """The plan of a stage with the fewest chips that fits: over tensor as few ways as possible in training, then in
    generation, the others over fsdp with one prompt of a microbatch each. None when none of the sizes fits."""
    splits = valid_tensor_sizes(model)
    for chips, tensor, decode in itertools.product(sizes, splits, splits):
        if chips % tensor or chips % decode or (chips // tensor) % (chips // decode):
            continue
        if stage == "sft" and decode != tensor:
            continue  # nothing is generated
        mesh = {"mesh.data": 1, "mesh.fsdp": chips // tensor, "mesh.tensor": tensor, "mesh.decode_tensor": decode}
        plan = make_plan(changed(config, mesh | {"batch.micro": chips // tensor}), model, chip, stage=stage)
        if plan.fits:
            return plan
    return None
