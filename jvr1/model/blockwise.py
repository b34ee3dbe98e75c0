"""Attention of a prompt and its completions as one packed sequence, in blocks of queries, by XLA on any platform.

The completions follow the prompt each padded to the same length, or without padding on a tape (`model.tape`).

The queries are cut into blocks. Attention scores are computed for one block at a time, forward and backward, and only
against keys that some query of the block can see, so the whole matrix of scores never exists. The forward pass keeps
the log-sum-exp of each query's scores; from it the backward pass computes a block's softmax again (FlashAttention,
arXiv 2205.14135). Inside this module heads come before tokens, so that what a product reads is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30
"""Score of a masked key. It is finite so that a query with no real key at all (padding) gets finite values and
gradients instead of nan; nobody reads them."""
QUERY_BLOCK = 256
"""Aim for this many queries in a block. A completion is never cut in two: a longer one is a block of its own."""
MOST_BLOCKS = 16
"""The most blocks a prompt is cut into. Each block is code of its own in the compiled program, so their number is
bounded; in a long prompt blocks get larger instead."""


def contract(how: str, a: Array, b: Array) -> Array:
    """einsum that accumulates in fp32 and returns fp32."""
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def scale(size: int) -> Array:
    """1 / sqrt(H) in fp32. Multiply the scores by it: queries in bf16 times it would be rounded once more."""
    return jnp.float32(size**-0.5)


class Span(NamedTuple):
    """A block: queries [start, end) of the packed sequence: `rows` whole completions; a part of a tape, whose queries
    read keys of it from `first` on; or, where there is neither, a part of the prompt."""

    start: int
    end: int
    rows: int = 0
    first: int = 0


def spans(prompt: int, rows: int, length: int) -> tuple[Span, ...]:
    """The blocks: parts of the prompt first, then completions, several in a block where they are short."""
    size = max(QUERY_BLOCK, -(-prompt // MOST_BLOCKS))
    of_prompt = [Span(start, min(start + size, prompt)) for start in range(0, prompt, size)]
    together = max(1, QUERY_BLOCK // max(length, 1))
    counts = [min(together, rows - first) for first in range(0, rows, together)]
    starts = [prompt + first * length for first in range(0, rows, together)]
    return (*of_prompt, *(Span(at, at + n * length, n) for at, n in zip(starts, counts, strict=True)))


def tape_spans(prompt: int, tape: int, longest: int) -> tuple[Span, ...]:
    """The blocks of a prompt and a tape of so many tokens, none of them of a completion longer than `longest`.

    Short completions have shorter blocks: a block reads keys of the tape as if all its queries were of one completion.
    """
    size = max(min(QUERY_BLOCK, max(longest, QUERY_BLOCK // 4)), -(-tape // MOST_BLOCKS))
    starts = range(prompt, prompt + tape, size)
    ends = [min(start + size, prompt + tape) for start in starts]
    firsts = [max(start - longest + 1, prompt) for start in starts]
    of_tape = (Span(*place) for place in zip(starts, ends, [0] * len(ends), firsts, strict=True))
    return (*spans(prompt, 0, 0), *of_tape)


def score_counts(prompt: int, blocks: Sequence[Span]) -> tuple[int, int]:
    """How many scores one head has: in the largest block, and in all blocks together."""

    def keys(span: Span) -> int:
        if span.rows:
            return prompt + (span.end - span.start) // span.rows
        return prompt + span.end - span.first if span.first else span.end

    counts = [(span.end - span.start) * keys(span) for span in blocks]
    return max(counts), sum(counts)


class Keys(NamedTuple):
    """Keys [first, last) of the sequence, which a block of queries reads.

    parts: into how many equal parts (X) both are cut; queries of part i read only keys of part i. One part: all queries
    read all of these keys. Several: each completion reads its own keys. seen: which of its j keys each query may see;
    its axis t is queries times g heads a key head, because these are one axis in memory.
    """

    first: int
    last: int
    parts: int
    seen: Bool[Array, "#B 1 #t j"]


def keys_of(span: Span, mask: Bool[Array, "B P"], row: Int[Array, "B S"], g: int) -> Iterator[Keys]:
    """The keys that a block reads. Completions: the prompt, then their own keys up to the query. A part of the prompt:
    the prompt up to the query. row: which completion a token of the tape is of. g: query heads a key head."""
    prompt, length = mask.shape[1], (span.end - span.start) // max(span.rows, 1)
    place = jnp.asarray(np.repeat(np.arange(span.end - span.start), g)[:, None])
    if span.rows:
        yield Keys(0, prompt, 1, mask[:, None, None])
        yield Keys(span.start, span.end, span.rows, (place % length >= jnp.arange(length)[None])[None, None])
    elif span.first:
        yield Keys(0, prompt, 1, mask[:, None, None])
        of_query, of_key = (row[:, at - prompt : span.end - prompt] for at in (span.start, span.first))
        causal = span.start + place >= jnp.arange(span.first, span.end)[None]
        same = jnp.repeat(of_query, g, axis=1)[:, :, None] == of_key[:, None]
        yield Keys(span.first, span.end, 1, (same & causal[None])[:, None])
    else:
        causal = span.start + place >= jnp.arange(span.end)[None]
        yield Keys(0, span.end, 1, mask[:, None, None, : span.end] & causal[None, None])


def attend_packed(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "B P"],
    rows: int,
    length: int,
    row: Int[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attention within [prompt | G = `rows` completions of `length` tokens], T = P + G*C; softmax in fp32, normalised
    once over all keys of a query. The prompt is causal; a completion sees the prompt and itself causally.

    mask: false at the prompt's padding, which real tokens do not see. row: completions of at most `length` tokens lie
    on a tape, T = P + S, and this says which of them a token is of.
    """
    b, t, heads, size = q.shape
    groups = heads // k.shape[2]
    grouped = q.reshape(b, t, k.shape[2], groups, size).transpose(0, 2, 1, 3, 4)
    flat = grouped.reshape(b, k.shape[2], t * groups, size)
    p = mask.shape[1]
    blocks = spans(p, rows, length) if row is None else tape_spans(p, t - p, length)
    row = jnp.zeros((b, 0), jnp.int32) if row is None else row
    out = _attend(flat, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, row, blocks)
    return out.reshape(grouped.shape).transpose(0, 2, 1, 3, 4).reshape(q.shape)


# From here on queries are [B,K,T*g,H], where g = N/K query heads share a key head; keys and values are [B,K,T,H].


def _scores(q: Float[Array, "B K t H"], k: Float[Array, "B K T H"], keys: Keys) -> Float[Array, "B K t j"]:
    logits = contract("bkxth,bkxjh->bkxtj", _apart(q, keys.parts), _read(k, keys)) * scale(q.shape[3])
    return jnp.where(keys.seen, logits.reshape(*q.shape[:3], -1), jnp.float32(MASKED))


def _mix(weights: Float[Array, "B K t j"], v: Float[Array, "B K T H"], keys: Keys) -> Float[Array, "B K t H"]:
    mixed = contract("bkxtj,bkxjh->bkxth", _apart(weights.astype(v.dtype), keys.parts), _read(v, keys))
    return mixed.reshape(*weights.shape[:3], -1)


def _collect(weights: Float[Array, "B K t j"], rows: Float[Array, "B K t H"], keys: Keys) -> Float[Array, "B K s H"]:
    """For each key, the sum over queries of weights times rows: gradients of keys and values."""
    weights, rows = _apart(weights.astype(rows.dtype), keys.parts), _apart(rows, keys.parts)
    return contract("bkxtj,bkxth->bkxjh", weights, rows).reshape(*rows.shape[:2], -1, rows.shape[-1])


def _apart(x: Float[Array, "B K t z"], parts: int) -> Float[Array, "B K X y z"]:
    return x.reshape(*x.shape[:2], parts, -1, x.shape[3])


def _read(x: Float[Array, "B K T H"], keys: Keys) -> Float[Array, "B K X j H"]:
    return _apart(x[:, :, keys.first : keys.last], keys.parts)


def _after(x: Array, done: list[Array]) -> Array:
    """Returns x, but makes it wait for the block computed last. Without this XLA for TPUs works on several blocks at
    once and holds three times the scores. (XLA for CPUs ignores it.)"""
    if done:
        x, done[-1] = jax.lax.optimization_barrier((x, done[-1]))
    return x


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, mask: Array, row: Array, blocks: tuple[Span, ...]) -> Array:
    return _forward(q, k, v, mask, row, blocks)[0]


def _forward(
    q: Array, k: Array, v: Array, mask: Array, row: Array, blocks: tuple[Span, ...]
) -> tuple[Array, tuple[Array, ...]]:
    g = q.shape[2] // k.shape[2]
    out: list[Array] = []
    sums: list[Array] = []
    for span in blocks:
        own, seen = q[:, :, g * span.start : g * span.end], list(keys_of(span, mask, row, g))
        own = _after(own, out)
        scores = [_scores(own, k, keys) for keys in seen]
        top = reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in scores])
        weights = [jnp.exp(s - top) for s in scores]
        total = reduce(jnp.add, [jnp.sum(w, axis=-1, keepdims=True) for w in weights])
        mixed = reduce(jnp.add, [_mix(w, v, keys) for w, keys in zip(weights, seen, strict=True)])
        out.append((mixed / total).astype(q.dtype))
        sums.append(top + jnp.log(total))
    whole = jnp.concatenate(out, axis=2)
    return whole, (q, k, v, mask, row, whole, jnp.concatenate(sums, axis=2))


def _backward(
    blocks: tuple[Span, ...], kept: tuple[Array, ...], d_out: Array
) -> tuple[Array, Array, Array, None, None]:
    q, k, v, mask, row, out, sums = kept
    g = q.shape[2] // k.shape[2]
    d_q: list[Array] = []
    d_k, d_v = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    along = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    for span in blocks:
        own, d_own, total, level = (x[:, :, g * span.start : g * span.end] for x in (q, d_out, sums, along))
        own, d_own = (_after(x, d_q) for x in (own, d_own))
        d_q_own = jnp.zeros(own.shape, jnp.float32)
        for keys in keys_of(span, mask, row, g):
            weights = jnp.exp(_scores(own, k, keys) - total)
            d_weights = contract("bkxth,bkxjh->bkxtj", _apart(d_own, keys.parts), _read(v, keys))
            d_scores = weights * (d_weights.reshape(weights.shape) - level) * scale(own.shape[3])
            d_q_own = d_q_own + _mix(d_scores, k, keys)
            of = slice(keys.first, keys.last)
            d_k = d_k.at[:, :, of].add(_collect(d_scores, own, keys))
            d_v = d_v.at[:, :, of].add(_collect(weights, d_own, keys))
        d_q.append(d_q_own.astype(q.dtype))
    return jnp.concatenate(d_q, axis=2), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)
