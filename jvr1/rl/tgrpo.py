"""T-GRPO: temporal signal, shaped rewards, group advantages and the policy loss (Video-R1, arXiv 2503.21776).

All of it is pure, fp32 and made of masks: an invalid prompt, an image or a missing shuffled twin takes the same
path as any other row. One group's numbers depend on that group alone. The loss divides by a denominator of the
whole step, computed apart, so that any split into microbatches and hosts sums to the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jvr1.errors import UserError
from jvr1.setting import check_section, setting


@dataclass(frozen=True)
class TGRPOConfig:
    """Every switch of the algorithm; the defaults are ours, docs/deviations.md says how they differ.

    Temporal signal s (`temporal_signal`): `gate`, `factor`, `margin`, `min_distinct_frames`. It acts as a reward,
    r_i += temporal_reward * s * c_i (the reference, 0.3), and as a term outside the normalisation,
    A_i += alpha * s * (c_i - mean c) (ours). c_i = 1[a_i > correct_threshold].
    Length: r_i += length_reward * c_i where more than one is correct and the number of tokens, end token counted,
    lies in [length_min, length_max]; for images if `length_images`, in all-right groups if `length_all_right`.
    Advantage: `normalise_std` off gives Dr. GRPO's, `unbiased_std` divides the variance by G-1; `std_eps`.
    `drop_zero_variance` takes groups without any advantage out of the loss and of its denominator (DAPO).
    Loss: `clip_low`, `clip_high` (None: no clipping), `ratio` token or sequence (GSPO), `beta` and `kl`
    k1 | k2 | k3 of a log-ratio clipped to +-kl_clip, `aggregation` sequence (GRPO) | token (DAPO) | constant
    (Dr. GRPO: `max_length` tokens for each completion).
    Errors: UserError for a value that is not possible.
    """

    gate: str = setting(
        "gap",
        "Temporal signal s from accuracies ordered o and shuffled u: gap clip(o - factor u - margin, 0, 1), strict "
        "1[o > ..], reference 1[o >= ..], none",
        one_of=("gap", "strict", "reference", "none"),
    )
    factor: float = setting(1.0, "Of the gate; the reference's code 0.8, the paper 1", least=0)
    margin: float = setting(0.0, "Of the gate")
    min_distinct_frames: int = setting(4, "Clips with fewer different frames have no temporal signal")
    alpha: float = setting(
        0.3, "Weight of the temporal term outside the normalisation, alpha s (c_i - mean c)", least=0
    )
    temporal_reward: float = setting(
        0.0, "Reward s for correct completions inside the normalisation (the reference: 0.3)", least=0
    )
    correct_threshold: float = setting(0.5, "Accuracy above which a completion counts as correct")
    length_reward: float = setting(0.2, "Bonus of correct completions of a length in the range below")
    length_min: int = setting(320, "Tokens, end token counted", least=0, most="length_max")
    length_max: int = setting(512, "Tokens, end token counted")
    length_images: bool = setting(True, "The length bonus for images too")
    length_all_right: bool = setting(False, "The length bonus in groups that are all right (the reference: yes)")
    normalise_std: bool = setting(True, "Divide by the group's standard deviation; off: Dr. GRPO")
    unbiased_std: bool = setting(True, "Variance over G - 1")
    std_eps: float = setting(1e-4, "Added to the standard deviation", least=0)
    drop_zero_variance: bool = setting(False, "Groups without any advantage leave the loss and its denominator (DAPO)")
    clip_low: float | None = setting(None, "Ratios below 1 - clip_low are clipped; none: no clipping", least=0, below=1)
    clip_high: float | None = setting(None, "Ratios above 1 + clip_high are clipped; none: no clipping", least=0)
    ratio: str = setting("token", "Importance ratios; by sequence: GSPO", one_of=("token", "sequence"))
    beta: float = setting(
        0.04,
        "Weight of the KL from the starting model; 0 saves its copy (with LoRA there is none) and its pass",
        least=0,
    )
    kl: str = setting("k3", "Estimator of the KL", one_of=("k1", "k2", "k3"))
    kl_clip: float = setting(10.0, "Bound on the log-ratio in it", above=0)
    aggregation: str = setting(
        "sequence",
        "Mean over completions of token means (sequence), over all tokens (token, DAPO), or sums over max_length "
        "(constant, Dr. GRPO)",
        one_of=("sequence", "token", "constant"),
    )
    max_length: int = setting(768, "Tokens a completion counts as, for aggregation constant", above=0)

    def __post_init__(self) -> None:
        check_section(self, "rl.")
        if self.normalise_std and self.std_eps == 0:
            raise UserError("rl.std_eps is 0: a group without variance would divide by zero; use 1e-4")


class Mean(NamedTuple):
    """A statistic as the two sums it is the ratio of: it adds over microbatches and hosts."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class RolloutScores(NamedTuple):
    """What B groups of G ordered and S shuffled completions were worth.

    `reward` sums the row's rewards before temporal and length bonus (accuracy + format, and a user's own).
    `length` counts completion tokens with the end token. `valid` is False for a row that failed or pads a batch,
    `shuffled_valid` for shuffled rows that do not exist (all of an image's). Invalid entries may hold anything.
    `scored` is False for a completion that no reward could say anything of (None: there is none): no mean or deviation
    of its group counts it, and its advantage is 0.
    """

    accuracy: Float[Array, "B G"]
    reward: Float[Array, "B G"]
    length: Int[Array, "B G"]
    shuffled_accuracy: Float[Array, "B S"]
    shuffled_valid: Bool[Array, "B S"]
    valid: Bool[Array, " B"]
    is_video: Bool[Array, " B"]
    distinct_frames: Int[Array, " B"]
    scored: Bool[Array, "B G"] | None = None


class Advantages(NamedTuple):
    """The result of `advantages`; `weight` is 1 for groups that enter the loss, else 0."""

    advantage: Float[Array, "B G"]
    reward: Float[Array, "B G"]
    signal: Float[Array, " B"]
    weight: Float[Array, " B"]


def correct(accuracy: Float[Array, "*B"], config: TGRPOConfig) -> Float[Array, "*B"]:
    """c = 1[a > correct_threshold]."""
    return (accuracy > config.correct_threshold).astype(jnp.float32)


def temporal_signal(rollout: RolloutScores, config: TGRPOConfig) -> Float[Array, " B"]:
    """How much better a group does on ordered than on shuffled frames, s in [0,1], without gradient.

    With o and u the mean accuracies of ordered and of valid shuffled completions:
    gap: s = clip(o - factor u - margin, 0, 1);  reference: s = 1[o >= factor u + margin] (paper eq. 1);
    strict: s = 1[o > factor u + margin];  none: s = 0. Zero for images, invalid prompts, clips of fewer than
    `min_distinct_frames` distinct frames, and without a valid shuffled completion.
    """
    ordered = _mean_scored(rollout.accuracy, rollout.scored)
    shuffled, count = _shuffled_mean(rollout)
    bar = config.factor * shuffled + config.margin
    if config.gate == "gap":
        signal = jnp.clip(ordered - bar, 0.0, 1.0)
    elif config.gate == "none":
        signal = jnp.zeros_like(ordered)
    else:
        signal = (ordered >= bar if config.gate == "reference" else ordered > bar).astype(jnp.float32)
    counts = rollout.valid & rollout.is_video & (rollout.distinct_frames >= config.min_distinct_frames)
    if rollout.scored is not None:
        counts &= rollout.scored.any(axis=1)
    return stop_gradient(jnp.where(counts & (count > 0), signal, 0.0))


def _mean_scored(x: Float[Array, "B G"], scored: Bool[Array, "B G"] | None) -> Float[Array, " B"]:
    """Of a group's scored completions; 0 where it has none."""
    if scored is None:
        return x.mean(axis=1)
    return jnp.where(scored, x, 0.0).sum(axis=1) / jnp.maximum(scored.astype(jnp.float32).sum(axis=1), 1.0)


def _shuffled_mean(rollout: RolloutScores) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Mean accuracy and number of the valid shuffled completions."""
    count = rollout.shuffled_valid.astype(jnp.float32).sum(axis=1)
    total = jnp.where(rollout.shuffled_valid, rollout.shuffled_accuracy, 0.0).sum(axis=1)
    return total / jnp.maximum(count, 1.0), count


def shaped_rewards(rollout: RolloutScores, signal: Float[Array, " B"], config: TGRPOConfig) -> Float[Array, "B G"]:
    """r_i = reward_i + temporal_reward s c_i + length_reward c_i 1[n > 1] 1[length_min <= length_i <= length_max].

    n is the number of correct completions of the group. Invalid prompts get 0, completions that are not scored too.
    """
    c = correct(rollout.accuracy, config)
    size: Float[Array, "*b"] | float = float(c.shape[1])
    if rollout.scored is not None:
        c, size = jnp.where(rollout.scored, c, 0.0), rollout.scored.astype(jnp.float32).sum(axis=1)
    count = c.sum(axis=1)
    paid = count > 1.0
    if not config.length_images:
        paid &= rollout.is_video
    if not config.length_all_right:
        paid &= count < size
    in_range = (rollout.length >= config.length_min) & (rollout.length <= config.length_max)
    length_bonus = config.length_reward * c * (in_range & paid[:, None]).astype(jnp.float32)
    rewards = rollout.reward + config.temporal_reward * signal[:, None] * c + length_bonus
    counted = rollout.valid[:, None] if rollout.scored is None else rollout.valid[:, None] & rollout.scored
    return jnp.where(counted, rewards, 0.0)


def group_advantages(
    rewards: Float[Array, "B G"],
    accuracy: Float[Array, "B G"],
    signal: Float[Array, " B"],
    valid: Bool[Array, " B"],
    config: TGRPOConfig,
    scored: Bool[Array, "B G"] | None = None,
) -> Float[Array, "B G"]:
    """A_i = (r_i - mean r) / (std r + std_eps) + alpha s (c_i - mean c); 0 for invalid prompts.

    Without `normalise_std` the first term is r_i - mean r. The second sums to zero over a group, is at most alpha,
    and vanishes where all or none are correct: unlike a bonus inside r it is not divided away. Means and deviation are
    those of the completions that are `scored`; the others get 0.
    """
    c = correct(accuracy, config)
    if scored is not None:
        return stop_gradient(jnp.where(valid[:, None], _scored_advantages(rewards, c, signal, scored, config), 0.0))
    size = rewards.shape[1]
    # measured from the first reward: equal rewards then give exactly 0, where rounding over std_eps gave 1e-3
    shifted = rewards - rewards[:, :1]
    base = shifted - shifted.mean(axis=1, keepdims=True)
    if config.normalise_std:
        freedom = max(size - 1, 1) if config.unbiased_std else size
        base = base / (jnp.sqrt(jnp.square(base).sum(axis=1, keepdims=True) / freedom) + config.std_eps)
    bonus = config.alpha * signal[:, None] * (c - c.mean(axis=1, keepdims=True))
    return stop_gradient(jnp.where(valid[:, None], base + bonus, 0.0))


def _scored_advantages(
    rewards: Float[Array, "B G"],
    c: Float[Array, "B G"],
    signal: Float[Array, " B"],
    scored: Bool[Array, "B G"],
    config: TGRPOConfig,
) -> Float[Array, "B G"]:
    """`group_advantages` of groups in which some completions are not scored."""
    first = jnp.take_along_axis(rewards, jnp.argmax(scored, axis=1)[:, None], axis=1)
    shifted = rewards - first
    base = jnp.where(scored, shifted - _mean_scored(shifted, scored)[:, None], 0.0)
    if config.normalise_std:
        count = scored.astype(jnp.float32).sum(axis=1, keepdims=True)
        freedom = jnp.maximum(count - 1.0 if config.unbiased_std else count, 1.0)
        base = base / (jnp.sqrt(jnp.square(base).sum(axis=1, keepdims=True) / freedom) + config.std_eps)
    bonus = config.alpha * signal[:, None] * (c - _mean_scored(c, scored)[:, None])
    return jnp.where(scored, base + bonus, 0.0)


def advantages(rollout: RolloutScores, config: TGRPOConfig) -> Advantages:
    """From a rollout's scores to what the loss takes: signal, shaped rewards, advantages and group weights."""
    signal = temporal_signal(rollout, config)
    rewards = shaped_rewards(rollout, signal, config)
    advantage = group_advantages(rewards, rollout.accuracy, signal, rollout.valid, config, rollout.scored)
    used = rollout.valid
    if config.drop_zero_variance:
        used &= jnp.any(advantage != 0.0, axis=1)
    return Advantages(advantage, rewards, signal, used.astype(jnp.float32))


def loss_mask(mask: Bool[Array, "B G C"], weight: Float[Array, " B"]) -> Bool[Array, "B G C"]:
    """Completion tokens of the groups that enter the loss."""
    return mask & (weight > 0.0)[:, None, None]


def loss_denominator(mask: Bool[Array, "B G C"], config: TGRPOConfig) -> Float[Array, ""]:
    """What a summed loss is divided by, of these rows; add it up over the step's microbatches and hosts.

    sequence: completions in the loss; token: their tokens; constant: completions * max_length.
    """
    if config.aggregation == "token":
        return mask.astype(jnp.float32).sum()
    completions = mask.any(axis=-1).astype(jnp.float32).sum()
    return completions * (config.max_length if config.aggregation == "constant" else 1.0)


def policy_loss(
    logp: Float[Array, "B G C"],
    old_logp: Float[Array, "B G C"] | None,
    ref_logp: Float[Array, "B G C"] | None,
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G C"],
    denominator: Float[Array, ""],
    config: TGRPOConfig,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """This microbatch's share of the step's loss, and statistics as sums.

    l_it = -(min(w_it A_i, clip(w_it, 1-clip_low, 1+clip_high) A_i) - beta KL_it), w_it = exp(lp_it - old_it), or
    for every t exp(mean_t(lp_it - old_it)) with `ratio` sequence (GSPO, arXiv 2507.18071). Without `old_logp` the
    policy is its own old one: w = exp(lp - stop_gradient(lp)). KL: `token_kl`; no `ref_logp`, no KL.
    loss = sum_i (sum_t l_it / n_i) / denominator for aggregation sequence, else sum_it l_it / denominator.
    `mask` [B,G,C] marks the tokens in the loss (`loss_mask`), n_i counts a row's; `denominator` is that of the
    whole step (`loss_denominator`); 0 gives 0. Masked log-probabilities may hold anything, also in the gradient.
    """
    logp = jnp.where(mask, logp.astype(jnp.float32), 0.0)
    old = stop_gradient(logp) if old_logp is None else jnp.where(mask, old_logp.astype(jnp.float32), 0.0)
    count = mask.astype(jnp.float32).sum(axis=-1)
    per_row = jnp.maximum(count, 1.0)
    log_ratio = logp - old
    if config.ratio == "sequence":
        log_ratio = jnp.broadcast_to((log_ratio.sum(axis=-1) / per_row)[:, :, None], logp.shape)
    # bounded: a token far off the old policy would make inf * 0
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    low = None if config.clip_low is None else 1.0 - config.clip_low
    high = None if config.clip_high is None else 1.0 + config.clip_high
    gain = advantage[:, :, None]
    plain, clipped = ratio * gain, jnp.clip(ratio, low, high) * gain
    loss = -jnp.where(plain <= clipped, plain, clipped)  # jnp.minimum would halve the gradient at a bound of 1
    kl = jnp.zeros_like(logp)
    if ref_logp is not None:
        kl = token_kl(logp, jnp.where(mask, ref_logp.astype(jnp.float32), 0.0), config)
        loss = loss + config.beta * kl
    loss = jnp.where(mask, loss, 0.0).sum(axis=-1)
    if config.aggregation == "sequence":
        loss = loss / per_row
    loss = loss.sum() / jnp.maximum(denominator, 1.0)
    return loss, _loss_statistics(ratio, kl, gain, mask, low, high)


def token_kl(logp: Float[Array, "*B"], ref_logp: Float[Array, "*B"], config: TGRPOConfig) -> Float[Array, "*B"]:
    """Estimates of KL(policy || reference) from x = clip(lp_ref - lp, -kl_clip, kl_clip) (Schulman 2020).

    k1: -x;  k2: x^2 / 2;  k3: exp(x) - x - 1.
    """
    x = jnp.clip(ref_logp - logp, -config.kl_clip, config.kl_clip)
    if config.kl == "k1":
        return -x
    return jnp.square(x) / 2.0 if config.kl == "k2" else jnp.exp(x) - x - 1.0


def _loss_statistics(
    ratio: Float[Array, "B G C"],
    kl: Float[Array, "B G C"],
    gain: Float[Array, "B G 1"],
    mask: Bool[Array, "B G C"],
    low: float | None,
    high: float | None,
) -> dict[str, Mean]:
    """KL as the reference logs it (mean over completions of token means), ratio, and shares of clipped tokens."""
    weight = mask.astype(jnp.float32)
    count, tokens = weight.sum(axis=-1), weight.sum()
    below = jnp.zeros_like(mask) if low is None else (ratio < low) & (gain < 0.0)
    above = jnp.zeros_like(mask) if high is None else (ratio > high) & (gain > 0.0)
    rows = (kl * weight).sum(axis=-1) / jnp.maximum(count, 1.0)
    sums = {
        "kl": Mean(rows.sum(), (count > 0.0).astype(jnp.float32).sum()),
        "kl_token": Mean((kl * weight).sum(), tokens),
        "ratio": Mean((ratio * weight).sum(), tokens),
        "clip_low": Mean((below & mask).astype(jnp.float32).sum(), tokens),
        "clip_high": Mean((above & mask).astype(jnp.float32).sum(), tokens),
    }
    return jax.tree.map(stop_gradient, sums)


def sampling_gap(
    sampled: Float[Array, "B G C"], scored: Float[Array, "B G C"], mask: Bool[Array, "B G C"]
) -> tuple[Mean, Float[Array, ""]]:
    """|log p when sampled - log p when scored| over completion tokens: its mean and its maximum."""
    gap = jnp.where(mask, jnp.abs(sampled.astype(jnp.float32) - scored.astype(jnp.float32)), 0.0)
    return Mean(gap.sum(), mask.astype(jnp.float32).sum()), gap.max(initial=0.0)


def group_statistics(rollout: RolloutScores, result: Advantages, config: TGRPOConfig) -> dict[str, Mean]:
    """What a step's groups looked like. Temporal entries count videos with valid shuffled completions, no images."""
    valid = rollout.valid.astype(jnp.float32)
    completions = jnp.broadcast_to(valid[:, None], rollout.accuracy.shape)
    rows, groups_scored = completions, valid
    if rollout.scored is not None:
        rows = completions * rollout.scored.astype(jnp.float32)
        groups_scored = valid * rollout.scored.any(axis=1).astype(jnp.float32)
    share = _mean_scored(correct(rollout.accuracy, config), rollout.scored)
    accuracy = _mean_scored(rollout.accuracy, rollout.scored)
    shuffled, count = _shuffled_mean(rollout)
    video = groups_scored * (rollout.is_video & (count > 0.0)).astype(jnp.float32)
    silent = jnp.all(result.advantage == 0.0, axis=1)

    def groups(value: Array, weight: Array = valid) -> Mean:
        return Mean(jnp.where(weight > 0.0, value.astype(jnp.float32), 0.0).sum(), weight.sum())

    return {
        "accuracy": groups(accuracy, groups_scored),
        "reward": groups(result.reward, rows),
        "all_right": groups(share == 1.0, groups_scored),
        "all_wrong": groups(share == 0.0, groups_scored),
        "zero_variance": groups(silent),
        "advantage": groups(result.advantage, rows),
        "advantage_square": groups(jnp.square(result.advantage), rows),
        "temporal/ordered": groups(accuracy, video),
        "temporal/shuffled": groups(shuffled, video),
        "temporal/gap": groups(accuracy - shuffled, video),
        "temporal/signal": groups(result.signal, video),
        "temporal/bonus_rate": groups(result.signal > 0.0, video),
        "length": groups(rollout.length, completions),
    }
