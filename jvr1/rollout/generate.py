"""Sampling on the device: one prefill a prompt stream, flat completion rows over shared prefixes.

Serves rollout, validation, evaluation and ask. Pure: jit with the static arguments bound. `generate` answers one batch.
Its parts keep a queue going: `begin` B prompts, `advance` until some have ended, `place` others that `enter` made into
their slots, and so on (`jvr1.rollout.queue`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from jvr1.errors import UserError
from jvr1.model.blockwise import MASKED
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.layers import constrain_batch, constrain_vocab
from jvr1.model.text import KV
from jvr1.model.vision_language import VisionLanguageModel

LEAST_READ, MOST_LOOPS = 64, 4
"""Entries of the ring that a loop of decoding reads at least, and how many such loops there are."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: softmax(logits / temperature), then the top_k best, then the nucleus of mass top_p.

    temperature 0 takes the best token; top_k 0 and top_p 1 keep all. A row ends with any of `end_ids`, which belongs
    to it; `banned_ids` are never drawn (the visual placeholders: a sampled one would break the next pass).
    Errors: UserError for a value that is not possible.
    """

    max_tokens: int
    end_ids: tuple[int, ...]
    banned_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; at least one token must be sampled")
        if not self.temperature >= 0:
            raise UserError(f"temperature is {self.temperature}; it must be positive, or 0 for the best token")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1]; use temperature 0 for the best token")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be positive, or 0 to keep all")


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

    kv: KV
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
    row began, so that no step scatters; a row of n tokens reads the last n. steps: draws since `begin`, its own too."""

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
    most = jnp.full(row_numbers.shape, sampling.max_tokens, jnp.int32)
    slots = begin(model, Asked(prompt, visual, pairs, active, row_numbers, most), key, rows, rows, sampling)
    slots = advance(model, slots, key, rows, rows, sampling)
    # split here as in the loop: where the result goes must not change how the loop is split
    state = jax.tree.map(constrain_batch, slots.lanes)
    return Completions(state.ids, state.length, state.ended, state.logprobs, slots.steps)


def begin(
    model: VisionLanguageModel,
    asked: Asked,
    key: PRNGKeyArray,
    rows: Sequence[int],
    lanes: Sequence[int],
    sampling: Sampling,
) -> Slots:
    """Slots of B prompts: one prefill, and the first token of the first `lanes[s]` rows of each stream."""
    held, first = enter(model, asked, key, rows, lanes, sampling)
    layers, b, _, heads, _, size = held.kv.v.shape
    lines, dtype = (layers, b, sum(lanes), heads), held.kv.v.dtype
    ring = KV(
        jnp.zeros((*lines, size, sampling.max_tokens), dtype), jnp.zeros((*lines, sampling.max_tokens, size), dtype)
    )
    return Slots(held, first, ring, jnp.int32(1))


def enter(
    model: VisionLanguageModel,
    asked: Asked,
    key: PRNGKeyArray,
    rows: Sequence[int],
    lanes: Sequence[int],
    sampling: Sampling,
) -> tuple[Held, Lanes]:
    """`begin` without a ring: what `place` puts into slots that are under way."""
    prompt = asked.prompt
    last, kv = model.prefill(prompt, asked.visual, asked.pairs)
    (b, r), m, c = asked.number.shape, sum(lanes), sampling.max_tokens
    held = Held(kv, prompt.mask, prompt.next_position, last, asked.number, jnp.minimum(asked.most, c))
    starts = np.cumsum([0, *rows[:-1]])
    first = np.concatenate([start + np.arange(n) for start, n in zip(starts, lanes, strict=True)]).astype(np.int32)
    state = Lanes(
        row=jnp.where(asked.active[:, None], first[None], r),
        drawn=jnp.zeros((b, m), jnp.int32),
        token=jnp.zeros((b, m), jnp.int32),
        begun=jnp.broadcast_to(jnp.asarray(lanes, jnp.int32)[None], (b, len(lanes))),
        ids=jnp.full((b, r, c), sampling.pad_id, jnp.int32),
        logprobs=jnp.zeros((b, r, c), jnp.float32),
        length=jnp.zeros((b, r), jnp.int32),
        ended=jnp.zeros((b, r), bool),
    )
    return held, _draw(model, held, state, key, last[:, _streams(lanes)], rows, lanes, sampling)


def place(held: Held, lanes: Lanes, new_held: Held, new_lanes: Lanes, into: Int[Array, "W k"]) -> tuple[Held, Lanes]:
    """Puts prompts that `enter` made into slots whose rows have all ended.

    Slots and prompts are both W equal parts, which lie on different devices: prompt i of part w goes into slot
    into[w, i] of the same part; nowhere where there is no such slot.
    """

    def put(old: Array, new: Array, axis: int) -> Array:
        x, y = (x.reshape(*x.shape[:axis], into.shape[0], -1, *x.shape[axis + 1 :]) for x in (old, new))
        at = (slice(None),) * axis
        write = jax.vmap(lambda x, y, i: x.at[(*at, i)].set(y, mode="drop"), (axis, axis, 0), axis)
        return write(x, y, into).reshape(old.shape)

    kv = KV(*(put(x, y, 1) for x, y in zip(held.kv, new_held.kv, strict=True)))
    rest: Any
    rest, lanes = jax.tree.map(partial(put, axis=0), (held[1:], lanes), (new_held[1:], new_lanes))
    return Held(kv, *rest), lanes


def advance(
    model: VisionLanguageModel,
    slots: Slots,
    key: PRNGKeyArray,
    rows: Sequence[int],
    lanes: Sequence[int],
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
    mask = jnp.broadcast_to(slots.held.mask[:, None], (b, len(lanes), slots.held.mask.shape[1]))
    streams = _streams(lanes)

    def step(read: int, carry: tuple[Lanes, KV, Array]) -> tuple[Lanes, KV, Array]:
        state, cache, steps = carry
        written = steps - 1
        positions = slots.held.next_position[:, None] + state.drawn - 1
        hidden, cache = model.decode(
            state.token, positions, slots.held.kv, mask, cache, written % sampling.max_tokens, state.drawn, lanes, read
        )
        begins = (state.drawn == 0)[..., None]
        hidden = jnp.where(begins, slots.held.last[:, streams], hidden)
        return _draw(model, slots.held, state, key, hidden, rows, lanes, sampling), cache, steps + 1

    def goes_on(read: int, carry: tuple[Lanes, KV, Array]) -> Bool[Array, ""]:
        state, _, steps = carry
        held = (steps <= read) | (read == sampling.max_tokens)
        return (jnp.sum(state.idle, dtype=jnp.int32) < enough) & (steps < until) & held

    carry = (slots.lanes, slots.cache, slots.steps)
    with jax.named_scope("decode"):  # by this name the loops are found in the compiled program
        for read in reads(sampling.max_tokens):
            carry = jax.lax.while_loop(partial(goes_on, read), partial(step, read), carry)
    state, cache, steps = carry
    return Slots(slots.held, state, cache, steps)


def reads(max_tokens: int) -> tuple[int, ...]:
    """Entries of the ring that decoding reads: as long as no more are written, a part of them, in a loop of its own."""
    sizes = [max_tokens]
    while len(sizes) < MOST_LOOPS and sizes[0] >= 2 * LEAST_READ:
        sizes.insert(0, -(-sizes[0] // 2))
    return tuple(sizes)


def _streams(lanes: Sequence[int]) -> Int[np.ndarray, " M"]:
    """The stream of each lane."""
    return np.repeat(np.arange(len(lanes)), lanes)


def _draw(
    model: VisionLanguageModel,
    held: Held,
    state: Lanes,
    key: PRNGKeyArray,
    hidden: Float[Array, "B M D"],
    rows: Sequence[int],
    lanes: Sequence[int],
    sampling: Sampling,
) -> Lanes:
    """Draws a token a lane from the hidden state before it; lanes whose row ends with it go on to the next."""
    r, c = state.ids.shape[1:]
    busy = state.row < r
    logits = constrain_vocab(model.logits(constrain_batch(hidden)))
    # which row a lane is at, [B,M,R]; all that moves between lanes and rows is a sum over it, as scatters and gathers
    # over a batch that is split between devices may talk to the others
    at = state.row[:, :, None] == jnp.arange(r)[None, None]
    number, most = (jnp.sum(jnp.where(at, x[:, None], 0), axis=2) for x in (held.number, held.most))
    uniform = jax.vmap(jax.vmap(lambda n, i: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, n), i))))(
        number, state.drawn
    )
    token = jnp.where(busy, choose(logits, uniform, sampling), sampling.pad_id)
    logprob = token_logprob(logits, token, sampling.temperature)
    end = busy & jnp.any(token[..., None] == jnp.asarray(sampling.end_ids, jnp.int32)[None, None], axis=-1)
    drawn = state.drawn + busy.astype(jnp.int32)
    over = busy & (end | (drawn >= most))
    row, begun = _next_rows(state, over, rows, lanes)
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


def _next_rows(
    state: Lanes, over: Bool[Array, "B M"], rows: Sequence[int], lanes: Sequence[int]
) -> tuple[Int[Array, "B M"], Int[Array, "B S"]]:
    """Each lane's row, with that of the lanes which are `over` replaced by the stream's next; and rows begun."""
    r, row, begun = sum(rows), [], []
    for s, (n, m) in enumerate(zip(rows, lanes, strict=True)):
        own = slice(sum(lanes[:s]), sum(lanes[:s]) + m)
        turn = jnp.cumsum(over[:, own].astype(jnp.int32), axis=1)  # 1 for the first lane that is over
        following = state.begun[:, s, None] + turn - 1
        following = jnp.where(following < n, sum(rows[:s]) + following, r)
        row.append(jnp.where(over[:, own], following, state.row[:, own]))
        begun.append(jnp.minimum(state.begun[:, s] + turn[:, -1], n))
    return jnp.concatenate(row, axis=1), jnp.stack(begun, axis=1)


def token_logprob(logits: Float[Array, "*X V"], token: Int[Array, "*X"], temperature: float) -> Float[Array, "*X"]:
    """log softmax(logits / temperature)[token] over the whole vocabulary; temperature 0 counts as 1."""
    scaled = logits / jnp.float32(temperature or 1.0)
    chosen = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)


def choose(logits: Float[Array, "B R V"], uniform: Float[Array, "B R"], sampling: Sampling) -> Int[Array, "B R"]:
    """Draws one token a row by inverting the cumulative distribution at `uniform`, a number in [0, 1)."""
    vocab = logits.shape[-1]
    if sampling.banned_ids:
        banned = np.isin(np.arange(vocab), sampling.banned_ids)
        logits = jnp.where(jnp.asarray(banned)[None, None], jnp.float32(MASKED), logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    p = jax.nn.softmax(logits / jnp.float32(sampling.temperature), axis=-1)
    if 0 < sampling.top_k < vocab:
        p = jnp.where(p >= cut(p, jnp.ones_like(p), jnp.float32(sampling.top_k)), p, jnp.float32(0))
    if sampling.top_p < 1:
        p = jnp.where(p >= cut(p, p, sampling.top_p * jnp.sum(p, axis=-1, keepdims=True)), p, jnp.float32(0))
    # a parallel cumsum is not monotone to the last bit: without the mask a token of probability 0 could be drawn
    mass = jnp.where(p > 0, jnp.cumsum(p, axis=-1), jnp.float32(0))
    below = jnp.max(mass, axis=-1, keepdims=True) * jnp.minimum(uniform[..., None], jnp.float32(1 - 2**-23))
    return jnp.argmax(mass > below, axis=-1).astype(jnp.int32)


def cut(p: Float[Array, "B R V"], weight: Float[Array, "B R V"], target: Float[Array, "..."]) -> Float[Array, "B R 1"]:
    """Largest t with sum of weight where p >= t at least `target`: what top-k and top-p keep is p >= t.

    Bisection over the bit patterns of positive floats, which are ordered as the floats are: 31 passes, exact, where
    sorting the vocabulary would cost several times the rest of a step. Ties at t are all kept.
    """
    target = jnp.broadcast_to(target, (*p.shape[:-1], 1))

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // jnp.uint32(2)
        t = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(p >= t, weight, jnp.float32(0)), axis=-1, keepdims=True) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low: UInt32[Array, "B R 1"] = jnp.zeros_like(target, jnp.uint32)
    high = jnp.full_like(low, np.float32(1.5).view(np.uint32))
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
