"""Sampling on the device: one prefill a prompt stream, flat completion rows over shared prefixes.

Serves rollout, validation, evaluation and ask. Pure: jit `generate` with its static arguments bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from jvr1.errors import UserError
from jvr1.model.attention import MASKED
from jvr1.model.layers import constrain_batch, constrain_vocab
from jvr1.model.qwen2_5_vl import Prompt, Qwen25VL
from jvr1.model.text import KV
from jvr1.model.vision import Visual


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

    def __post_init__(self):
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


class _Loop(NamedTuple):
    drawn: Int[Array, ""]
    token: Int[Array, "B R"]
    done: Bool[Array, "B R"]
    ended: Bool[Array, "B R"]
    length: Int[Array, "B R"]
    ids: Int[Array, "B R C"]
    logprobs: Float[Array, "B R C"]
    cache: KV


def generate(
    model: Qwen25VL,
    prompt: Prompt,
    visual: Visual | None,
    pairs: Int[Array, "B S F 2"] | None,
    active: Bool[Array, "B"],
    key: PRNGKeyArray,
    row_numbers: Int[Array, "B R"],
    rows: Sequence[int],
    sampling: Sampling,
) -> Completions:
    """Samples `rows[s]` completions for each stream s (the frames in the order of pairs[:, s]) of each prompt.

    R = sum(rows), streams in order. The key of a row is fold_in(key, its number), that of a token
    fold_in(row key, index): the same draw on any mesh. Prompts that are not `active` cost no steps of their own.
    """
    last, prefix = model.prefill(prompt, visual, pairs)
    b, r, c = prompt.ids.shape[0], sum(rows), sampling.max_tokens
    prefix_mask = jnp.broadcast_to(prompt.mask[:, None], (b, len(rows), prompt.mask.shape[1]))
    keys = jax.vmap(jax.vmap(lambda n: jax.random.fold_in(key, n)))(row_numbers)
    layers, heads, size = prefix.k.shape[0], *prefix.k.shape[-2:]

    def draw(hidden: Array, loop: _Loop) -> _Loop:
        logits = constrain_vocab(model.logits(constrain_batch(hidden)))
        uniform = jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, loop.drawn))))(keys)
        token = jnp.where(loop.done, sampling.pad_id, choose(logits, uniform, sampling))
        logprob = jnp.where(loop.done, jnp.float32(0), token_logprob(logits, token, sampling.temperature))
        end = ~loop.done & jnp.any(token[..., None] == jnp.asarray(sampling.end_ids, jnp.int32)[None, None], axis=-1)
        at = (0, 0, loop.drawn)
        return loop._replace(
            drawn=loop.drawn + 1,
            token=token,
            done=loop.done | end,
            ended=loop.ended | end,
            length=loop.length + (~loop.done).astype(jnp.int32),
            ids=jax.lax.dynamic_update_slice(loop.ids, token[..., None], at),
            logprobs=jax.lax.dynamic_update_slice(loop.logprobs, logprob[..., None], at),
        )

    def step(loop: _Loop) -> _Loop:
        written = loop.drawn - 1
        positions = jnp.broadcast_to((prompt.next_position + written)[:, None], (b, r))
        hidden, cache = model.decode(loop.token, positions, prefix, prefix_mask, loop.cache, written, rows)
        return draw(hidden, loop._replace(cache=cache))

    empty = KV(*(jnp.zeros((layers, b, r, c, heads, size), prefix.k.dtype) for _ in range(2)))
    loop = _Loop(
        drawn=jnp.int32(0),
        token=jnp.zeros((b, r), jnp.int32),
        done=jnp.broadcast_to(~active[:, None], (b, r)),
        ended=jnp.zeros((b, r), bool),
        length=jnp.zeros((b, r), jnp.int32),
        ids=jnp.full((b, r, c), sampling.pad_id, jnp.int32),
        logprobs=jnp.zeros((b, r, c), jnp.float32),
        cache=empty,
    )
    streams = np.repeat(np.arange(len(rows)), rows)
    loop = draw(last[:, streams], loop)
    with jax.named_scope("decode"):  # by this name the loop is found in the compiled program
        loop = jax.lax.while_loop(lambda s: (s.drawn < c) & ~jnp.all(s.done), step, loop)
    # split here as in the loop: where the result goes must not change how the loop is split
    ids, length, ended, logprobs = (constrain_batch(x) for x in (loop.ids, loop.length, loop.ended, loop.logprobs))
    return Completions(ids, length, ended, logprobs, loop.drawn)


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
