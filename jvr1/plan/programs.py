"""The programs of a step from shapes alone: what a run would compile, lowered without arrays or devices.

They are the very functions that `train_rl` or `train_sft` jits, over `jax.ShapeDtypeStruct`s laid out as its arrays
are. With devices of `jax.experimental.topologies` the real TPU compiler makes real executables of them on any machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.data.batch import Arrays, Bucket, empty_example
from jvr1.errors import UserError
from jvr1.model import vision_language
from jvr1.model.attention import Backend, choose
from jvr1.model.config import ModelConfig
from jvr1.model.layers import batch_ways
from jvr1.model.lora import ADAPTERS, LoRAConfig, without_adapters
from jvr1.rollout.decoder import Place, at_a_time, make_decoder, mover, places, wants_apart
from jvr1.rollout.generate import Room, reads
from jvr1.rollout.tasks import SlotShape
from jvr1.sharding import AXES, batch_sharding, check_mesh, decode_mesh, decode_sizes, decode_ways, param_shardings
from jvr1.train.optimizer import make_optimizer, partition
from jvr1.train.packing import tape_size
from jvr1.train.reference import Reference
from jvr1.train.rollouts import rows_of, slot_count, slot_shapes
from jvr1.train.state import TrainState, abstract_state, make_update
from jvr1.train.steps import PolicyBatch, make_answer_gradients, make_policy_gradients, make_reference_scores

PHASES = ("weights", "generation", "reference", "gradients", "update")
STAGES = {"rl": PHASES, "sft": ("gradients", "update")}
"""Phases of a step by what trains: `train_rl`, `train_sft`."""
END_IDS = (1, 0)
"""Any two words: which ones end a completion changes nothing of a program's cost."""


@dataclass(frozen=True)
class Shapes:
    """A step on a mesh, as shapes with shardings. reference: None where beta is 0. places: of the weights on
    `generation_mesh`. total: the sum of gradients. attention: what computes that of the text layers. stage: of STAGES;
    of supervised learning `config` has one completion a prompt, its answer, and neither twin nor reference."""

    config: ConfigDict
    model: ModelConfig
    mesh: Any
    generation_mesh: Any
    graphdef: nnx.GraphDef
    params: dict
    frozen: dict
    tx: Any
    state: TrainState
    reference: Reference | None
    places: dict
    total: dict
    attention: Backend
    stage: str = "rl"

    @property
    def phases(self) -> tuple[str, ...]:
        """That a step of the stage goes through, a reference's only where there is one."""
        return tuple(name for name in STAGES[self.stage] if name != "reference" or self.reference)

    @property
    def generation(self) -> dict:
        """The weights as they generate."""
        return jax.tree.map(lambda x, place: place.shape(x), self.params, self.places)

    def copied(self) -> list[tuple[Any, Place]]:
        """Parameters that generation has a copy of, and where; the others serve both as they lie."""
        places = jax.tree.leaves(self.places, is_leaf=lambda x: isinstance(x, Place))
        pairs = zip(jax.tree.leaves(self.params), places, strict=True)
        return [(x, place) for x, place in pairs if not place.holds(x)]

    def reference_copy(self) -> dict:
        """The reference's parameters that are no parameters of the policy: all, or with adapters none."""
        return {} if self.reference is None or self.config.lora.rank else self.reference.params


def step_shapes(
    config: ConfigDict,
    model: ModelConfig,
    mesh: Mesh | AbstractMesh,
    platform: str | None = None,
    stage: str = "rl",
) -> Shapes:
    """What lives on `mesh` when a run of this config trains this model; to count, a mesh without devices will do.

    platform: that of a mesh without devices: tpu, gpu or cpu. stage: of STAGES. Raises UserError for a mesh that cannot
    be.
    """
    config = supervised(config) if stage == "sft" else config
    check_mesh(mesh, model)
    platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else platform or "cpu"
    generation = generation_mesh(mesh, config.mesh.decode_tensor or decode_ways(mesh, model, platform))
    check_mesh(generation, model)
    lora = settings.lora(config)
    dtype, remat = config.model.dtype, config.model.remat
    attention = choose(config.model.attention, platform, dtype, model.text.head_size)
    graphdef, shapes = _abstract(model, lora, dtype, settings.base_dtype(config), remat, attention)
    params = _placed(shapes, param_shardings(shapes, mesh))
    optimizer = settings.optimizer(config)
    trainable, frozen = partition(params, optimizer.freeze, ".*" if lora is None else ADAPTERS)
    tx = make_optimizer(optimizer, trainable)
    anchor = _as(shapes, config.model.dtype)
    reference = Reference(graphdef, _placed(anchor, param_shardings(anchor, mesh)), config.model.reference == "host")
    if lora is not None:
        reference = Reference(*without_adapters(graphdef, params))
    return Shapes(
        config=config,
        model=model,
        mesh=mesh,
        generation_mesh=generation,
        graphdef=graphdef,
        params=params,
        frozen=frozen,
        tx=tx,
        state=abstract_state(tx, trainable, mesh),
        reference=reference if config.rl.beta else None,
        places=places(params, generation, dtype, apart=wants_apart(platform), eight_bits=config.model.rollout_dtype),
        total=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), trainable),
        attention=attention,
        stage=stage,
    )


def supervised(config: ConfigDict) -> ConfigDict:
    """A copy in which a prompt has one completion, its answer, which is padded to its bucket."""
    other = copy.deepcopy(config)
    other.rl.update({"group": 1, "shuffled": 0, "beta": 0.0, "packing": 0})
    return other


@cache
def _abstract(
    model: ModelConfig, lora: LoRAConfig | None, dtype: str, param_dtype: str, remat: str, attention: Backend
) -> tuple[nnx.GraphDef, dict]:
    kw: dict[str, Any] = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    return vision_language.abstract(model, lora=lora, remat=remat, attention=attention, **kw)


def generation_mesh(mesh: Mesh | AbstractMesh, tensor: int) -> Mesh | AbstractMesh:
    """`sharding.decode_mesh`, of a mesh without devices, too. Raises UserError for a size that does not divide."""
    if isinstance(mesh, Mesh):
        return decode_mesh(mesh, tensor)
    if mesh.size % tensor:
        raise UserError(f"mesh.decode_tensor={tensor} cannot split {mesh.size} devices; use a divisor")
    return AbstractMesh(decode_sizes(mesh.size, tensor), AXES)


def _as(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def batch_shapes(step: Shapes, bucket: Bucket) -> Arrays:
    """A microbatch of batch.micro rows."""
    rows, sharding = step.config.batch.micro, batch_sharding(step.mesh)

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        one = np.asarray(x)
        return jax.ShapeDtypeStruct((rows, *one.shape), one.dtype, sharding=sharding)

    return jax.tree.map(shape, empty_example(bucket, step.model))


def row_counts(config: ConfigDict, bucket: Bucket) -> tuple[int, ...]:
    """Completions a prompt of the bucket gets: ordered, and shuffled where it is a video."""
    return rows_of(bucket, config.rl.group, config.rl.shuffled)


def slots_of(step: Shapes) -> int:
    """Prompts under way while tokens are sampled, rounded up to what the devices divide."""
    unit = math.lcm(batch_ways(step.mesh), batch_ways(step.generation_mesh))
    return -(-slot_count(step.config) // unit) * unit


def tape_of(step: Shapes, bucket: Bucket, tokens: float | int | None = None) -> int | None:
    """Tokens of the tapes on which completions of a mean length are read; None where they are padded. tokens: None
    stands for the longest."""
    group, longest = step.config.rl.group, bucket.completion
    most = group * longest if tokens is None else math.ceil(group * min(tokens, longest))
    return tape_size(most, group, longest, step.config.rl.packing)


def entering_of(step: Shapes) -> int:
    """Prompts that one program encodes: a microbatch's, rounded up to what generation divides."""
    unit = batch_ways(step.generation_mesh)
    return min(-(-step.config.batch.micro // unit) * unit, slots_of(step))


def slot_shape(step: Shapes, bucket: Bucket) -> SlotShape:
    """That of the slots in which prompts of the bucket are answered."""
    shapes = slot_shapes(step.config, step.model, step.generation_mesh, step.config.rl.shuffled)
    own = SlotShape(bucket.prompt, bucket.completion, row_counts(step.config, bucket))
    return next((shape for shape in shapes if shape.takes(own)), own)


class Program(NamedTuple):
    """A program that a phase runs `times` over."""

    lowered: jax.stages.Lowered
    times: int = 1


def lower_phase(step: Shapes, phase: str, bucket: Bucket, tokens: float | int | None = None) -> Iterator[Program]:
    """The programs of one of PHASES: one, but for the weights, which move one by one. Several of a shape share one.
    tokens: as `tape_of` has them."""
    tape = tape_of(step, bucket, tokens)
    make: dict[str, Callable[[Shapes, Bucket], Iterator[Program]]] = {
        "weights": _weights,
        "generation": _generation,
        "reference": partial(_reference, tape=tape),
        "gradients": _answer_gradients if step.stage == "sft" else partial(_gradients, tape=tape),
        "update": _update,
    }
    with jax.set_mesh(step.mesh):
        yield from make[phase](step, bucket)


def _weights(step: Shapes, bucket: Bucket) -> Iterator[Program]:
    same: dict[Any, list] = {}
    for x, place in step.copied():
        same.setdefault((x.shape, x.dtype, x.sharding, place), []).append(x)
    for (*_, place), moved in same.items():
        yield Program(mover(place).lower(moved[0]), len(moved))


def _generation(step: Shapes, bucket: Bucket) -> Iterator[Program]:
    tensor, dtype = step.config.mesh.decode_tensor, step.config.model.dtype
    decoder = make_decoder(step.graphdef, step.mesh, step.model, END_IDS, tensor=tensor, dtype=dtype)
    bits = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    own, rows, prompts = slot_shape(step, bucket), row_counts(step.config, bucket), entering_of(step)
    sampling = decoder.sampling(own.completion, **step.config.sampling)
    here = batch_sharding(step.generation_mesh)

    def shape(x: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prompts, *sizes, *x.shape[1:]), x.dtype, sharding=here)

    batch = batch_shapes(step, bucket)
    arrays = jax.tree.map(shape, batch)
    pairs = None if batch.visual is None else shape(batch.visual.pair, len(rows))
    most = jax.ShapeDtypeStruct((prompts, sum(rows)), jnp.int32, sharding=here)
    room = Room(own.prompt, own.rows, at_a_time(own.rows, step.config.rl.lanes))
    for lowered in decoder.programs.lower(
        step.generation, bits, slots_of(step), (arrays, pairs, most), room=room, sampling=sampling
    ):
        yield Program(lowered)


def _scoring(step: Shapes) -> dict[str, Any]:
    return {"temperature": step.config.sampling.temperature, "chunk": step.config.model.logit_chunk}


def _rows(step: Shapes, dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((step.config.batch.micro, *sizes), dtype, sharding=batch_sharding(step.mesh))


def _reference(step: Shapes, bucket: Bucket, tape: int | None) -> Iterator[Program]:
    if step.reference is None:
        return
    scores = make_reference_scores(step.reference.graphdef, step.mesh, **_scoring(step))
    ids, mask = (_rows(step, dtype, step.config.rl.group, bucket.completion) for dtype in (jnp.int32, jnp.bool_))
    yield Program(scores.lower(step.reference.params, batch_shapes(step, bucket), ids, mask, tape=tape))


def _gradients(step: Shapes, bucket: Bucket, tape: int | None) -> Iterator[Program]:
    group, length = step.config.rl.group, bucket.completion
    shardings = jax.tree.map(lambda x: x.sharding, step.total)
    algorithm = settings.tgrpo(step.config)
    gradients = make_policy_gradients(step.graphdef, algorithm, shardings, **_scoring(step))
    logprobs = _rows(step, jnp.float32, group, length)
    batch: Any = PolicyBatch._make(
        (
            batch_shapes(step, bucket),
            _rows(step, jnp.int32, group, length),
            None if step.reference is None else logprobs,
            logprobs,
            logprobs,
            jax.ShapeDtypeStruct((), jnp.bool_),
            _rows(step, jnp.float32, group),
            _rows(step, jnp.bool_, group, length),
            jax.ShapeDtypeStruct((), jnp.float32),
            logprobs if algorithm.weighs_tokens else None,
            jax.ShapeDtypeStruct((), jnp.float32) if algorithm.has_entropy_bonus else None,
        )
    )
    yield Program(gradients.lower(step.state.params, step.frozen, step.total, batch, tape=tape))


def _answer_gradients(step: Shapes, bucket: Bucket) -> Iterator[Program]:
    """Those of `train_sft`."""
    shardings, on_prompt = jax.tree.map(lambda x: x.sharding, step.total), step.config.sft.loss_on_prompt
    gradients = make_answer_gradients(
        step.graphdef, shardings, chunk=step.config.model.logit_chunk, on_prompt=on_prompt
    )
    tokens = jax.ShapeDtypeStruct((), jnp.float32)
    lower = cast(jax.stages.Wrapped, gradients).lower
    yield Program(lower(step.state.params, step.frozen, step.total, batch_shapes(step, bucket), tokens))


def _update(step: Shapes, bucket: Bucket) -> Iterator[Program]:
    update = make_update(step.tx, jax.tree.map(lambda x: x.sharding, step.state))
    yield Program(update.lower(step.state, step.total, jax.ShapeDtypeStruct((), jnp.bool_)))


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def resident(step: Shapes, phase: str, bucket: Bucket) -> int:
    """Bytes a chip holds while a phase runs that are no argument of its programs.

    Rollouts of all of the step's microbatches wait on the device; those of the phase's own are its argument.
    """
    params, moments = chip_bytes(step.params), chip_bytes(step.state.optimizer)
    copy, reference = chip_bytes([place.shape(x) for x, place in step.copied()]), chip_bytes(step.reference_copy())
    shared = 0 if step.reference is None else chip_bytes(step.reference.params) - reference
    reference = 0 if step.config.model.reference == "host" else reference
    own = chip_bytes(batch_shapes(step, bucket))
    rollouts = own * (step.config.batch.per_step - 1)
    return {
        "weights": params + moments + reference + copy,
        "generation": params + moments + reference + rollouts + copy - chip_bytes(step.generation),
        "reference": params + moments + rollouts - shared,
        "gradients": moments + reference + rollouts,
        "update": chip_bytes(step.frozen) + reference + rollouts + own,
    }[phase]


def loop_trips(step: Shapes, bucket: Bucket) -> int:
    """Of each loop of decoding, were all of them as long: all completions written to the end."""
    return math.ceil(bucket.completion / len(reads(bucket.completion, step.attention)))
