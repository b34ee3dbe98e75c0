"""Generation over batches of the data pipeline: one decoder for rollouts, validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jvr1.data.batch import Arrays
from jvr1.model.config import ModelConfig
from jvr1.model.families import known
from jvr1.model.rounded import Rounded, rounded, rounded_shape
from jvr1.rollout.generate import Room
from jvr1.rollout.queue import Programs, answer_queue, make_programs
from jvr1.rollout.sampling import Sampling
from jvr1.rollout.tasks import Decode, Done, Sampled, SlotShape, Task, shared_shapes
from jvr1.sharding import check_mesh, decode_mesh, decode_ways, param_shardings, path_name

DECODER_LAYERS = "text/layers/"
"""What can lie apart: the tower's layers run once a prompt, the decoder's at each token."""


@dataclass(frozen=True)
class Decoder:
    """Completions of a model whose batches lie on `mesh`, its weights laid out for generation on that of `generation`.

    weights(params): a copy in the compute dtype, split over `tensor` of the generation mesh and replicated otherwise;
    what lies so already is not copied; with `eight_bits` the kernels of the decoder's layers are rounded (`lay_out`).
    programs: what a queue of prompts runs; compiled once for each
    bucket, room and sampling.
    """

    mesh: Mesh
    generation: Mesh
    model: ModelConfig
    end_ids: tuple[int, ...]
    weights: Callable[..., dict]
    programs: Programs

    def sampling(self, tokens: int, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """How completions of so many tokens are sampled: no visual placeholder ever."""
        return Sampling(
            max_tokens=tokens,
            end_ids=self.end_ids,
            banned_ids=self.model.visual_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            pad_id=self.end_ids[-1],
        )

    def answering(self, weights: dict, key: jax.Array, *, temperature: float = 0.0, top_p: float = 1.0) -> Decode:
        """What `questions.asking.answer_questions` calls: by default the best token each time."""
        return partial(self.queue, weights, key=key, temperature=temperature, top_p=top_p)

    def queue(
        self,
        weights: dict,
        tasks: Iterable[Task],
        key: jax.Array,
        *,
        shapes: Sequence[SlotShape] = (),
        slots: int = 0,
        lanes: int = 0,
        prepare: bool = False,
        **drawing: Any,
    ) -> Iterator[list[Done]]:
        """Answers all rows of microbatches; yields this process's as they end. Neighbours of one of the `shapes` are
        one queue, others of one bucket; it keeps `slots` prompts under way (0: as many as a microbatch has) and of each
        prompt's first stream `lanes` completions at a time, of the others in proportion (0: all at once). None of these
        changes what a row's tokens are. prepare: all programs of a bucket compile when it first comes, not when a queue
        is first longer than it. drawing: as `sampling` takes it."""
        for shape, same in groupby(tasks, key=partial(shape_of, shapes)):
            room = Room(shape.prompt, shape.rows, at_a_time(shape.rows, lanes))
            sampling = self.sampling(shape.completion, **drawing)
            yield from answer_queue(self.programs, weights, same, key, sampling, room, slots, prepare=prepare)

    def answers(
        self, weights: dict, tasks: Sequence[Task], key: jax.Array, *, shapes: Sequence[SlotShape] = (), **how: Any
    ) -> list[Sampled]:
        """What `queue` gives, as one array a task: those of one shape are one queue, wherever they stand, and in it
        those of a bucket neighbours."""
        order = list(dict.fromkeys(task.micro.bucket for task in tasks))
        sizes = list(dict.fromkeys(shape_of(shapes, task) for task in tasks))
        which = {id(task): number for number, task in enumerate(tasks)}
        found: list[list[Any]] = [[None] * len(task.arrays.valid) for task in tasks]
        turns = sorted(tasks, key=lambda task: (sizes.index(shape_of(shapes, task)), order.index(task.micro.bucket)))
        for done in self.queue(weights, turns, key, shapes=shapes, **how):
            for task, row, sampled in done:
                found[which[id(task)]][row] = sampled
        return [Sampled(*(np.stack(x) for x in zip(*rows, strict=True))) for rows in found]

    def stream(
        self, weights: dict, arrays: Arrays, key: jax.Array, sampling: Sampling, every: int = 8
    ) -> Iterator[Sampled]:
        """One completion a prompt as it grows: this process's rows with the first token, with each `every` more, and
        whole. arrays: on the host; the mesh must divide their rows."""
        room = Room(arrays.prompt.ids.shape[1], (1,), (1,))
        how, bits = {"room": room, "sampling": sampling}, np.asarray(jax.random.key_data(key))
        most = np.full((len(arrays.valid), 1), sampling.max_tokens, np.int32)
        pairs = None if arrays.visual is None else arrays.visual.pair[:, None]
        slots, more, going = self.programs.of(weights, bits, (arrays, pairs, most), **how), 0, True
        while going:
            slots, idle, _ = self.programs.advance(weights, bits, slots, slots.lanes.row.shape[0], more, **how)
            yield self.programs.results(slots)
            more, going = every, not np.asarray(idle).all()


def queue_shapes(
    model: ModelConfig,
    generation: Mesh | AbstractMesh,
    dtype: str,
    wanted: Sequence[SlotShape],
    slots: int,
    prompts: int,
) -> tuple[SlotShape, ...]:
    """`shared_shapes` of a model that generates on a mesh in a dtype, `slots` of a step's `prompts` at a time."""
    text, tensor, size = model.text, generation.shape["tensor"], jnp.dtype(dtype).itemsize
    heads = 2 * (text.heads + text.kv_heads) * text.head_size
    products = text.hidden * (heads + 3 * text.intermediate)
    weights = size * (text.layers * products + text.hidden * text.vocab) // tensor
    token = size * 2 * text.layers * text.head_size * max(text.kv_heads // tensor, 1)
    here = -(-slots // (generation.size // tensor))
    return shared_shapes(wanted, here, weights, token, all_at_once=slots >= prompts)


def shape_of(shapes: Sequence[SlotShape], task: Task) -> SlotShape:
    """The first of the shapes that takes the task, or its own."""
    own = SlotShape(task.micro.bucket.prompt, task.micro.bucket.completion, task.rows)
    return next((shape for shape in shapes if shape.takes(own)), own)


def at_a_time(rows: Sequence[int], lanes: int) -> tuple[int, ...]:
    """How many of each stream's rows are decoded at a time when `lanes` of the first are (0: all)."""
    return tuple(-(-n * min(lanes or rows[0], rows[0]) // rows[0]) for n in rows)


def make_decoder(
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    model: ModelConfig,
    end_ids: tuple[int, ...],
    *,
    tensor: int = 0,
    dtype: str | None = None,
    apart: bool | None = None,
) -> Decoder:
    """tensor: ways the weights are split when generating (0: see `sharding.decode_ways`). dtype: of the weights then
    (None: theirs). apart: an array a layer of weights and caches (None: as the platform has it, see `wants_apart`).

    Raises UserError for a size that is not possible.
    """
    platform = mesh.devices.flat[0].platform
    generation = decode_mesh(mesh, tensor or decode_ways(mesh, model, platform))
    check_mesh(generation, model)

    apart = wants_apart(platform) if apart is None else apart
    programs = make_programs(graphdef, mesh, generation, model.text.kv_heads)
    weights = partial(lay_out, mesh=generation, dtype=dtype, apart=apart)
    return Decoder(mesh, generation, model, end_ids, weights, programs)


def wants_apart(platform: str) -> bool:
    """Whether decoding is faster with an array a layer. On GPUs and TPUs a loop over stacked layers copies each layer's
    weights and cache at each token; on CPUs it does not, and compiles the sooner."""
    return platform != "cpu"


class Place(NamedTuple):
    """Where a parameter lies for generation: its sharding and dtype; of how many layers it is a list, 0: none. inputs:
    of a kernel that becomes `Rounded`, the axes that its product sums over."""

    sharding: NamedSharding
    dtype: str
    layers: int = 0
    inputs: tuple[int, ...] = ()

    def holds(self, x: Any) -> bool:
        """Whether an array, or its shape, lies so."""
        return not (self.layers or self.inputs) and str(x.dtype) == self.dtype and x.sharding == self.sharding

    def shape(self, x: Any) -> Any:
        """What comes of an array's shape."""
        if self.layers:
            own = self._of_a_layer()
            return [own.shape(jax.ShapeDtypeStruct(x.shape[1:], x.dtype))] * self.layers
        if self.inputs:
            made = rounded_shape(x, self.inputs, self.dtype)
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), made, self.shardings)
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.dtype), sharding=self.sharding)

    def move(self, x: jax.Array) -> Any:
        """What comes of an array; where that lies `shardings` say."""
        if self.layers:
            own = self._of_a_layer()
            return [own.move(x[i]) for i in range(self.layers)]
        return rounded(x, self.inputs, self.dtype) if self.inputs else x.astype(self.dtype)

    @property
    def shardings(self) -> Any:
        """Of all that it becomes."""
        if self.layers:
            return [self._of_a_layer().shardings] * self.layers
        if not self.inputs:
            return self.sharding
        outputs = [axes for i, axes in enumerate(self.sharding.spec) if i not in self.inputs]
        return Rounded(self.sharding, NamedSharding(self.sharding.mesh, P(*outputs)))

    def _of_a_layer(self) -> Place:
        sharding = NamedSharding(self.sharding.mesh, P(*self.sharding.spec[1:]))
        return Place(sharding, self.dtype, inputs=tuple(i - 1 for i in self.inputs))


def places(
    params: Any,
    mesh: Mesh | AbstractMesh,
    dtype: str | None = None,
    *,
    apart: bool = False,
    consumed: bool = False,
    eight_bits: str = "",
) -> Any:
    """The `Place` of each parameter, array or shape, on another mesh of the same devices, in another dtype (None: its
    own). apart: those of the decoder's layers as lists, an array a layer, if most of them are copied anyhow, or
    what they were is `consumed`: a base under adapters that lies right has no second copy. eight_bits: a dtype of
    `rounded.EIGHT_BITS` for the kernels of the decoder's layers; adapters, biases and norms stay as they are."""
    shardings = param_shardings(params, mesh)

    def stacked(path: tuple[Any, ...], x: Any, sharding: NamedSharding) -> Place:
        name, place = path_name(path), Place(sharding, dtype or str(x.dtype))
        matrix = known(name).matrix if name.startswith(DECODER_LAYERS) and name.endswith("/kernel") else None
        return place._replace(dtype=eight_bits, inputs=matrix.inputs) if eight_bits and matrix else place

    def of_a_layer(path: tuple[Any, ...], x: Any, place: Place) -> Place:
        return place._replace(layers=x.shape[0]) if path_name(path).startswith(DECODER_LAYERS) else place

    every = jax.tree_util.tree_map_with_path(stacked, params, shardings)
    layers = params["text"]["layers"]
    most = sum(x.size for x in jax.tree.leaves(layers)) / 2
    if not apart or not (consumed or _copied(layers, every["text"]["layers"]) > most):
        return every
    return jax.tree_util.tree_map_with_path(of_a_layer, params, every)


def _copied(params: Any, there: Any) -> int:
    """How many values do not lie in their place."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, place: 0 if place.holds(x) else x.size, params, there)))


def lay_out(params: dict, mesh: Mesh, dtype: str | None = None, *, consumed: bool = False, **how: Any) -> dict:
    """Parameters in their `places`, which are told the rest. consumed: what is copied is deleted, so that both never
    stand there whole, and layers lie apart that otherwise would have stayed where they were."""

    def move(x: jax.Array, place: Place) -> Any:
        if place.holds(x):
            return x
        moved = mover(place)(x)
        if consumed:
            x.delete()
        return moved

    return jax.tree.map(move, params, places(params, mesh, dtype, consumed=consumed, **how))


@cache
def mover(place: Place) -> jax.stages.Wrapped:
    """The jitted program that puts a parameter in its place."""
    return jax.jit(place.move, out_shardings=place.shardings)
