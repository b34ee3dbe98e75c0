"""Token log-probabilities from hidden states without the full logits, and the supervised loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LogitsOf = Callable[[Float[Array, "*X D"]], Float[Array, "*X V"]]


class TokenScores(NamedTuple):
    """Of each target token under softmax(logits / temperature): its log-probability, the entropy of the softmax, and
    what was asked of it beside (`measured`; None: nothing)."""

    logprobs: Float[Array, "B G C"]
    entropy: Float[Array, "B G C"]
    measured: Float[Array, "B G C"] | None = None


def token_scores(
    logits_of: LogitsOf,
    hidden: Float[Array, "B G C D"],
    targets: Int[Array, "B G C"],
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    entropy_gradient: bool = False,
    measure: Callable[[Float[Array, "*X V"]], Float[Array, "*X"]] | None = None,
) -> TokenScores:
    """Scores of targets from the hidden states that predict them, `chunk` of the C axis at a time.

    The logits of a chunk [B,G,chunk,V] are made, used and made again in the backward pass; nothing of size V is kept.
    One function for SFT, policy and reference. The entropy carries a gradient only where asked. measure: of the logits
    over the temperature, without gradient.
    """
    length = hidden.shape[2]
    size = min(chunk, length)
    pad = -length % size
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, pad)))
    b, g = targets.shape[:2]
    chunks = (length + pad) // size

    @jax.checkpoint
    def score(hidden: Array, targets: Array) -> tuple[Array, ...]:
        logits = logits_of(hidden) / jnp.float32(temperature)
        total = jax.nn.logsumexp(logits, axis=-1)
        logprobs = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - total
        every = logits - total[..., None]
        every = every if entropy_gradient else jax.lax.stop_gradient(every)
        # a product, not a sum of products: XLA on CPUs takes 50 times as long for that
        mean = jnp.einsum("...v,...v->...", jnp.exp(every), every, precision=jax.lax.Precision.HIGHEST)
        beside = () if measure is None else (measure(jax.lax.stop_gradient(logits)),)
        return logprobs, -mean, *beside

    if chunks == 1:
        scores = score(hidden, targets)
    else:
        whole = (hidden.reshape(b, g, chunks, size, -1), targets.reshape(b, g, chunks, size))
        parts = [jnp.moveaxis(x, 2, 0) for x in whole]
        _, scores = jax.lax.scan(lambda carry, part: (carry, score(*part)), None, parts)
        scores = tuple(jnp.moveaxis(x, 0, 2).reshape(b, g, length + pad) for x in scores)
    return TokenScores(*(x[:, :, :length] for x in scores))


def supervised_loss(
    logprobs: Float[Array, "B G C"], mask: Float[Array, "B G C"], denominator: Float[Array, ""]
) -> Float[Array, ""]:
    """- sum of the target tokens' log-probabilities / `denominator`, the target tokens of the whole optimizer step; 0
    where there are none."""
    return -jnp.sum(logprobs * mask) / jnp.maximum(denominator, 1.0)
