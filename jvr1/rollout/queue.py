"""Keeps a batch full from a queue of prompts: when all completions of a prompt have ended, its slot goes to the next.

A slot is the place of one prompt in the batch: its keys and values, and the completions that are decoded from them. The
decode loop runs on the device until enough slots are free. The host then takes the finished completions out, encodes
the next prompts in one program and puts them into the free slots (`generate`). All shapes are fixed, so a bucket
needs three programs: begin, refill and advance.

Over several devices the batch is split into parts (`Share`). Each part has its own slots and its own rows of the queue,
so no prompt moves between devices, and each process reads only the rows of its own parts. No message says what to do
next: it follows from which slots have ended, which every process sees, so all of them take the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jvr1.data.share import Share
from jvr1.model.layers import BATCH, batch_ways, lies_apart
from jvr1.model.text import KV
from jvr1.model.vision_language import merge
from jvr1.processes.peers import share_of
from jvr1.rollout.generate import (
    Asked,
    Held,
    Lanes,
    Room,
    Slots,
    advance,
    begin,
    enter,
    place_prompts,
    reads_less,
    turn_back,
)
from jvr1.rollout.sampling import Sampling
from jvr1.rollout.tasks import Done, Sampled, Task
from jvr1.sharding import batch_sharding, put_batch, replicated, take_local

Inputs = tuple[Any, Any, Any]
"""Of this process's rows, on the host or as shapes: their arrays, the frame pairs of each stream, and the most tokens
each completion may have."""

MAX_ROWS = 4096
"""The most completions a prompt may have. Completion i of prompt n has the number n * MAX_ROWS + i, in every bucket, so
that no two completions of a step get the same random key."""


def row_numbers(number: jax.Array, rows: Sequence[int]) -> jax.Array:
    """Numbers [B,R] of the R completions of the prompts `number` [B]; their random keys are made from these."""
    return number[:, None] * MAX_ROWS + jnp.arange(sum(rows))[None]


@dataclass(frozen=True)
class Programs:
    """The jitted programs of a queue; `how` are their static arguments: room and sampling.

    begin(weights, slots, **how) -> so many slots without prompts.
    refill(weights, bits, slots, inputs, into, **how) -> slots: encodes prompts, into the slots that `into` names.
    advance(weights, bits, slots, enough, more, **how) -> slots, of each whether it is idle, and whether turning the
    ring back would pay: decodes until `enough` slots are idle, at most `more` tokens.
    turn_back(slots) -> slots, their ring turned back.
    refill, advance and turn_back donate the slots they are given: only the returned ones may be used.
    results(slots): what this process's completions are so far. lower(weights, bits, slots, inputs, **how): `refill` by
    these inputs and `advance` of so many slots, lowered from shapes, not run.

    share: this process's part of a batch. across: how many ways generation splits a batch. ready: shapes whose refill
    is compiled already.
    """

    share: Share
    across: int
    begin: Callable[..., Slots]
    refill: Callable[..., Slots]
    advance: Callable[..., tuple[Slots, jax.Array, jax.Array]]
    turn_back: Callable[[Slots], Slots]
    results: Callable[[Slots], Sampled]
    lower: Callable[..., tuple[jax.stages.Lowered, ...]]
    ready: set[str] = field(default_factory=set)

    def of(self, weights: dict, bits: np.ndarray, inputs: Inputs, **how: Any) -> Slots:
        """Slots of just these prompts."""
        slots = len(inputs[0].valid) // len(self.share.parts)
        into = np.tile(np.arange(slots, dtype=np.int32), (self.share.ways, 1))
        return self.refill(weights, bits, self.begin(weights, slots * self.share.ways, **how), inputs, into, **how)


def _layout(generation: Mesh, kv_heads: int, apart: bool) -> Slots:
    """How slots lie on the devices: a sharding in the place of each array, or of the lists of those that lie apart."""
    batch, heads = batch_sharding(generation), "tensor" if kv_heads % generation.shape["tensor"] == 0 else None
    kv = NamedSharding(generation, P(*(() if apart else (None,)), BATCH, None, heads, None, None))
    held, lanes = Held(kv, *(batch,) * (len(Held._fields) - 1)), Lanes(*(batch,) * len(Lanes._fields))
    return Slots(held, lanes, kv, replicated(generation))


UNMERGED = {"xla_gpu_dot_merger_threshold_mb": 0}
"""XLA for GPUs makes one product of several of the same input, and for that joins their weights: at each token."""


class _Jitted(NamedTuple):
    begin: jax.stages.Wrapped
    refill: jax.stages.Wrapped
    advance: jax.stages.Wrapped
    turn_back: jax.stages.Wrapped


def _jitted(graphdef: nnx.GraphDef, layout: Slots) -> _Jitted:
    """The programs on the device."""
    jit = partial(jax.jit, static_argnames=("room", "sampling"))

    @partial(jax.jit, static_argnames=("slots", "room", "sampling"), out_shardings=layout)
    def begin_slots(weights: dict, slots: int, *, room: Room, sampling: Sampling) -> Slots:
        return begin(merge(graphdef, weights), slots, room, sampling)

    @partial(jit, donate_argnums=(2, 3), out_shardings=(layout.held, layout.lanes))
    def refill_slots(
        weights: dict, bits: Array, held: Held, state: Lanes, inputs: Inputs, into: Array, *, room: Room,
        sampling: Sampling,
    ) -> tuple[Held, Lanes]:  # fmt: skip
        arrays, pairs, most = inputs
        asked = Asked(
            arrays.prompt, arrays.visual, pairs, arrays.valid, row_numbers(arrays.number, most.shape[1:]), most
        )
        return place_prompts(held, state, *enter(merge(graphdef, weights), asked, _key(bits), room, sampling), into)

    everywhere: Any = layout.steps
    on_gpu = everywhere.mesh.devices.flat[0].platform == "gpu"

    @partial(
        jit,
        donate_argnums=(3, 4, 5),
        out_shardings=(*layout[1:], *(layout.steps,) * 2),
        compiler_options=UNMERGED if on_gpu else None,
    )
    def advance_slots(
        weights: dict, bits: Array, held: Held, state: Lanes, cache: KV, steps: Array, enough: Array, more: Array, *,
        room: Room, sampling: Sampling,
    ) -> tuple[Lanes, KV, Array, Array, Array]:  # fmt: skip
        slots, model = Slots(held, state, cache, steps), merge(graphdef, weights)
        slots = advance(model, slots, _key(bits), room, sampling, enough, more)
        return *slots[1:], slots.lanes.idle, reads_less(slots, model.text.attention)

    @partial(jax.jit, donate_argnums=2, out_shardings=layout[2:])
    def turn_ring(held: Held, state: Lanes, cache: KV, steps: Array) -> tuple[KV, Array]:
        turned = turn_back(Slots(held, state, cache, steps))
        return turned.cache, turned.steps

    return _Jitted(begin_slots, refill_slots, advance_slots, turn_ring)


def make_programs(graphdef: nnx.GraphDef, mesh: Mesh, generation: Mesh, kv_heads: int) -> Programs:
    """generation: the devices of `mesh`, arranged as they are for generation (`sharding.decode_mesh`). Whether caches
    have an array a layer is as the weights are."""
    batch, scalar = batch_sharding(generation), jax.ShapeDtypeStruct((), jnp.int32)

    @cache
    def jitted(apart: bool) -> _Jitted:
        return _jitted(graphdef, _layout(generation, kv_heads, apart))

    def of(weights: dict) -> _Jitted:
        return jitted(lies_apart(weights["text"]["layers"]))

    collect = jax.jit(lambda x: (x.ids, x.length, x.ended, x.logprobs), out_shardings=batch_sharding(mesh))

    def results(slots: Slots) -> Sampled:
        return Sampled(*(take_local(x).copy() for x in collect(slots.lanes)))

    def run_begin(weights: dict, slots: int, **how: Any) -> Slots:
        with jax.set_mesh(generation):
            return of(weights).begin(weights, slots, **how)

    def run_refill(
        weights: dict, bits: np.ndarray, slots: Slots, inputs: Inputs, into: np.ndarray, **how: Any
    ) -> Slots:
        with jax.set_mesh(generation):
            given = jax.device_put(put_batch(inputs, mesh), batch)
            held, state = of(weights).refill(weights, bits, *slots[:2], given, into, **how)
        return slots._replace(held=held, lanes=state)

    def run_advance(
        weights: dict, bits: np.ndarray, slots: Slots, enough: int, more: int, **how: Any
    ) -> tuple[Slots, Array, Array]:
        with jax.set_mesh(generation):
            *moved, idle, less = of(weights).advance(weights, bits, *slots, np.int32(enough), np.int32(more), **how)
        return Slots(slots.held, *moved), idle, less

    def run_turn_back(slots: Slots) -> Slots:
        with jax.set_mesh(generation):
            return Slots(*slots[:2], *jitted(isinstance(slots.cache.k, list)).turn_back(*slots))

    def lower(weights: Any, bits: Any, slots: int, inputs: Inputs, **how: Any) -> tuple[jax.stages.Lowered, ...]:
        with jax.set_mesh(generation):
            shapes = jax.tree.map(
                lambda sharding, part: jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
                ),
                _layout(generation, kv_heads, lies_apart(weights["text"]["layers"])),
                jax.eval_shape(partial(of(weights).begin, slots=slots, **how), weights),
            )
            ways = share_of(mesh).ways
            into = jax.ShapeDtypeStruct((ways, len(inputs[0].valid) // ways), jnp.int32)
            return (
                of(weights).refill.lower(weights, bits, *shapes[:2], inputs, into, **how),
                of(weights).advance.lower(weights, bits, *shapes, scalar, scalar, **how),
            )

    across = batch_ways(generation)
    return Programs(share_of(mesh), across, run_begin, run_refill, run_advance, run_turn_back, results, lower)


_key = jax.random.wrap_key_data


LOOK = 8
"""A refill takes about as long as decoding this many tokens: the device waits while the host looks at the slots and
encodes a few prompts."""
FOREVER = 2**30
"""A number of tokens that no completion reaches: `advance` then stops only for idle slots."""


def answer_queue(
    programs: Programs,
    weights: dict,
    tasks: Iterable[Task],
    key: jax.Array,
    sampling: Sampling,
    room: Room,
    slots: int,
    *,
    prepare: bool = False,
) -> Iterator[list[Done]]:
    """Answers every row of tasks, `slots` prompts at a time; yields this process's rows as they end.

    tasks: microbatches of one size that the room takes, in which every process holds its own rows; best those of a
    bucket after each other. slots: 0 takes as many as a microbatch has prompts; the number is rounded up to a multiple
    of what the devices split. prepare: compile both refills of a bucket when its first prompts come, and not in the
    middle of a later step, when one is first needed.
    """
    bits, how = np.asarray(jax.random.key_data(key)), {"room": room, "sampling": sampling}
    share = programs.share
    unit = math.lcm(share.ways, programs.across) // share.ways
    tasks = iter(tasks)
    first = next(tasks)
    size = len(first.arrays.valid) // len(share.parts)
    own = -(-(slots or size * share.ways) // (share.ways * unit)) * unit
    many = min(own, -(-size // unit) * unit)
    # `few` prompts enter in one refill. More: the slots that end first stay empty until the last of them has ended.
    # Fewer: the device stops for the host more often, which shows where completions are short.
    longest = sampling.max_tokens * room.rows[0] // room.lanes[0]
    few = min(many, -(-max(own // 16, own * LOOK // longest, 1) // unit) * unit)
    table = _Table(chain([first], tasks), share, own)
    state = programs.begin(weights, own * share.ways, **how)
    while table.busy or table.more:
        count = many if table.waiting >= share.ways * many else few
        inputs, into = table.take(count)
        if inputs is not None:
            state = programs.refill(weights, bits, state, inputs, into, **how)
            shape = f"{jax.tree.map(lambda x: x.shape[1:], inputs)} {own} {few} {many} {how}"
            if prepare and shape not in programs.ready:
                for other in {few, many} - {count}:
                    state = programs.refill(weights, bits, state, *table.nobody(other), **how)
            programs.ready.add(shape)
        if table.waiting >= share.ways * few:
            continue  # there are more free slots than one refill takes
        last = share.ways * own  # every look stops the device: with no prompt left to put in, decode to the end at once
        enough = min(table.free - table.waiting + share.ways * few, last) if table.more else last
        state, idle, less = programs.advance(weights, bits, state, enough, FOREVER, **how)
        yield table.done(np.asarray(idle), programs.results(state))
        if table.more and np.asarray(less):
            state = programs.turn_back(state)


class _Table:
    """Which row of the queue is in which slot.

    `row` [W parts, slots of a part] holds the number of the row, -1 in a free slot, and is the same on all processes.
    Each part takes its own rows 0, 1, 2, ... in order. What is in a row is known only to the processes that feed that
    part; the others know that there is one, and of which bucket.
    """

    def __init__(self, tasks: Iterator[Task], share: Share, slots: int):
        self.tasks, self.share = tasks, share
        self.row = np.full((share.ways, slots), -1)
        self.next = [0] * share.ways
        self.read: dict[int, Task] = {}  # by number; a task stays until all of its rows have ended
        self.entering: Task  # one of the bucket that `take` gave last
        self.count = 0
        self.size = 1  # rows that a task has for each part

    @property
    def busy(self) -> bool:
        return bool((self.row >= 0).any())

    @property
    def free(self) -> int:
        return int((self.row < 0).sum())

    @property
    def more(self) -> bool:
        """Whether some rows have not been put into a slot yet."""
        return any(self._has(row) for row in self.next)

    @property
    def waiting(self) -> int:
        """How many slots are free and could be filled: those of parts that have rows left."""
        free = (self.row < 0).sum(axis=1)
        return sum(int(n) for n, row in zip(free, self.next, strict=True) if self._has(row))

    def take(self, most: int) -> tuple[Any, np.ndarray]:
        """Puts the next rows into free slots, up to `most` in each part, all of the bucket of the row that is the first
        to go in: one program encodes them.

        Returns the rows as inputs of a program (None where no part has both), and the slots [W, most] they go into.
        Where a part has fewer than `most`, the slot is one past the last: nothing is written there.
        """
        into = np.full((len(self.row), most), self.row.shape[1], np.int32)
        rows = np.full((len(self.row), most), -1)
        free = (self.row < 0).any(axis=1)
        first = [row for row, some in zip(self.next, free, strict=True) if some and self._has(row)]
        if not first:
            return None, into
        self.entering = self.read[min(first) // self.size]
        for part, held in enumerate(self.row):
            for i, slot in enumerate(np.flatnonzero(held < 0)[:most]):
                row = self.next[part]
                if self._has(row) and self.read[row // self.size].alike(self.entering):
                    into[part, i], rows[part, i] = slot, row
                    held[slot] = row
                    self.next[part] += 1
        return self._inputs(rows[list(self.share.parts)]), into

    def nobody(self, most: int) -> tuple[Any, np.ndarray]:
        """What `take` returns when no slot gets a row; of the shapes it gave last, to compile with."""
        nowhere = np.full((len(self.row), most), self.row.shape[1], np.int32)
        return self._inputs(np.full((len(self.share.parts), most), -1)), nowhere

    def done(self, idle: np.ndarray, sampled: Sampled) -> list[Done]:
        """Frees the slots that are idle [W * slots] and returns their rows, as far as they are this process's."""
        ended = idle.reshape(self.row.shape) & (self.row >= 0)
        found = []
        for local, part in enumerate(self.share.parts):
            for slot in np.flatnonzero(ended[part]):
                task, b = self._task(local, int(self.row[part, slot]))
                of_slot = Sampled(*(x[local * self.row.shape[1] + slot] for x in sampled))
                found.append(Done(task, b, task.own(of_slot)))
        self.row[ended] = -1
        oldest = min([*self.next, *self.row[self.row >= 0]]) // self.size
        self.read = {n: task for n, task in self.read.items() if n >= oldest}
        return found

    def _has(self, row: int) -> bool:
        """Whether a part has a row of this number. Reads tasks until that is known."""
        while row >= self.count * self.size:
            task = next(self.tasks, None)
            if task is None:
                return False
            self.size = len(task.arrays.valid) // len(self.share.parts)
            self.read[self.count] = task
            self.count += 1
        return True

    def _task(self, local: int, row: int) -> tuple[Task, int]:
        at, b = divmod(row, self.size)
        return self.read[at], local * self.size + b

    def _inputs(self, rows: np.ndarray) -> Any:
        """`Inputs` of these rows [own parts, n]. -1 is filled with any row, marked as not valid: nothing is decoded."""

        def one(local: int, row: int) -> Any:
            task, b = (self.entering, 0) if row < 0 else self._task(local, row)
            arrays, *rest = jax.tree.map(lambda x: np.asarray(x[b]), (task.arrays, task.pairs, task.limits))
            return arrays._replace(valid=arrays.valid & (row >= 0)), *rest

        asked = [one(local, row) for local, of_part in enumerate(rows.tolist()) for row in of_part]
        return jax.tree.map(lambda *x: np.stack(x), *asked)
