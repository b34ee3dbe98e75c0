"""How a token is drawn from logits: temperature, top-k, nucleus, one uniform number a draw. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from jvr1.errors import UserError
from jvr1.model.blockwise import MASKED


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


def token_logprob(logits: Float[Array, "*X V"], token: Int[Array, "*X"], temperature: float) -> Float[Array, "*X"]:
    """log softmax(logits / temperature)[token] over the whole vocabulary; temperature 0 counts as 1."""
    scaled = logits / jnp.float32(temperature or 1.0)
    chosen = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)


def draw_token(logits: Float[Array, "B R V"], uniform: Float[Array, "B R"], sampling: Sampling) -> Int[Array, "B R"]:
    """Draws one token a row by inverting the cumulative distribution at `uniform`, a number in [0, 1)."""
    vocab = logits.shape[-1]
    if sampling.banned_ids:
        banned = np.isin(np.arange(vocab), sampling.banned_ids)
        logits = jnp.where(jnp.asarray(banned)[None, None], jnp.float32(MASKED), logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    p = truncated(jax.nn.softmax(logits / jnp.float32(sampling.temperature), axis=-1), sampling.top_p, sampling.top_k)
    # a parallel cumsum is not monotone to the last bit: without the mask a token of probability 0 could be drawn
    mass = jnp.where(p > 0, jnp.cumsum(p, axis=-1), jnp.float32(0))
    below = jnp.max(mass, axis=-1, keepdims=True) * jnp.minimum(uniform[..., None], jnp.float32(1 - 2**-23))
    return jnp.argmax(mass > below, axis=-1).astype(jnp.int32)


def truncated(p: Float[Array, "B R V"], top_p: float | int, top_k: int) -> Float[Array, "B R V"]:
    """Probabilities of which only the top_k best, then the nucleus of mass top_p are kept; the rest is 0."""
    if 0 < top_k < p.shape[-1]:
        p = jnp.where(p >= cut(p, jnp.ones_like(p), jnp.float32(top_k)), p, jnp.float32(0))
    if top_p < 1:
        p = jnp.where(p >= cut(p, p, top_p * jnp.sum(p, axis=-1, keepdims=True)), p, jnp.float32(0))
    return p


def cut_mass(logits: Float[Array, "*X V"], top_p: float | int, top_k: int) -> Float[Array, "*X"]:
    """The share of softmax(logits) that top-k and top-p leave out: what the policy that samples is not."""
    p = jax.nn.softmax(logits.reshape(1, -1, logits.shape[-1]), axis=-1)
    return 1.0 - jnp.sum(truncated(p, top_p, top_k), axis=-1).reshape(logits.shape[:-1])


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
