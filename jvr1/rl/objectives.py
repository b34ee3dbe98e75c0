"""The policy's loss: objectives by name, the KL from a reference, what tokens weigh, and how the sum is divided.

Pure, fp32, a function of arrays of tokens and their masks. The loss divides by a denominator of the whole step,
computed apart, so that any split into microbatches and hosts sums to the same gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jvr1.errors import UserError
from jvr1.setting import setting

CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def no_objective(name: str) -> str | None:
    """What is wrong of a name of an objective, for `About.wrong`."""
    try:
        objective_of(name)
    except UserError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the loss is made of; the equations stand with `OBJECTIVES`, `token_kl`, `rollout_weight`, `policy_loss`."""

    objective: str = setting(
        "clip",
        "What is maximised of a token: clip (PPO, GRPO; with ratio sequence GSPO), cispo, sapo, or your own "
        "module:function (docs/extending.md)",
        wrong=no_objective,
    )
    clip_low: float | None = setting(None, "Ratios below 1 - clip_low are clipped; none: no clipping", least=0, below=1)
    clip_high: float | None = setting(None, "Ratios above 1 + clip_high are clipped; none: no clipping", least=0)
    clip_dual: float | None = setting(
        None, "Dual clip: where the advantage A is negative a token gains clip_dual A at least; none: no bound", above=1
    )
    sapo_positive: float | int = setting(1.0, "Temperature of SAPO's gate where the advantage is positive", above=0)
    sapo_negative: float | int = setting(1.05, "The same where it is not", above=0)
    ratio: str = setting("token", "Importance ratios; by sequence: GSPO", one_of=("token", "sequence"))
    beta: float = setting(
        0.04,
        "Weight of the KL from the starting model; 0 saves its copy (with LoRA there is none) and its pass",
        least=0,
    )
    kl: str = setting(
        "k3",
        "Estimator of the KL in the loss; k1 has k2's gradient, as its own is 0 on average",
        one_of=("k1", "k2", "k3"),
    )
    kl_clip: float = setting(10.0, "Bound on the log-ratio in it", above=0)
    kl_in: str = setting(
        "loss",
        "Where the KL counts: in the loss, or in the reward, less beta times the completion's sum of k1 as sampled",
        one_of=("loss", "reward"),
    )
    reference_every: int = setting(
        0,
        "Steps after which the KL's reference becomes the policy as it then is; 0: it stays. Checkpoints then hold it",
        least=0,
        resume="fixed",
    )
    aggregation: str = setting(
        "sequence",
        "Mean over completions of token means (sequence), over all tokens (token, DAPO), or sums over max_length "
        "(constant, Dr. GRPO)",
        one_of=("sequence", "token", "constant"),
    )
    max_length: int = setting(768, "Tokens a completion counts as, for aggregation constant", above=0)
    rollout_correction: str = setting(
        "none",
        "Weight of tokens by how likely they are as scored against as sampled, by token or completion; above "
        "rollout_cap truncated to it (TIS) or left out (MIS)",
        one_of=CORRECTIONS,
    )
    rollout_cap: float | int = setting(2.0, "Its bound", above=0)
    entropy_weight: float = setting(0.0, "Weight of the entropy bonus; with entropy_target where it begins", least=0)
    entropy_target: float | None = setting(
        None,
        "Nats a token: the weight grows by entropy_step after a step below it and shrinks after one above, and the "
        "bonus acts only below it (Skywork-OR1); none: the weight stays",
        above=0,
    )
    entropy_step: float = setting(5e-4, "What the weight changes by after a step", above=0)
    entropy_share: float | int = setting(
        1.0,
        "Share of a step's tokens, those of the highest entropy, that the objective counts; below 1 it takes one more "
        "pass",
        above=0,
        most=1,
    )

    @property
    def has_entropy_bonus(self) -> bool:
        return self.entropy_weight > 0 or self.entropy_target is not None


class Mean(NamedTuple):
    """A statistic as the two sums it is the ratio of: it adds over microbatches and hosts."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Terms(NamedTuple):
    """What an objective sees of completion tokens. logp: of the policy, with gradient; ratio: to the old policy, with
    gradient, the token's or by `rl.ratio` its completion's; advantage: the completion's. mask: tokens in the loss; of
    others nothing counts, but all is finite."""

    logp: Float[Array, "B G C"]
    ratio: Float[Array, "B G C"]
    advantage: Float[Array, "B G C"]
    mask: Bool[Array, "B G C"]


class TokenExtras(NamedTuple):
    """What else the loss may take, of each completion token. sampled: log-probabilities when sampled, for
    `rollout_correction`. weight: of the objective, not of the KL. entropy: with gradient, and its bonus's weight."""

    sampled: Float[Array, "B G C"] | None = None
    weight: Float[Array, "B G C"] | None = None
    entropy: Float[Array, "B G C"] | None = None
    entropy_weight: ArrayLike = 0.0


NO_EXTRAS = TokenExtras()
Objective = Callable[[Terms, Any], Float[Array, "B G C"]]
"""objective(terms, config) -> what is to be maximised, of each token."""


def clipped_gain(terms: Terms, config: ObjectiveConfig) -> Float[Array, "B G C"]:
    """min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347; bounds apart: DAPO, arXiv 2503.14476);
    with `clip_dual` c and A < 0 at least c A (arXiv 1912.09729)."""
    low, high = _bounds(config)
    plain, clipped = terms.ratio * terms.advantage, jnp.clip(terms.ratio, low, high) * terms.advantage
    gain = jnp.where(plain <= clipped, plain, clipped)  # jnp.minimum would halve the gradient at a bound of 1
    if config.clip_dual is not None:
        gain = jnp.where(_at_dual_bound(terms, config), config.clip_dual * terms.advantage, gain)
    return gain


def cispo_gain(terms: Terms, config: ObjectiveConfig) -> Float[Array, "B G C"]:
    """sg(clip(w, 1 - clip_low, 1 + clip_high)) A log p: clipped tokens keep a gradient (MiniMax-M1, arXiv
    2506.13585)."""
    return stop_gradient(jnp.clip(terms.ratio, *_bounds(config))) * terms.advantage * terms.logp


def sapo_gain(terms: Terms, config: ObjectiveConfig) -> Float[Array, "B G C"]:
    """4 / tau sigmoid(tau (w - 1)) A, tau `sapo_positive` where A > 0, else `sapo_negative` (arXiv 2511.20347)."""
    tau = jnp.where(terms.advantage > 0.0, jnp.float32(config.sapo_positive), jnp.float32(config.sapo_negative))
    return 4.0 / tau * jax.nn.sigmoid(tau * (terms.ratio - 1.0)) * terms.advantage


OBJECTIVES: Mapping[str, Objective] = {"clip": clipped_gain, "cispo": cispo_gain, "sapo": sapo_gain}


def objective_of(name: str) -> Objective:
    """By its name in `OBJECTIVES`, or as module:function. Raises UserError, in words that follow the setting's name."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"is {name!r}; use one of {', '.join(OBJECTIVES)}, or module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's: anything may go wrong in it
        raise UserError(f"is {name!r}, which cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise UserError(f"is {name!r}, which is no function")
    return partial(_gain_of_user, name, found)


def _gain_of_user(name: str, found: Callable[..., Any], terms: Terms, config: Any) -> Float[Array, "B G C"]:
    try:
        gain = jnp.asarray(found(terms, config), jnp.float32)
    except Exception as error:
        raise UserError(f"rl.objective={name!r} failed: {type(error).__name__}: {error}") from error
    if gain.shape != terms.logp.shape:
        raise UserError(f"rl.objective={name!r} gave {list(gain.shape)}; it must be [B,G,C], {list(terms.logp.shape)}")
    return gain


def policy_loss(
    logp: Float[Array, "B G C"],
    old_logp: Float[Array, "B G C"] | None,
    ref_logp: Float[Array, "B G C"] | None,
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G C"],
    denominator: Float[Array, ""],
    config: ObjectiveConfig,
    extras: TokenExtras = NO_EXTRAS,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """This microbatch's share of the step's loss, and statistics as sums.

    l_it = -m_it c_it gain_it + beta KL_it - entropy_weight H_it; gain: that of `objective`, of ratios
    w_it = exp(lp_it - old_it), or for every t exp(mean_t(lp_it - old_it)) with `ratio` sequence (GSPO, arXiv
    2507.18071). Without `old_logp` the policy is its own old one: w = exp(lp - stop_gradient(lp)). m: `extras.weight`;
    c: `rollout_weight`, KL: `token_kl`, each where it is asked for; no `ref_logp`, no KL, and with `kl_in` reward it is
    measured alone.
    loss = sum_i (sum_t l_it / n_i) / denominator for aggregation sequence, else sum_it l_it / denominator.
    `mask` [B,G,C] marks the tokens in the loss (`tgrpo.loss_mask`), n_i counts a row's, whatever they weigh;
    `denominator` is that of the whole step (`loss_denominator`); 0 gives 0. Masked log-probabilities may hold anything,
    also in the gradient.
    """

    def kept(x: Array) -> Array:
        return jnp.where(mask, x.astype(jnp.float32), 0.0)

    logp = kept(logp)
    old = stop_gradient(logp) if old_logp is None else kept(old_logp)
    count = mask.astype(jnp.float32).sum(axis=-1)
    per_row = jnp.maximum(count, 1.0)
    log_ratio = logp - old
    if config.ratio == "sequence":
        log_ratio = jnp.broadcast_to((log_ratio.sum(axis=-1) / per_row)[:, :, None], logp.shape)
    # bounded: a token far off the old policy would make inf * 0
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    terms = Terms(logp, ratio, jnp.broadcast_to(advantage[:, :, None], logp.shape), mask)
    loss = -objective_of(config.objective)(terms, config)
    statistics = _ratio_statistics(terms, config)
    if extras.weight is not None:
        loss = loss * kept(extras.weight)
    if config.rollout_correction != "none":
        assert extras.sampled is not None
        correction = rollout_weight(old, kept(extras.sampled), mask, config)
        loss = loss * correction
        statistics["correction"] = _token_mean(correction, mask)
    if ref_logp is not None:
        kl = token_kl(logp, kept(ref_logp), config)
        statistics |= _kl_statistics(kl, mask, per_row)
        if config.kl_in == "loss":
            loss = loss + config.beta * kl
    if extras.entropy is not None:
        loss = loss - extras.entropy_weight * kept(extras.entropy)
    loss = jnp.where(mask, loss, 0.0).sum(axis=-1)
    if config.aggregation == "sequence":
        loss = loss / per_row
    loss = loss.sum() / jnp.maximum(denominator, 1.0)
    return loss, jax.tree.map(stop_gradient, statistics)


def loss_denominator(mask: Bool[Array, "B G C"], config: ObjectiveConfig) -> Float[Array, ""]:
    """What a summed loss is divided by, of these rows; add it up over the step's microbatches and hosts.

    sequence: completions in the loss; token: their tokens; constant: completions * max_length.
    """
    if config.aggregation == "token":
        return mask.astype(jnp.float32).sum()
    completions = mask.any(axis=-1).astype(jnp.float32).sum()
    return completions * (config.max_length if config.aggregation == "constant" else 1.0)


def token_kl(logp: Float[Array, "*B"], ref_logp: Float[Array, "*B"], config: ObjectiveConfig) -> Float[Array, "*B"]:
    """Estimates of KL(policy || reference) from x = clip(lp_ref - lp, -kl_clip, kl_clip) (Schulman 2020).

    k1: -x;  k2: x^2 / 2;  k3: exp(x) - x - 1. The expectation of k1's gradient is that of log p, which is 0, so k1 has
    the gradient of k2, whose expectation is the KL's (straight through).
    """
    x = jnp.clip(ref_logp - logp, -config.kl_clip, config.kl_clip)
    half = jnp.square(x) / 2.0
    if config.kl == "k1":
        return stop_gradient(-x - half) + half
    return half if config.kl == "k2" else jnp.exp(x) - x - 1.0


def kl_penalty(
    sampled: Float[Array, "B G C"], ref_logp: Float[Array, "B G C"], mask: Bool[Array, "B G C"], config: ObjectiveConfig
) -> Float[Array, "B G"]:
    """beta sum_t clip(lp_t - lp_ref_t, -kl_clip, kl_clip): what the KL in the reward takes from a completion's (k1, of
    the policy as it sampled; RLOO, arXiv 2402.14740)."""
    log_ratio = jnp.where(mask, sampled.astype(jnp.float32) - ref_logp.astype(jnp.float32), 0.0)
    return config.beta * jnp.clip(log_ratio, -config.kl_clip, config.kl_clip).sum(axis=-1)


def rollout_weight(
    old_logp: Float[Array, "B G C"],
    sampled: Float[Array, "B G C"],
    mask: Bool[Array, "B G C"],
    config: ObjectiveConfig,
) -> Float[Array, "B G C"]:
    """exp(old - sampled) of a token, or exp(sum_t(old_t - sampled_t)) of a completion, without gradient; above
    `rollout_cap` the cap itself (truncate: TIS, truncated importance sampling, as TRL names it) or 0 (mask: MIS).

    Sampling and scoring are two programs, and may be of two precisions; this corrects for the difference.
    """
    gap = jnp.where(mask, stop_gradient(old_logp - sampled), 0.0)
    level, _, how = config.rollout_correction.partition("_")
    if level == "sequence":
        gap = jnp.broadcast_to(gap.sum(axis=-1, keepdims=True), gap.shape)
    weight = jnp.exp(jnp.clip(gap, -20.0, 20.0))
    return jnp.where(weight > config.rollout_cap, config.rollout_cap if how == "truncate" else 0.0, weight)


def sampling_gap(
    sampled: Float[Array, "B G C"], scored: Float[Array, "B G C"], mask: Bool[Array, "B G C"]
) -> tuple[Mean, Float[Array, ""]]:
    """|log p when sampled - log p when scored| over completion tokens: its mean and its maximum."""
    gap = jnp.where(mask, jnp.abs(sampled.astype(jnp.float32) - scored.astype(jnp.float32)), 0.0)
    return Mean(gap.sum(), mask.astype(jnp.float32).sum()), gap.max(initial=0.0)


def _bounds(config: ObjectiveConfig) -> tuple[float | None, float | None]:
    low = None if config.clip_low is None else 1.0 - config.clip_low
    return low, None if config.clip_high is None else 1.0 + config.clip_high


def _at_dual_bound(terms: Terms, config: ObjectiveConfig) -> Bool[Array, "B G C"]:
    assert config.clip_dual is not None
    ratio = jnp.maximum(terms.ratio, _bounds(config)[0] or 0.0)
    return (terms.advantage < 0.0) & (ratio > config.clip_dual)


def _token_mean(value: Float[Array, "B G C"], mask: Bool[Array, "B G C"]) -> Mean:
    return Mean(jnp.where(mask, value, 0.0).sum(), mask.astype(jnp.float32).sum())


def _kl_statistics(
    kl: Float[Array, "B G C"], mask: Bool[Array, "B G C"], per_row: Float[Array, "B G"]
) -> dict[str, Mean]:
    """KL as the reference logs it, the mean over completions of token means, and over all tokens."""
    rows = jnp.where(mask, kl, 0.0).sum(axis=-1) / per_row
    return {
        "kl": Mean(rows.sum(), mask.any(axis=-1).astype(jnp.float32).sum()),
        "kl_token": _token_mean(kl, mask),
    }


def _ratio_statistics(terms: Terms, config: ObjectiveConfig) -> dict[str, Mean]:
    """The mean ratio, and shares of clipped tokens."""
    low, high = _bounds(config)
    ratio, gain, none = terms.ratio, terms.advantage, jnp.zeros_like(terms.mask)
    either = config.objective == "cispo"  # whatever the advantage's sign
    shares = {
        "clip_low": none if low is None else (ratio < low) & (either | (gain < 0.0)),
        "clip_high": none if high is None else (ratio > high) & (either | (gain > 0.0)),
    }
    if config.clip_dual is not None:
        shares["clip_dual"] = _at_dual_bound(terms, config)
    means = {name: _token_mean(share.astype(jnp.float32), terms.mask) for name, share in shares.items()}
    return {"ratio": _token_mean(ratio, terms.mask)} | means
