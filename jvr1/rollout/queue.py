"""Keeps a batch full from a queue of questions: a slot whose rows have ended is given to the next prompt.

The decode loop runs on the device until some slots have ended. The host then takes their rows, encodes the next prompts
in one program and puts them into those slots (`jvr1.rollout.generate`). Shapes are static: three programs a bucket.

Over several devices each part of the batch has its own slots and its own rows of the queue, so that no prompt moves
between devices; over several processes each feeds its own. What happens next follows from which slots have ended, and
that all processes know: they decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jvr1.data.share import Share
from jvr1.model.layers import BATCH
from jvr1.model.qwen2_5_vl import merge
from jvr1.model.text import KV
from jvr1.processes.peers import share_of
from jvr1.rollout.generate import Asked, Held, Lanes, Sampling, Slots, advance, begin, enter, place
from jvr1.rollout.tasks import Done, Sampled, Task
from jvr1.sharding import batch_sharding, put_batch, replicated, take_local

Rows = tuple[int, ...]
"""Completions of each of a prompt's streams."""

Inputs = tuple[Any, Any, Any]
"""Arrays, pairs and `most` of this process's rows, on the host or as shapes."""

MAX_ROWS = 4096
"""Completions a prompt may have: rows are numbered alike in all buckets, so that no two of a step share a key."""


def row_numbers(number: jax.Array, rows: Sequence[int]) -> jax.Array:
    """Numbers [B,R] of the rows of prompts, of which their random keys are made."""
    return number[:, None] * MAX_ROWS + jnp.arange(sum(rows))[None]


@dataclass(frozen=True)
class Programs:
    """What a queue runs, jitted; `how` are the static arguments rows, lanes, sampling.

    begin(weights, bits, inputs, **how) and refill(weights, bits, slots, inputs, into, **how) give slots,
    advance(weights, bits, slots, enough, more, **how) slots and which are idle; the slots they are given are gone.
    inputs: arrays, pairs and `most` of this process's rows, on the host. results(slots): those rows so far.
    share: of this process in a batch; across: how many ways a batch is split when generating. ready: shapes whose
    refill is compiled. lower(weights, bits, inputs, **how): `begin` and `advance` from shapes, not run.
    """

    share: Share
    across: int
    begin: Callable[..., Slots]
    refill: Callable[..., Slots]
    advance: Callable[..., tuple[Slots, jax.Array]]
    results: Callable[[Slots], Sampled]
    lower: Callable[..., tuple[jax.stages.Lowered, ...]]
    ready: set[str] = field(default_factory=set)


def make_programs(graphdef: nnx.GraphDef, mesh: Mesh, generation: Mesh, kv_heads: int) -> Programs:
    """generation: the devices of `mesh` as they generate."""
    batch, everywhere = batch_sharding(generation), replicated(generation)
    heads = "tensor" if kv_heads % generation.shape["tensor"] == 0 else None
    kv = KV(*(NamedSharding(generation, P(None, BATCH, None, heads, None, None)),) * 2)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    held, lanes = Held(kv, *(batch,) * (len(Held._fields) - 1)), Lanes(*(batch,) * len(Lanes._fields))
    jit = partial(jax.jit, static_argnames=("rows", "lanes", "sampling"))

    layout = Slots(held, lanes, kv, everywhere)

    @partial(jit, out_shardings=layout)
    def begin_slots(
        weights: dict, bits: Array, inputs: Inputs, *, rows: Rows, lanes: Rows, sampling: Sampling
    ) -> Slots:
        return begin(merge(graphdef, weights), _asked(inputs, rows, sampling), _key(bits), rows, lanes, sampling)

    @partial(jit, donate_argnums=(2, 3), out_shardings=(held, lanes))
    def refill_slots(
        weights: dict, bits: Array, held: Held, state: Lanes, inputs: Inputs, into: Array, *, rows: Rows, lanes: Rows,
        sampling: Sampling,
    ) -> tuple[Held, Lanes]:  # fmt: skip
        asked = _asked(inputs, rows, sampling)
        fresh = enter(merge(graphdef, weights), asked, _key(bits), rows, lanes, sampling)
        return place(held, state, *fresh, into)

    @partial(jit, donate_argnums=(3, 4, 5), out_shardings=(lanes, kv, everywhere, everywhere))
    def advance_slots(
        weights: dict, bits: Array, held: Held, state: Lanes, cache: KV, steps: Array, enough: Array, more: Array, *,
        rows: Rows, lanes: Rows, sampling: Sampling,
    ) -> tuple[Lanes, KV, Array, Array]:  # fmt: skip
        slots, model = Slots(held, state, cache, steps), merge(graphdef, weights)
        slots = advance(model, slots, _key(bits), rows, lanes, sampling, enough, more)
        return *slots[1:], slots.lanes.idle

    collect = jax.jit(lambda x: (x.ids, x.length, x.ended, x.logprobs), out_shardings=batch_sharding(mesh))

    def results(slots: Slots) -> Sampled:
        return Sampled(*(take_local(x).copy() for x in collect(slots.lanes)))

    def put(inputs: Any) -> Any:
        return jax.device_put(put_batch(inputs, mesh), batch)

    def run_begin(weights: dict, bits: np.ndarray, inputs: Inputs, **how: Any) -> Slots:
        with jax.set_mesh(generation):
            return begin_slots(weights, bits, put(inputs), **how)

    def run_refill(
        weights: dict, bits: np.ndarray, slots: Slots, inputs: Inputs, into: np.ndarray, **how: Any
    ) -> Slots:
        with jax.set_mesh(generation):
            held, state = refill_slots(weights, bits, *slots[:2], put(inputs), into, **how)
        return slots._replace(held=held, lanes=state)

    def run_advance(
        weights: dict, bits: np.ndarray, slots: Slots, enough: int, more: int, **how: Any
    ) -> tuple[Slots, Array]:
        with jax.set_mesh(generation):
            *moved, idle = advance_slots(weights, bits, *slots, np.int32(enough), np.int32(more), **how)
        return Slots(slots.held, *moved), idle

    def lower(weights: Any, bits: Any, inputs: Inputs, **how: Any) -> tuple[jax.stages.Lowered, ...]:
        with jax.set_mesh(generation):
            first = begin_slots.lower(weights, bits, inputs, **how)
            slots = jax.tree.map(
                lambda sharding, part: jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
                ),
                layout,
                first.out_info,
            )
            return first, advance_slots.lower(weights, bits, *slots, scalar, scalar, **how)

    across = math.prod(generation.shape[axis] for axis in BATCH)
    return Programs(share_of(mesh), across, run_begin, run_refill, run_advance, results, lower)


_key = jax.random.wrap_key_data


def _asked(inputs: Any, rows: Sequence[int], sampling: Sampling) -> Asked:
    """Of arrays, pairs and `most`."""
    arrays, pairs, most = inputs
    numbers = row_numbers(arrays.number, rows)
    if most is None:
        most = jnp.full(numbers.shape, sampling.max_tokens, jnp.int32)
    return Asked(arrays.prompt, arrays.visual, pairs, arrays.valid, numbers, most)


LOOK = 8
"""Tokens that a refill costs, about: the host looks on, encodes few prompts, writes them where others were."""
FOREVER = 2**30
"""More tokens than any row has."""


def answer_queue(
    programs: Programs,
    weights: dict,
    tasks: Iterable[Task],
    key: jax.Array,
    sampling: Sampling,
    rows: tuple[int, ...],
    lanes: tuple[int, ...],
    slots: int,
    *,
    prepare: bool = False,
) -> Iterator[list[Done]]:
    """Answers every row of tasks of one shape, `slots` prompts at a time; yields this process's rows as they end.

    tasks: microbatches of one bucket and size, in which every process holds its own rows. rows, lanes: completions of
    each stream, and how many of them are decoded at a time. slots: 0 for a microbatch's; rounded up to what the devices
    divide. prepare: a refill compiles with the first prompts of a shape, not when one is first needed.
    """
    bits, how = np.asarray(jax.random.key_data(key)), {"rows": rows, "lanes": lanes, "sampling": sampling}
    share = programs.share
    unit = math.lcm(share.ways, programs.across) // share.ways
    tasks = iter(tasks)
    first = next(tasks)
    slots = slots or len(first.arrays.valid) // len(share.parts) * share.ways
    own = -(-slots // (share.ways * unit)) * unit
    # a refill's prompts wait for the last of them; with fewer, or shorter rows, the device waits for the host too often
    longest = sampling.max_tokens * rows[0] // lanes[0]
    few = min(own, -(-max(own // 16, own * LOOK // longest, 1) // unit) * unit)
    table = _Table(chain([first], tasks), share, own)
    state = programs.begin(weights, bits, table.take(own)[0], **how)
    shape = f"{jax.tree.map(np.shape, first.arrays)} {own} {how}"
    if prepare and shape not in programs.ready:
        state = programs.refill(weights, bits, state, *table.nobody(few), **how)
        programs.ready.add(shape)
    while table.busy or table.waiting:
        inputs, into = table.take(few)
        if inputs is not None:
            state = programs.refill(weights, bits, state, inputs, into, **how)
        if table.waiting >= share.ways * few:
            continue  # there are more free slots than one refill takes
        last = share.ways * own  # a look at the rows stops the device: with no prompt to put in, once, at the end
        enough = min(table.free - table.waiting + share.ways * few, last) if table.more else last
        state, idle = programs.advance(weights, bits, state, enough, FOREVER, **how)
        yield table.done(np.asarray(idle), programs.results(state))


class _Table:
    """Which row of the queue is in which slot: [W parts, slots of a part], the same on all processes. Of each part rows
    0, 1, ... come in turn; this process knows those of its own parts."""

    def __init__(self, tasks: Iterator[Task], share: Share, slots: int):
        self.tasks, self.share = tasks, share
        self.row = np.full((share.ways, slots), -1)
        self.next = [0] * share.ways
        self.read: dict[int, Task] = {}  # the tasks of which rows are still to come or under way
        self.count = 0
        self.size = 1  # a part's rows of a task

    @property
    def busy(self) -> bool:
        return bool((self.row >= 0).any())

    @property
    def free(self) -> int:
        return int((self.row < 0).sum())

    @property
    def more(self) -> bool:
        """Whether there are rows that are in no slot yet."""
        return any(self._has(row) for row in self.next)

    @property
    def waiting(self) -> int:
        """Free slots for which there are rows."""
        free = (self.row < 0).sum(axis=1)
        return sum(int(n) for n, row in zip(free, self.next, strict=True) if self._has(row))

    def take(self, most: int) -> tuple[Any, np.ndarray]:
        """The next rows for free slots, up to `most` a part, as the inputs of a program (None: there are none), and the
        slots [W, most] they go into."""
        into = np.full((len(self.row), most), self.row.shape[1], np.int32)
        rows = np.full((len(self.row), most), -1)
        for part, held in enumerate(self.row):
            for i, slot in enumerate(np.flatnonzero(held < 0)[:most]):
                if self._has(self.next[part]):
                    into[part, i], rows[part, i] = slot, self.next[part]
                    held[slot] = self.next[part]
                    self.next[part] += 1
        if (rows < 0).all():
            return None, into
        return self._inputs(rows[list(self.share.parts)]), into

    def nobody(self, most: int) -> tuple[Any, np.ndarray]:
        """What `take` gives, with no row for any slot."""
        nowhere = np.full((len(self.row), most), self.row.shape[1], np.int32)
        return self._inputs(np.full((len(self.share.parts), most), -1)), nowhere

    def done(self, idle: np.ndarray, sampled: Sampled) -> list[Done]:
        """Rows whose slots have ended, of this process; the slots are free."""
        ended = idle.reshape(self.row.shape) & (self.row >= 0)
        found = []
        for local, part in enumerate(self.share.parts):
            for slot in np.flatnonzero(ended[part]):
                task, b = self._task(local, int(self.row[part, slot]))
                at = local * self.row.shape[1] + slot
                found.append(Done(task, b, Sampled(*(x[at] for x in sampled))))
        self.row[ended] = -1
        oldest = min([*self.next, *self.row[self.row >= 0]]) // self.size
        self.read = {n: task for n, task in self.read.items() if n >= oldest}
        return found

    def _has(self, row: int) -> bool:
        """Whether a part has so many rows; reads on to find out."""
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
        """Arrays, pairs and budgets of these rows [own parts, n]; -1: a row that is not asked."""
        some = next(iter(self.read.values()))

        def one(local: int, row: int) -> Any:
            task, b = (some, 0) if row < 0 else self._task(local, row)
            arrays, *rest = jax.tree.map(lambda x: np.asarray(x[b]), (task.arrays, task.pairs, task.most))
            return arrays._replace(valid=arrays.valid & (row >= 0)), *rest

        asked = [one(local, row) for local, of_part in enumerate(rows.tolist()) for row in of_part]
        return jax.tree.map(lambda *x: np.stack(x), *asked)
