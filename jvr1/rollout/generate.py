"""Sampling on the device: one prefill a prompt stream, flat completion rows over shared prefixes.

Serves rollout, validation, evaluation and ask. Pure: jit with the static arguments bound. `generate` answers one batch.
Its parts keep a queue going: `begin` slots, `place_prompts` that `enter` made into them, `advance` until some have
ended, and so on (`jvr1.rollout.queue`). Prompts of several shapes may lie in slots of one (`Room`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jvr1.model.attention import Backend
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.layers import constrain_batch, constrain_logits
from jvr1.model.text import KV
from jvr1.model.vision_language import VisionLanguageModel
from jvr1.rollout.sampling import Sampling, draw_token, token_logprob

LEAST_READ, MOST_LOOPS = 64, 4
"""Entries of the ring that a loop of decoding reads at least, and how many such loops there are."""


@dataclass(frozen=True)
class Room:
    """What a slot has room for: a prompt of `prompt` tokens in streams s, of which rows[s] completions are wanted and
    lanes[s] decoded at a time. A prompt may take less: fewer tokens, or the first of the streams alone."""

    prompt: int
    rows: tuple[int, ...]
    lanes: tuple[int, ...]

    @property
    def stream(self) -> Int[np.ndarray, " M"]:
        """Of each lane."""
        return np.repeat(np.arange(len(self.lanes)), self.lanes)

    @property
    def first(self) -> Int[np.ndarray, " M"]:
        """The row that each lane begins with."""
        starts = np.cumsum([0, *self.rows[:-1]])
        return np.concatenate([i + np.arange(n) for i, n in zip(starts, self.lanes, strict=True)]).astype(np.int32)


class Completions(NamedTuple):
    """R sampled rows a prompt.

    ids: tokens, `pad_id` after the end. length: tokens with the end token. ended: whether an end token came.
    logprobs: log softmax(logits / temperature) over the WHOLE vocabulary, as scoring computes it; 0 after the end.
    steps: decode steps run.
    """

    ids: Int[Array, "B R C"]
    length: Int[Array, "B R"]
    ended: Bool[Array, "B R"]
    logprobs: Float[Array, "B R C"]
    steps: Int[Array, ""]


class Asked(NamedTuple):
    """B prompts, their media with the order of frames of each of S streams, which of them are asked, the numbers of the
    R rows wanted of each (their random keys), and how many tokens each row may have."""

    prompt: Prompt
    visual: Visual | None
    pairs: Int[Array, "B S F 2"] | None
    active: Bool[Array, " B"]
    number: Int[Array, "B R"]
    most: Int[Array, "B R"]


class Held(NamedTuple):
    """What slots keep of their prompts: each stream's keys and values and last hidden state, the numbers of the R rows
    asked for, and how many tokens each may have."""

    kv: tuple[KV, ...]
    mask: Bool[Array, "B P"]
    next_position: Int[Array, " B"]
    last: Float[Array, "B S D"]
    number: Int[Array, "B R"]
    most: Int[Array, "B R"]


class Lanes(NamedTuple):
    """M lanes a slot, which decode one row each at a time, and what the R rows came to so far.

    row: which of the slot's rows; R: none is left. drawn: that row's tokens so far, `token` the last of them. begun:
    rows begun, by stream.
    """

    row: Int[Array, "B M"]
    drawn: Int[Array, "B M"]
    token: Int[Array, "B M"]
    begun: Int[Array, "B S"]
    ids: Int[Array, "B R C"]
    logprobs: Float[Array, "B R C"]
    length: Int[Array, "B R"]
    ended: Bool[Array, "B R"]

    @property
    def idle(self) -> Bool[Array, " B"]:
        """Slots whose rows have all ended."""
        return jnp.all(self.row == self.length.shape[1], axis=1)


class Slots(NamedTuple):
    """B prompts under way. cache (M rows of C tokens) is a ring: all lanes write at (steps - 1) mod C, whenever their
    row began, so that no step scatters; a row of n tokens reads the last n. steps: draws since the ring began, its own
    too."""

    held: Held
    lanes: Lanes
    cache: KV
    steps: Int[Array, ""]


def generate(
    model: VisionLanguageModel,
    prompt: Prompt,
    visual: Visual | None,
    pairs: Int[Array, "B S F 2"] | None,
    active: Bool[Array, " B"],
    key: PRNGKeyArray,
    row_numbers: Int[Array, "B R"],
    rows: Sequence[int],
    sampling: Sampling,
) -> Completions:
    """Samples `rows[s]` completions for each stream s (the frames in the order of pairs[:, s]) of each prompt.

    R = sum(rows), streams in order. The key of a row is fold_in(key, its number), that of a token
    fold_in(row key, index): the same draw on any mesh. Prompts that are not `active` cost no steps of their own.
    """
    room = Room(prompt.ids.shape[1], tuple(rows), tuple(rows))
    most = jnp.full(row_numbers.shape, sampling.max_tokens, jnp.int32)
    entered = enter(model, Asked(prompt, visual, pairs, active, row_numbers, most), key, room, sampling)
    slots = Slots(*entered, _ring(model, len(row_numbers), room, sampling), jnp.int32(1))
    slots = advance(model, slots, key, room, sampling)
    # split here as in the loop: where the result goes must not change how the loop is split
    state = jax.tree.map(constrain_batch, slots.lanes)
    return Completions(state.ids, state.length, state.ended, state.logprobs, slots.steps)


def begin(model: VisionLanguageModel, slots: int, room: Room, sampling: Sampling) -> Slots:
    """So many slots without a prompt."""
    (s, r, m), c = (len(room.rows), sum(room.rows), sum(room.lanes)), sampling.max_tokens
    held = Held(
        kv=tuple(model.text.cache(slots, 1, room.prompt) for _ in room.rows),
        mask=jnp.zeros((slots, room.prompt), bool),
        next_position=jnp.zeros(slots, jnp.int32),
        last=jnp.zeros((slots, s, model.config.text.hidden), model.text.dtype),
        number=jnp.zeros((slots, r), jnp.int32),
        most=jnp.zeros((slots, r), jnp.int32),
    )
    lanes = _lanes(jnp.full((slots, m), r, jnp.int32), jnp.zeros((slots, s), jnp.int32), r, c, sampling)
    return Slots(held, lanes, _ring(model, slots, room, sampling), jnp.int32(1))


def _ring(model: VisionLanguageModel, slots: int, room: Room, sampling: Sampling) -> KV:
    return model.text.cache(slots, sum(room.lanes), sampling.max_tokens)


def _lanes(row: Int[Array, "B M"], begun: Int[Array, "B S"], r: int, c: int, sampling: Sampling) -> Lanes:
    """Lanes before their first token."""
    b = len(row)
    return Lanes(
        row=row,
        drawn=jnp.zeros_like(row),
        token=jnp.zeros_like(row),
        begun=begun,
        ids=jnp.full((b, r, c), sampling.pad_id, jnp.int32),
        logprobs=jnp.zeros((b, r, c), jnp.float32),
        length=jnp.zeros((b, r), jnp.int32),
        ended=jnp.zeros((b, r), bool),
    )


def enter(
    model: VisionLanguageModel, asked: Asked, key: PRNGKeyArray, room: Room, sampling: Sampling
) -> tuple[Held, Lanes]:
    """What `place_prompts` puts into slots: one prefill of B prompts, and the first token of the first lanes of each
    stream.

    `asked` is of these prompts' own shape, with R completions of as many streams as they have.
    """
    prompt, r = asked.prompt, sum(room.rows)
    last, kv = model.prefill(prompt, asked.visual, asked.pairs)
    (b, streams), absent = last.shape[:2], len(room.rows) - last.shape[1]
    longer, rows = room.prompt - prompt.ids.shape[1], r - asked.number.shape[1]

    def grown(x: Any, *sizes: int) -> Any:
        """x with so much more at the end of its last axes."""
        return jax.tree.map(lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - len(sizes)), *((0, n) for n in sizes)]), x)

    there = tuple(KV(grown(one.k, longer), grown(one.v, longer, 0)) for one in kv)
    held = Held(
        there + (jax.tree.map(jnp.zeros_like, there[0]),) * absent,
        grown(prompt.mask, longer),
        prompt.next_position,
        grown(last, absent, 0),
        grown(asked.number, rows),
        grown(jnp.minimum(asked.most, sampling.max_tokens), rows),
    )
    here = asked.active[:, None] & (room.stream < streams)[None]
    of_stream = np.where(np.arange(len(room.rows)) < streams, room.lanes, room.rows).astype(np.int32)
    begun = jnp.broadcast_to(jnp.asarray(of_stream)[None], (b, len(room.rows)))
    first = jnp.where(here, jnp.asarray(room.first)[None], r)
    state = _lanes(first, begun, r, sampling.max_tokens, sampling)
    return held, _draw(model, held, state, key, held.last[:, room.stream], room, sampling)


def place_prompts(
    held: Held, lanes: Lanes, new_held: Held, new_lanes: Lanes, into: Int[Array, "W k"]
) -> tuple[Held, Lanes]:
    """Puts prompts that `enter` made into slots whose rows have all ended.

    Slots and prompts are both W equal parts, which lie on different devices: prompt i of part w goes into slot
    into[w, i] of the same part; nowhere where there is no such slot.
    """

    def put(old: Array, new: Array, axis: int) -> Array:
        x, y = (x.reshape(*x.shape[:axis], into.shape[0], -1, *x.shape[axis + 1 :]) for x in (old, new))
        at = (slice(None),) * axis
        write = jax.vmap(lambda x, y, i: x.at[(*at, i)].set(y, mode="drop"), (axis, axis, 0), axis)
        return write(x, y, into).reshape(old.shape)

    kv = jax.tree.map(lambda x, y: put(x, y, x.ndim - 5), held.kv, new_held.kv)
    rest: Any
    rest, lanes = jax.tree.map(partial(put, axis=0), (held[1:], lanes), (new_held[1:], new_lanes))
    return Held(kv, *rest), lanes


def advance(
    model: VisionLanguageModel,
    slots: Slots,
    key: PRNGKeyArray,
    room: Room,
    sampling: Sampling,
    enough: Int[Array, ""] | None = None,
    more: Int[Array, ""] | None = None,
) -> Slots:
    """Decodes until all rows have ended; or as many as `enough` slots have, or `more` tokens a lane were drawn.

    A lane whose row has ended takes the next of its stream that no lane has begun.
    """
    b = slots.lanes.row.shape[0]
    enough = jnp.int32(b) if enough is None else enough
    until = jnp.int32(2**30) if more is None else slots.steps + more
    mask = jnp.broadcast_to(slots.held.mask[:, None], (b, len(room.lanes), slots.held.mask.shape[1]))

    def step(read: int, carry: tuple[Lanes, KV, Array]) -> tuple[Lanes, KV, Array]:
        state, cache, steps = carry
        written = steps - 1
        positions = slots.held.next_position[:, None] + state.drawn - 1
        index = written % sampling.max_tokens
        hidden, cache = model.decode(
            state.token, positions, slots.held.kv, mask, cache, index, state.drawn, room.lanes, read
        )
        begins = (state.drawn == 0)[..., None]
        hidden = jnp.where(begins, slots.held.last[:, room.stream], hidden)
        return _draw(model, slots.held, state, key, hidden, room, sampling), cache, steps + 1

    def goes_on(read: int, carry: tuple[Lanes, KV, Array]) -> Bool[Array, ""]:
        state, _, steps = carry
        held = (steps <= read) | (read == sampling.max_tokens)
        return (jnp.sum(state.idle, dtype=jnp.int32) < enough) & (steps < until) & held

    def loop(read: int, carry: tuple[Lanes, KV, Array]) -> tuple[Lanes, KV, Array]:
        with jax.named_scope("decode"):  # by this name the loops are found in the compiled program
            return jax.lax.while_loop(partial(goes_on, read), partial(step, read), carry)

    def loop_apart(read: int, carry: tuple[Lanes, KV, Array]) -> tuple[Lanes, KV, Array]:
        """On the part of the ring that is in use: cut out in each step, it would be copied at each token."""
        ring = carry[1]
        part = KV([k[..., :read] for k in ring.k], [v[..., :read, :] for v in ring.v])
        state, part, steps = loop(read, (carry[0], part, carry[2]))
        whole = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y, (0,) * x.ndim), ring, part)
        return state, whole, steps

    carry = (slots.lanes, slots.cache, slots.steps)
    for read in reads(sampling.max_tokens, model.text.attention):
        if isinstance(slots.cache.k, list) and read < sampling.max_tokens:
            carry = jax.lax.cond(goes_on(read, carry), partial(loop_apart, read), lambda carry: carry, carry)
        else:
            carry = loop(read, carry)
    state, cache, steps = carry
    return Slots(slots.held, state, cache, steps)


def in_use(slots: Slots) -> Int[Array, ""]:
    """Entries of the ring that some row still reads."""
    busy = slots.lanes.row < slots.lanes.length.shape[1]
    return jnp.maximum(jnp.max(jnp.where(busy, slots.lanes.drawn, 0)) - 1, 0)


def reads_less(slots: Slots, attention: Backend) -> Bool[Array, ""]:
    """Whether `turn_back` would let the next step read less of the ring."""
    sizes = jnp.asarray(reads(slots.lanes.ids.shape[2], attention), jnp.int32)
    now, then = (jnp.sum(sizes < steps) for steps in (slots.steps, in_use(slots) + 1))
    return jnp.minimum(now, len(sizes) - 1) > then


def turn_back(slots: Slots) -> Slots:
    """The ring turned so that what is in use begins at 0: a queue that has run for long reads as little of it again as
    one that has just begun."""
    used = in_use(slots)
    shift = used - (slots.steps - 1)

    def turned(x: Any, axis: int) -> Any:
        if isinstance(x, list):
            return [jnp.roll(layer, shift, axis) for layer in x]
        # a layer at a time: all of them at once would be a second ring
        return jax.lax.fori_loop(0, len(x), lambda i, x: x.at[i].set(jnp.roll(x[i], shift, axis)), x)

    return slots._replace(cache=KV(turned(slots.cache.k, -1), turned(slots.cache.v, -2)), steps=used + 1)


def reads(max_tokens: int, attention: Backend) -> tuple[int, ...]:
    """Entries of the ring that decoding reads: as long as no more are written, a part of them, in a loop of its own; in
    one loop all of them, where the kernel itself leaves out what is not in use."""
    sizes = [max_tokens]
    while attention != "cudnn" and len(sizes) < MOST_LOOPS and sizes[0] >= 2 * LEAST_READ:
        sizes.insert(0, -(-sizes[0] // 2))
    return tuple(sizes)


def _draw(
    model: VisionLanguageModel,
    held: Held,
    state: Lanes,
    key: PRNGKeyArray,
    hidden: Float[Array, "B M D"],
    room: Room,
    sampling: Sampling,
) -> Lanes:
    """Draws a token a lane from the hidden state before it; lanes whose row ends with it go on to the next."""
    r, c = state.ids.shape[1:]
    busy = state.row < r
    logits = constrain_logits(model.logits(constrain_batch(hidden)))
    # which row a lane is at, [B,M,R]; all that moves between lanes and rows is a sum over it, as scatters and gathers
    # over a batch that is split between devices may talk to the others
    at = state.row[:, :, None] == jnp.arange(r)[None, None]
    number, most = (jnp.sum(jnp.where(at, x[:, None], 0), axis=2) for x in (held.number, held.most))
    uniform = jax.vmap(jax.vmap(lambda n, i: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, n), i))))(
        number, state.drawn
    )
    token = jnp.where(busy, draw_token(logits, uniform, sampling), sampling.pad_id)
    logprob = token_logprob(logits, token, sampling.temperature)
    end = busy & jnp.any(token[..., None] == jnp.asarray(sampling.end_ids, jnp.int32)[None, None], axis=-1)
    drawn = state.drawn + busy.astype(jnp.int32)
    over = busy & (end | (drawn >= most))
    row, begun = _next_rows(state, over, room)
    drew = jnp.any(at, axis=1)
    here = drew[..., None] & (jnp.arange(c)[None, None] == state.length[..., None])

    def written(x: Array, value: Array) -> Array:
        of_row = jnp.sum(jnp.where(at, value[..., None], jnp.zeros((), value.dtype)), axis=1)
        return jnp.where(here, of_row[..., None], x)

    return Lanes(
        row=row,
        drawn=jnp.where(over, 0, drawn),
        token=token,
        begun=begun,
        ids=written(state.ids, token),
        logprobs=written(state.logprobs, logprob),
        length=state.length + drew.astype(jnp.int32),
        ended=state.ended | jnp.any(at & end[..., None], axis=1),
    )


def _next_rows(state: Lanes, over: Bool[Array, "B M"], room: Room) -> tuple[Int[Array, "B M"], Int[Array, "B S"]]:
    """Each lane's row, with that of the lanes which are `over` replaced by the stream's next; and rows begun."""
    rows, lanes = room.rows, room.lanes
    r, row, begun = sum(rows), [], []
    for s, (n, m) in enumerate(zip(rows, lanes, strict=True)):
        own = slice(sum(lanes[:s]), sum(lanes[:s]) + m)
        turn = jnp.cumsum(over[:, own].astype(jnp.int32), axis=1)  # 1 for the first lane that is over
        following = state.begun[:, s, None] + turn - 1
        following = jnp.where(following < n, sum(rows[:s]) + following, r)
        row.append(jnp.where(over[:, own], following, state.row[:, own]))
        begun.append(jnp.minimum(state.begun[:, s] + turn[:, -1], n))
    return jnp.concatenate(row, axis=1), jnp.stack(begun, axis=1)
