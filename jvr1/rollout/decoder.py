"""Generation over batches of the data pipeline: one decoder for rollouts, validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jvr1.data.batch import Arrays, Bucket
from jvr1.model.config import ModelConfig
from jvr1.rollout.generate import Sampling
from jvr1.rollout.queue import Programs, answer_queue, make_programs
from jvr1.rollout.tasks import Decode, Done, Sampled, Task
from jvr1.sharding import check_mesh, decode_mesh, param_shardings


@dataclass(frozen=True)
class Decoder:
    """Completions of a model whose batches lie on `mesh`, its weights laid out for generation.

    weights(params): a copy in the compute dtype, split over `tensor` of the generation mesh and replicated otherwise;
    what lies so already is not copied. programs: what a queue of prompts runs; compiled once for each bucket, rows,
    lanes and sampling.
    """

    mesh: Mesh
    model: ModelConfig
    end_ids: tuple[int, ...]
    weights: Callable[[dict], dict]
    programs: Programs

    def sampling(self, bucket: Bucket, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """How a bucket is sampled: as many tokens as it holds, no visual placeholder ever."""
        return Sampling(
            max_tokens=bucket.completion,
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
        slots: int = 0,
        lanes: int = 0,
        prepare: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> Iterator[list[Done]]:
        """Answers all rows of microbatches; yields this process's as they end. Neighbours of one bucket are one queue,
        which keeps `slots` prompts under way (0: as many as a microbatch has) and of each prompt's first stream `lanes`
        completions at a time, of the others in proportion (0: all at once). Neither changes what a row's tokens are.
        prepare: all programs of a shape compile when it first comes, not when a queue is first longer than it."""
        for (bucket, rows), same in groupby(tasks, key=lambda task: (task.micro.bucket, task.rows)):
            sampling = self.sampling(bucket, temperature=temperature, top_p=top_p, top_k=top_k)
            yield from answer_queue(
                self.programs, weights, same, key, sampling, rows, at_a_time(rows, lanes), slots, prepare=prepare
            )

    def answers(self, weights: dict, tasks: Sequence[Task], key: jax.Array, **how: Any) -> list[Sampled]:
        """What `queue` gives, as one array a task: those of one bucket are one queue, wherever they stand."""
        order = list(dict.fromkeys(task.micro.bucket for task in tasks))
        which = {id(task): number for number, task in enumerate(tasks)}
        found: list[list[Any]] = [[None] * len(task.arrays.valid) for task in tasks]
        for done in self.queue(weights, sorted(tasks, key=lambda task: order.index(task.micro.bucket)), key, **how):
            for task, row, sampled in done:
                found[which[id(task)]][row] = sampled
        return [Sampled(*(np.stack(x) for x in zip(*rows, strict=True))) for rows in found]

    def stream(
        self, weights: dict, arrays: Arrays, key: jax.Array, sampling: Sampling, every: int = 8
    ) -> Iterator[Sampled]:
        """One completion a prompt as it grows: this process's rows with the first token, with each `every` more, and
        whole. arrays: on the host; the mesh must divide their rows."""
        how = {"rows": (1,), "lanes": (1,), "sampling": sampling}
        bits, pairs = np.asarray(jax.random.key_data(key)), None
        if arrays.visual is not None:
            pairs = arrays.visual.pair[:, None]
        slots, more, going = self.programs.begin(weights, bits, (arrays, pairs, None), **how), 0, True
        while going:
            slots, idle = self.programs.advance(weights, bits, slots, slots.lanes.row.shape[0], more, **how)
            yield self.programs.results(slots)
            more, going = every, not np.asarray(idle).all()


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
) -> Decoder:
    """tensor: ways the weights are split when generating (0: as on `mesh`). dtype: of the weights then (None: theirs).

    Raises UserError for a size that is not possible.
    """
    generation = decode_mesh(mesh, tensor)
    check_mesh(generation, model)

    programs = make_programs(graphdef, mesh, generation, model.text.kv_heads)
    return Decoder(mesh, model, end_ids, partial(lay_out, mesh=generation, dtype=dtype), programs)


def lay_out(params: dict, mesh: Mesh, dtype: str | None = None) -> dict:
    """Parameters as they lie on another mesh of the same devices, in another dtype."""
    shardings = param_shardings(params, mesh)

    def move(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        if x.dtype == (dtype or x.dtype) and x.sharding == sharding:
            return x
        return mover(sharding, str(dtype or x.dtype))(x)

    return jax.tree.map(move, params, shardings)


@cache
def mover(sharding: NamedSharding, dtype: str) -> jax.stages.Wrapped:
    """The jitted program that lays out a parameter."""
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)
