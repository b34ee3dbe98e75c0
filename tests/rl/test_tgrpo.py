"""T-GRPO against torch: the reference's formulas from the paper and its code's behaviour; our bonus's properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tgrpo_cases import make_rollout, make_tokens

from jvr1.errors import UserError
from jvr1.rl import tgrpo
from jvr1.rl.objectives import Mean, loss_denominator, policy_loss, sampling_gap
from jvr1.rl.tgrpo import (
    RolloutScores,
    TGRPOConfig,
    group_advantages,
    loss_mask,
    shaped_rewards,
    temporal_signal,
)

advantages = jax.jit(tgrpo.advantages, static_argnames="config")
group_statistics = jax.jit(tgrpo.group_statistics, static_argnames="config")

pytestmark = pytest.mark.usefixtures("strict_dtypes")

VIDEO_R1 = TGRPOConfig(
    gate="reference",
    factor=0.8,
    min_distinct_frames=0,
    alpha=0.0,
    temporal_reward=0.3,
    correct_threshold=0.1,
    length_all_right=True,
)


# --- the reference, one prompt at a time in torch ---------------------------------------------------


def torch_rewards(rollout: RolloutScores, b: int) -> torch.Tensor:
    a, base, length = (torch.tensor(np.asarray(x)[b]) for x in (rollout.accuracy, rollout.reward, rollout.length))
    rewards = base.clone()
    if bool(rollout.is_video[b]):
        twin = torch.tensor(np.asarray(rollout.shuffled_accuracy)[b])
        if a.mean() >= 0.8 * twin.mean():
            rewards[a > 0.1] += 0.3
    if int((a > 0.1).sum()) > 1:
        rewards[(a > 0.1) & (length >= 320) & (length <= 512)] += 0.2
    return rewards


def torch_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """In double: torch's own fp32 mean of 2.0 and 2.2 is off by 2e-6 after the division."""
    rewards = rewards.double()
    return (rewards - rewards.mean()) / (rewards.std(unbiased=True) + 1e-4)


def torch_loss(logp: torch.Tensor, ref: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One prompt: mean over completions of the mean over tokens of -(ratio A - 0.04 KL)."""
    x = (ref - logp).clamp(-10, 10)
    kl = x.exp() - x - 1
    token = -((logp - logp.detach()).exp() * advantage[:, None] - 0.04 * kl)
    return torch.stack([row[m].mean() for row, m in zip(token, mask, strict=True)]).mean()


@pytest.mark.parametrize("graded", [False, True])
def test_reference_rewards_and_advantages(graded):
    rollout = make_rollout(1, 200, graded=graded)
    result = advantages(rollout, VIDEO_R1)
    for b in range(200):
        rewards = torch_rewards(rollout, b)
        advantage = torch_advantages(rewards)
        if not bool(rollout.valid[b]):
            rewards, advantage = torch.zeros(8), torch.zeros(8)
        np.testing.assert_allclose(result.reward[b], rewards.numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result.advantage[b], advantage.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result.weight, np.asarray(rollout.valid, np.float32))


def test_reference_loss_and_gradient():
    """The mean over valid prompts of the reference's one-prompt loss, and d loss / d log-probability."""
    rollout = make_rollout(2, 6)._replace(valid=jnp.asarray([True, True, False, True, True, True]))
    logp, _, ref, mask = make_tokens(3, (6, 8, 40), spread=4.0)  # wide enough for the clip at 10
    ref[0, 0, :3] = logp[0, 0, :3] + np.float32([11.0, -12.0, 9.5])
    result = advantages(rollout, VIDEO_R1)
    inside = loss_mask(jnp.asarray(mask), result.weight)
    denominator = loss_denominator(inside, VIDEO_R1)

    def loss(lp):
        return policy_loss(lp, None, jnp.asarray(ref), result.advantage, inside, denominator, VIDEO_R1)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logp))
    lp = torch.tensor(logp, requires_grad=True)
    rows = [b for b in range(6) if bool(rollout.valid[b])]
    expected = torch.stack(
        [
            torch_loss(lp[b], torch.tensor(ref[b]), torch_advantages(torch_rewards(rollout, b)), torch.tensor(mask[b]))
            for b in rows
        ]
    ).mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, lp.grad.numpy(), rtol=1e-6, atol=1e-6)
    assert float(denominator) == 40.0


# --- signal and shaped rewards ----------------------------------------------------------------------------------------


def one_group(ordered, shuffled, **changes) -> RolloutScores:
    g, s = len(ordered), len(shuffled)
    rollout = RolloutScores(
        accuracy=jnp.asarray([ordered], jnp.float32),
        reward=jnp.asarray([ordered], jnp.float32),
        length=jnp.full((1, g), 400, jnp.int32),
        shuffled_accuracy=jnp.asarray([shuffled], jnp.float32),
        shuffled_valid=jnp.ones((1, s), bool),
        valid=jnp.asarray([True]),
        is_video=jnp.asarray([True]),
        distinct_frames=jnp.asarray([16], jnp.int32),
    )
    return rollout._replace(**changes)


SIGNALS = [
    ("gap", {}, 0.75, 0.25, 0.5),
    ("gap", {"margin": 0.1}, 0.75, 0.25, 0.4),
    ("gap", {"factor": 2.0}, 0.75, 0.25, 0.25),
    ("gap", {}, 0.25, 0.75, 0.0),
    ("gap", {"margin": -3.0}, 0.75, 0.25, 1.0),
    ("reference", {}, 0.75, 0.75, 1.0),
    ("reference", {}, 0.0, 0.0, 1.0),
    ("reference", {"factor": 0.8}, 0.5, 0.75, 0.0),
    ("reference", {"factor": 0.5}, 0.5, 1.0, 1.0),
    ("reference", {"margin": 0.25}, 0.75, 0.75, 0.0),
    ("strict", {}, 0.75, 0.75, 0.0),
    ("strict", {}, 0.75, 0.5, 1.0),
    ("none", {}, 1.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("gate", "switches", "ordered", "shuffled", "expected"), SIGNALS)
def test_signal(gate, switches, ordered, shuffled, expected):
    config = TGRPOConfig(gate=gate, **switches)
    right, twin = int(ordered * 8), int(shuffled * 4)
    rollout = one_group([1.0] * right + [0.0] * (8 - right), [1.0] * twin + [0.0] * (4 - twin))
    np.testing.assert_allclose(temporal_signal(rollout, config), [expected], rtol=1e-6)


@pytest.mark.parametrize("gate", ["gap", "strict", "reference"])
@pytest.mark.parametrize(
    "changes",
    [
        {"is_video": jnp.asarray([False])},
        {"valid": jnp.asarray([False])},
        {"distinct_frames": jnp.asarray([3], jnp.int32)},
        {"shuffled_valid": jnp.zeros((1, 4), bool), "shuffled_accuracy": jnp.full((1, 4), jnp.nan)},
    ],
    ids=["image", "invalid", "few frames", "no shuffled rows"],
)
def test_no_signal(gate, changes):
    config = TGRPOConfig(gate=gate)
    assert float(temporal_signal(one_group([1.0] * 8, [0.0] * 4), config)[0]) == 1.0
    assert float(temporal_signal(one_group([1.0] * 8, [0.0] * 4, **changes), config)[0]) == 0.0


def test_signal_skips_invalid_shuffled_rows():
    rollout = one_group([1.0] * 8, [1.0, 0.0, jnp.nan, 1.0])
    rollout = rollout._replace(shuffled_valid=jnp.asarray([[True, True, False, False]]))
    np.testing.assert_allclose(temporal_signal(rollout, TGRPOConfig()), [0.5])


def length_bonus(accuracy, length, **changes):
    switches = {k: changes.pop(k) for k in list(changes) if k.startswith("length_")}
    rollout = one_group(accuracy, [0.0], length=jnp.asarray([length], jnp.int32), **changes)
    return np.asarray(shaped_rewards(rollout, jnp.zeros(1), TGRPOConfig(**switches)) - rollout.reward)[0]


def test_length_bonus():
    lengths = [319, 320, 512, 513]
    np.testing.assert_allclose(length_bonus([1, 1, 0, 1], lengths), [0, 0.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(length_bonus([0, 1, 0, 0], lengths), 0)  # one correct is not enough
    np.testing.assert_allclose(length_bonus([1, 1, 1, 1], lengths), 0)  # a group without a wrong answer
    all_right = length_bonus([1, 1, 1, 1], lengths, length_all_right=True)
    np.testing.assert_allclose(all_right, [0, 0.2, 0.2, 0], atol=1e-6)
    image = {"is_video": jnp.asarray([False])}
    np.testing.assert_allclose(length_bonus([1, 1, 0, 1], lengths, **image), [0, 0.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(length_bonus([1, 1, 0, 1], lengths, length_images=False, **image), 0)
    other = length_bonus([1, 1, 0, 1], lengths, length_reward=0.5, length_min=319, length_max=319)
    np.testing.assert_allclose(other, [0.5, 0, 0, 0], atol=1e-6)


# --- our bonus --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_bonus_properties(size, alpha):
    rollout = make_rollout(4, 1000, size=size, graded=True)
    terms = {}
    for normalise in (True, False):
        config = TGRPOConfig(alpha=alpha, normalise_std=normalise)
        plain = TGRPOConfig(alpha=0.0, normalise_std=normalise)
        terms[normalise] = np.asarray(advantages(rollout, config).advantage - advantages(rollout, plain).advantage)
    term = terms[True]
    correct = np.asarray(rollout.accuracy) > 0.5
    signal = np.asarray(temporal_signal(rollout, config))
    np.testing.assert_allclose(term, terms[False], atol=2e-6)  # unchanged by normalisation
    np.testing.assert_allclose(term.sum(axis=1), 0, atol=1e-5)
    assert np.abs(term).max() <= alpha + 1e-6
    assert np.abs(term).max() > 0.1 * alpha
    np.testing.assert_allclose(term[correct.all(axis=1) | ~correct.any(axis=1)], 0, atol=1e-6)
    expected = alpha * signal[:, None] * (correct - correct.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(term, expected, atol=3e-6)


def test_reference_bonus_cancels_where_ours_stays():
    """Why we depart: with 0/1 rewards the reference's +0.3 is divided away."""
    rollout = one_group([1.0] * 4 + [0.0] * 4, [0.0] * 4)
    without = advantages(rollout, TGRPOConfig(gate="none", length_reward=0.0)).advantage
    inside = advantages(rollout, TGRPOConfig(gate="reference", temporal_reward=0.3, alpha=0.0, length_reward=0.0))
    ours = advantages(rollout, TGRPOConfig(alpha=0.3, length_reward=0.0)).advantage
    np.testing.assert_allclose(inside.advantage, without, atol=1e-4)
    np.testing.assert_allclose(ours - without, [[0.075] * 4 + [-0.075] * 4], atol=1e-6)


# --- advantages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_advantage_variants(normalise, unbiased):
    config = TGRPOConfig(normalise_std=normalise, unbiased_std=unbiased, std_eps=0.01)
    rng = np.random.default_rng(5)
    rewards, signal = rng.random((20, 8), np.float32) * 2, rng.random(20, np.float32)
    accuracy = rng.random((20, 8), np.float32)
    got = group_advantages(*map(jnp.asarray, (rewards, accuracy, signal)), jnp.ones(20, bool), config)
    r, c = rewards.astype(np.float64), accuracy > 0.5
    expected = r - r.mean(1, keepdims=True)
    if normalise:
        expected /= r.std(1, ddof=int(unbiased), keepdims=True) + 0.01
    expected += 0.3 * signal[:, None] * (c - c.mean(1, keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(size):
    rewards = jnp.full((1, size), 1.1 + 0.2, jnp.float32)
    got = group_advantages(rewards, jnp.ones((1, size)), jnp.ones(1), jnp.ones(1, bool), TGRPOConfig())
    np.testing.assert_array_equal(got, np.zeros((1, size)))


def test_invalid_rows_change_nothing():
    """Garbage in an invalid row stays out of advantages, statistics, loss and gradient."""
    rollout = make_rollout(6, 8)._replace(valid=jnp.arange(8) % 3 != 0)
    bad = ~np.asarray(rollout.valid)
    spoiled = rollout._replace(
        accuracy=rollout.accuracy.at[bad].set(jnp.nan),
        reward=rollout.reward.at[bad].set(jnp.inf),
        shuffled_accuracy=rollout.shuffled_accuracy.at[bad].set(jnp.nan),
    )
    config = TGRPOConfig()
    first, second = advantages(rollout, config), advantages(spoiled, config)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(
        np.testing.assert_array_equal,
        group_statistics(rollout, first, config),
        group_statistics(spoiled, second, config),
    )
    logp, old, ref, mask = make_tokens(7, (8, 8, 20))
    inside = loss_mask(jnp.asarray(mask), first.weight)

    def loss(lp, old, ref):
        return policy_loss(lp, old, ref, first.advantage, inside, loss_denominator(inside, config), config)[0]

    clean = jax.value_and_grad(loss)(*map(jnp.asarray, (logp, old, ref)))
    for array in (logp, old, ref):
        array[~np.asarray(inside)] = np.nan
    dirty = jax.value_and_grad(loss)(*map(jnp.asarray, (logp, old, ref)))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_drop_zero_variance():
    accuracy = jnp.asarray([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    rollout = one_group([1.0, 1.0], [0.0])._replace(
        accuracy=accuracy,
        reward=accuracy,
        length=jnp.full((4, 2), 400, jnp.int32),
        shuffled_accuracy=jnp.zeros((4, 1)),
        shuffled_valid=jnp.ones((4, 1), bool),
        valid=jnp.asarray([True, True, True, False]),
        is_video=jnp.ones(4, bool),
        distinct_frames=jnp.full(4, 16, jnp.int32),
    )
    np.testing.assert_array_equal(advantages(rollout, TGRPOConfig()).weight, [1, 1, 1, 0])
    config = TGRPOConfig(drop_zero_variance=True)
    result = advantages(rollout, config)
    np.testing.assert_array_equal(result.weight, [0, 1, 0, 0])
    inside = loss_mask(jnp.ones((4, 2, 3), bool), result.weight)
    assert float(loss_denominator(inside, config)) == 2.0


# --- masks and statistics ---------------------------------------------------------------------------------------------


def test_sampling_gap():
    mask = jnp.asarray([[[True, True, False]]])
    gap, largest = sampling_gap(jnp.asarray([[[-1.0, -2.0, 9.0]]]), jnp.asarray([[[-1.5, -2.0, jnp.nan]]]), mask)
    assert gap == Mean(0.5, 2.0)
    assert float(largest) == 0.5


def test_group_statistics():
    """A video above its twin, an image all right, a video all wrong below its twin, an invalid row."""
    accuracy = jnp.asarray([[1.0, 1.0, 1.0, 0.0], [1.0] * 4, [0.0] * 4, [1.0] * 4])
    rollout = RolloutScores(
        accuracy=accuracy,
        reward=accuracy + 1.0,
        length=jnp.asarray([[10, 20, 30, 40], [5] * 4, [5] * 4, [999] * 4], jnp.int32),
        shuffled_accuracy=jnp.asarray([[0.5, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]),
        shuffled_valid=jnp.asarray([[True, True], [False, False], [True, True], [True, True]]),
        valid=jnp.asarray([True, True, True, False]),
        is_video=jnp.asarray([True, False, True, True]),
        distinct_frames=jnp.full(4, 8, jnp.int32),
    )
    config = TGRPOConfig()
    result = advantages(rollout, config)
    stats = group_statistics(rollout, result, config)
    means = {name: float(s.total / s.weight) for name, s in stats.items()}
    expected = {
        "accuracy": 1.75 / 3,
        "reward": 1.75 / 3 + 1,
        "all_right": 1 / 3,
        "all_wrong": 1 / 3,
        "zero_variance": 2 / 3,
        "advantage": 0.0,
        "temporal/ordered": 0.375,
        "temporal/shuffled": 0.375,
        "temporal/gap": 0.0,
        "temporal/signal": 0.25,
        "temporal/bonus_rate": 0.5,
        "length": 140 / 12,
    }
    squares = np.square(np.asarray(result.advantage)[:3]).mean()
    assert means == pytest.approx(expected | {"advantage_square": squares}, abs=1e-6)
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], rollout)
        halves.append(group_statistics(part, advantages(part, config), config))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), stats, jax.tree.map(jnp.add, *halves)
    )


@pytest.mark.parametrize(
    ("switches", "word"),
    [
        ({"gate": "always"}, "gap, strict, reference, none"),
        ({"ratio": "tokens"}, "token, sequence"),
        ({"kl": "k4"}, "k1, k2, k3"),
        ({"aggregation": "mean"}, "sequence, token, constant"),
        ({"beta": -0.1}, r"rl\.beta is -0\.1; it must be at least 0"),
        ({"alpha": float("nan")}, r"rl\.alpha is nan; it must be a number"),
        ({"clip_low": 1.0}, r"rl\.clip_low is 1\.0; it must be at least 0 and below 1, or None"),
        ({"std_eps": 0.0}, "1e-4"),
        ({"length_min": 600}, r"between 0 and rl\.length_max, 512"),
        ({"max_length": 0}, "positive"),
    ],
)
def test_impossible_config(switches, word):
    with pytest.raises(UserError, match=word):
        TGRPOConfig(**switches)
