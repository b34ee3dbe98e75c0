"""T-GRPO: temporal signal, shaped rewards and group advantages (Video-R1, arXiv 2503.21776).

All of it is pure, fp32 and made of masks: an invalid prompt, an image or a missing shuffled twin takes the same
path as any other row. One group's numbers depend on that group alone, but for what `Beside` says of its step. The loss
is in `jvr1.rl.objectives`, what single tokens owe to the order of frames in `jvr1.rl.credit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from jvr1.errors import UserError
from jvr1.rl.credit import CreditConfig, completion_credit
from jvr1.rl.objectives import Mean, ObjectiveConfig
from jvr1.setting import check_section, setting


@dataclass(frozen=True)
class AdvantageConfig:
    """What rewards become.

    Temporal signal s (`temporal_signal`): `gate`, `factor`, `margin`, `min_distinct_frames`. It acts as a reward,
    r_i += temporal_reward * s * c_i (the reference, 0.3), and as a term outside the normalisation,
    A_i += alpha * s * (c_i - mean c) (ours). c_i = 1[a_i > correct_threshold].
    Length: r_i += length_reward * c_i where more than one is correct and the number of tokens, end token counted,
    lies in [length_min, length_max]; for images if `length_images`, in all-right groups if `length_all_right`.
    Advantage: `normalise_std` off gives Dr. GRPO's, `unbiased_std` divides the variance by G-1; `std_eps`; `std_of`.
    `drop_zero_variance` takes groups without any advantage out of the loss and of its denominator (DAPO).
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
    overlong: str = setting(
        "keep",
        "Completions cut off at their bucket's length: keep, mask (out of the loss; their reward stays in the group), "
        "or penalty, of all that come near it (DAPO)",
        one_of=("keep", "mask", "penalty"),
    )
    overlong_tokens: int = setting(128, "Tokens before that length over which the penalty grows from 0", least=1)
    overlong_penalty: float = setting(1.0, "What it grows to", least=0)
    normalise_std: bool = setting(True, "Divide by a standard deviation, that of std_of; off: Dr. GRPO")
    std_of: str = setting(
        "group",
        "Rewards of the group, of the whole step (batch), or a moving average by problem type (kind, OneThinker)",
        one_of=("group", "batch", "kind"),
    )
    std_decay: float = setting(0.99, "Of that average, a step", least=0, below=1)
    combine: str = setting(
        "sum",
        "Accuracy, format and your own reward: their sum, or the sum of each normalised in its group (normalise, GDPO; "
        "use std_of batch)",
        one_of=("sum", "normalise"),
    )
    unbiased_std: bool = setting(True, "Variance over G - 1")
    std_eps: float = setting(1e-4, "Added to the standard deviation", least=0)
    drop_zero_variance: bool = setting(False, "Groups without any advantage leave the loss and its denominator (DAPO)")


@dataclass(frozen=True)
class TGRPOConfig(CreditConfig, ObjectiveConfig, AdvantageConfig):
    """Every switch of the algorithm; the defaults are ours, docs/deviations.md says how they differ.

    Errors: UserError for a value that is not possible.
    """

    @property
    def weighs_tokens(self) -> bool:
        return self.entropy_share < 1 or self.credit in ("select", "weight")

    def __post_init__(self) -> None:
        check_section(self, "rl.")
        if self.normalise_std and self.std_eps == 0:
            raise UserError("rl.std_eps is 0: a group without variance would divide by zero; use 1e-4")
        unused = {"cispo": ("clip_dual",), "sapo": ("clip_low", "clip_high", "clip_dual")}.get(self.objective, ())
        for name in unused:
            if getattr(self, name) is not None:
                raise UserError(f"rl.{name} is set, which rl.objective={self.objective!r} does not use")


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


class Beside(NamedTuple):
    """What else advantages may depend on, None where nothing asks for it.

    parts: K rewards of each completion, and the weights with which `RolloutScores.reward` sums them. divisor: the
    standard deviation of `std_of`, in place of the group's. penalty: what each completion's reward loses. credit: w of
    `completion_credit`, of rows where `credited`.
    """

    parts: Float[Array, "B G K"] | None = None
    weights: Float[Array, "B K"] | None = None
    divisor: Float[Array, " B"] | None = None
    penalty: Float[Array, "B G"] | None = None
    credit: Float[Array, "B G"] | None = None
    credited: Bool[Array, " B"] | None = None


NOTHING_BESIDE = Beside()


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
    divisor: Float[Array, " B"] | None = None,
    scored: Bool[Array, "B G"] | None = None,
) -> Float[Array, "B G"]:
    """A_i = (r_i - mean r) / (std r + std_eps) + alpha s (c_i - mean c); 0 for invalid prompts.

    Without `normalise_std` the first term is r_i - mean r; divisor: in place of std r. The second sums to zero over a
    group, is at most alpha, and vanishes where all or none are correct: unlike a bonus inside r it is not divided away.
    Means and deviation are those of the completions that are `scored`; the others get 0.
    """
    base = _centred(rewards, scored)
    if config.normalise_std:
        base = base / (_std(base, config, scored) if divisor is None else divisor[:, None] + config.std_eps)
    c = correct(accuracy, config)
    advantage = base + config.alpha * signal[:, None] * (c - _mean_scored(c, scored)[:, None])
    counted = valid[:, None] if scored is None else valid[:, None] & scored
    return stop_gradient(jnp.where(counted, advantage, 0.0))


def _centred(rewards: Float[Array, "B G"], scored: Bool[Array, "B G"] | None = None) -> Float[Array, "B G"]:
    """r_i - mean r over the completions that are scored; 0 for the others."""
    # measured from the first reward: equal rewards then give exactly 0, where rounding over std_eps gave 1e-3
    if scored is None:
        shifted = rewards - rewards[:, :1]
        return shifted - shifted.mean(axis=1, keepdims=True)
    shifted = rewards - jnp.take_along_axis(rewards, jnp.argmax(scored, axis=1)[:, None], axis=1)
    return jnp.where(scored, shifted - _mean_scored(shifted, scored)[:, None], 0.0)


def _std(
    centred: Float[Array, "B G"], config: AdvantageConfig, scored: Bool[Array, "B G"] | None = None
) -> Float[Array, "B 1"]:
    squares = jnp.square(centred).sum(axis=1, keepdims=True)
    if scored is None:
        size = centred.shape[1]
        return jnp.sqrt(squares / (max(size - 1, 1) if config.unbiased_std else size)) + config.std_eps
    count = scored.astype(jnp.float32).sum(axis=1, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(count - 1.0 if config.unbiased_std else count, 1.0)) + config.std_eps


def normalised_sum(
    parts: Float[Array, "B G K"],
    weights: Float[Array, "B K"],
    config: AdvantageConfig,
    scored: Bool[Array, "B G"] | None = None,
) -> Float[Array, "B G"]:
    """sum_k weight_k (r_ik - mean_i r_ik) / (std_i r_ik + std_eps): GDPO (arXiv 2601.05242). A reward without an
    opinion of a completion, nan, is no term of its sum; means and deviations are those of the others."""
    total = jnp.zeros(parts.shape[:2], jnp.float32)
    for k in range(parts.shape[2]):
        there = ~jnp.isnan(parts[:, :, k]) if scored is None else ~jnp.isnan(parts[:, :, k]) & scored
        centred = _centred(jnp.where(there, parts[:, :, k], 0.0), there)
        total = total + weights[:, k, None] * centred / _std(centred, config, there)
    return total


def overlong_penalty(length: Int[Array, "B G"], room: int, config: AdvantageConfig) -> Float[Array, "B G"]:
    """overlong_penalty clip((length - (room - L)) / L, 0, 1), L `overlong_tokens`, room the most tokens a completion
    may have (DAPO, arXiv 2503.14476)."""
    over = (length - (room - config.overlong_tokens)).astype(jnp.float32) / config.overlong_tokens
    return config.overlong_penalty * jnp.clip(over, 0.0, 1.0)


def compared_rewards(
    rollout: RolloutScores, shaped: Float[Array, "B G"], config: TGRPOConfig, beside: Beside
) -> Float[Array, "B G"]:
    """What advantages compare: shaped rewards, their parts combined as `combine` says, less penalties; 0 for
    completions without a reward."""
    if beside.parts is not None:
        assert beside.weights is not None
        shaped = shaped - rollout.reward + normalised_sum(beside.parts, beside.weights, config, rollout.scored)
    if beside.penalty is not None:
        shaped = shaped - beside.penalty
    counted = rollout.valid[:, None] if rollout.scored is None else rollout.valid[:, None] & rollout.scored
    return jnp.where(counted, shaped, 0.0)


def advantages(rollout: RolloutScores, config: TGRPOConfig, beside: Beside = NOTHING_BESIDE) -> Advantages:
    """From a rollout's scores to what the loss takes: signal, shaped rewards, advantages and group weights."""
    signal = temporal_signal(rollout, config)
    shaped = shaped_rewards(rollout, signal, config)
    rewards = compared_rewards(rollout, shaped, config, beside)
    scored = rollout.scored
    advantage = group_advantages(rewards, rollout.accuracy, signal, rollout.valid, config, beside.divisor, scored)
    if beside.credit is not None:
        assert beside.credited is not None
        right = correct(rollout.accuracy, config) > 0.0
        right = right if scored is None else right & scored
        term = completion_credit(beside.credit, right, beside.credited, config)
        advantage = advantage + jnp.where(rollout.valid[:, None], term, 0.0)
    used = rollout.valid
    if config.drop_zero_variance:
        used &= jnp.any(advantage != 0.0, axis=1)
    return Advantages(advantage, shaped, signal, used.astype(jnp.float32))


def loss_mask(mask: Bool[Array, "B G C"], weight: Float[Array, " B"]) -> Bool[Array, "B G C"]:
    """Completion tokens of the groups that enter the loss."""
    return mask & (weight > 0.0)[:, None, None]


def needed_tokens(
    mask: Bool[Array, "B G C"], advantage: Float[Array, "B G"], config: TGRPOConfig
) -> Bool[Array, "B G C"]:
    """Of the tokens in the loss those whose log-probabilities it depends on: without KL and entropy bonus not those of
    completions without any advantage, which are 0 in it whatever they are, and count in its denominator all the
    same."""
    every = config.beta > 0 or config.has_entropy_bonus
    return mask if every else mask & (advantage != 0.0)[:, :, None]


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
