"""What single tokens owe to the order of frames, or to frames at all: log-probabilities under a twin of the clip.

d_t = log p(token t | the clip) - log p(token t | its twin), of the same completion, one more scoring pass. The twin has
the clip's frames in another order, or black ones. Chain-of-thought tokens that name what was seen when have d of 2 to
4, the words between them about 0 (Video-KTR, arXiv 2601.19686; docs/deviations.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jvr1.rl.objectives import Mean
from jvr1.setting import setting


@dataclass(frozen=True)
class CreditConfig:
    """How d_t is used: `credit_weight` of tokens, `completion_credit` of whole completions; or measured alone."""

    credit: str = setting(
        "none",
        "Log-probabilities of the completions under a twin of the clip: none, measure (logged), select (the objective "
        "counts only tokens of the largest change), weight (by their change). One more pass",
        one_of=("none", "measure", "select", "weight"),
    )
    credit_twin: str = setting("shuffled", "Its frames", one_of=("shuffled", "blank"))
    credit_share: float = setting(0.2, "Share of a step's tokens that select keeps", above=0, most=1)
    credit_clip: float = setting(2.0, "Bound on a token's change in weights and means, in nats", above=0)
    credit_alpha: float = setting(
        0.0,
        "Weight of a term outside the normalisation for right completions, credit_alpha (w_i - mean w of the right), w "
        "the mean of the tokens' changes",
        least=0,
    )

    @property
    def measures_credit(self) -> bool:
        return self.credit != "none" or self.credit_alpha > 0


def token_credit(
    logp: Float[Array, "B G C"], twin: Float[Array, "B G C"], mask: Bool[Array, "B G C"]
) -> Float[Array, "B G C"]:
    """d_t, 0 where there is no token."""
    return stop_gradient(jnp.where(mask, logp.astype(jnp.float32) - twin.astype(jnp.float32), 0.0))


def mean_credit(change: Float[Array, "B G C"], mask: Bool[Array, "B G C"], config: CreditConfig) -> Float[Array, "B G"]:
    """w_i = mean_t clip(d_it, -credit_clip, credit_clip)."""
    bounded = jnp.where(mask, jnp.clip(change, -config.credit_clip, config.credit_clip), 0.0)
    return bounded.sum(axis=-1) / _count(mask)


def completion_credit(
    mean: Float[Array, "B G"], right: Bool[Array, "B G"], there: Bool[Array, " B"], config: CreditConfig
) -> Float[Array, "B G"]:
    """credit_alpha (w_i - mean w of the group's right completions) for right ones, 0 for wrong ones.

    It sums to zero over a group, and unlike the group's temporal term prefers one right completion to another, also
    where all are right. there: rows that have a twin; 0 for others.
    """
    use = right & there[:, None]
    weight = use.astype(jnp.float32)
    centre = jnp.where(use, mean, 0.0).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)
    return stop_gradient(config.credit_alpha * jnp.where(use, mean - centre[:, None], 0.0))


def credit_weight(
    change: Float[Array, "B G C"],
    mask: Bool[Array, "B G C"],
    there: Bool[Array, " B"],
    threshold: Float[Array, ""],
    config: CreditConfig,
) -> Float[Array, "B G C"]:
    """What the objective counts a token: 1[|d_t| >= threshold] with `credit` select (the threshold: that of the step's
    `credit_share`, `top_share.top_threshold`); with weight min(|d_t|, credit_clip) over its mean in the completion, so
    that a completion counts as before. 1 in rows without a twin and in completions where nothing changes."""
    size = jnp.where(mask, jnp.abs(change), 0.0)
    if config.credit == "select":
        weight = (size >= threshold).astype(jnp.float32)
    else:
        size = jnp.minimum(size, config.credit_clip)
        mean = (size.sum(axis=-1) / _count(mask))[..., None]
        weight = jnp.where(mean > 0.0, size / jnp.where(mean > 0.0, mean, 1.0), 1.0)
    return stop_gradient(jnp.where(there[:, None, None], weight, 1.0))


def credit_statistics(
    change: Float[Array, "B G C"], mask: Bool[Array, "B G C"], right: Bool[Array, "B G"], there: Bool[Array, " B"]
) -> dict[str, Mean]:
    """Means over tokens, of rows with a twin: d_t of right and of wrong completions, and |d_t|."""
    use = mask & there[:, None, None]

    def mean(value: Array, where: Array) -> Mean:
        return Mean(jnp.where(where, value, 0.0).sum(), where.astype(jnp.float32).sum())

    return {
        "credit/right": mean(change, use & right[..., None]),
        "credit/wrong": mean(change, use & ~right[..., None]),
        "credit/size": mean(jnp.abs(change), use),
    }


def _count(mask: Bool[Array, "B G C"]) -> Float[Array, "B G"]:
    return jnp.maximum(mask.astype(jnp.float32).sum(axis=-1), 1.0)
