"""Completions that no reward could say anything of: a group's numbers are those of the others, by torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tgrpo_cases import make_rollout

from jvr1.rl import tgrpo
from jvr1.rl.tgrpo import TGRPOConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")
advantages = jax.jit(tgrpo.advantages, static_argnames="config")
statistics = jax.jit(tgrpo.group_statistics, static_argnames="config")
CONFIG = TGRPOConfig(temporal_reward=0.3, length_reward=0.2, alpha=0.7)
PROMPTS = 200


@functools.cache
def rollout():
    rng = np.random.default_rng(3)
    scored = rng.random((PROMPTS, 8)) < rng.choice([0.0, 0.2, 0.7, 1.0], (PROMPTS, 1))
    made = make_rollout(1, PROMPTS, graded=True)
    hidden = {name: jnp.where(scored, getattr(made, name), jnp.nan) for name in ("accuracy", "reward")}
    return made._replace(scored=jnp.asarray(scored), **hidden)


def of_group(b: int, config: TGRPOConfig) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rewards, advantages and signal of the scored completions alone, written again in double."""
    made = rollout()
    keep = torch.tensor(np.asarray(made.scored)[b])
    a, base, length = (torch.tensor(np.asarray(x)[b]).double()[keep] for x in (made.accuracy, made.reward, made.length))
    right, signal = (a > 0.5).double(), 0.0
    if len(a) and bool(made.is_video[b]) and int(made.distinct_frames[b]) >= 4:
        signal = max(0.0, float(a.mean()) - float(np.asarray(made.shuffled_accuracy, np.float64)[b].mean()))
    paid = 1 < int(right.sum()) < len(a)
    rewards = base + config.temporal_reward * signal * right
    rewards = rewards + 0.2 * right * (paid & (length >= 320) & (length <= 512))
    spread = rewards.std(unbiased=True) if len(a) > 1 else torch.zeros(())
    centred = rewards - rewards.mean()
    if config.normalise_std:
        centred = centred / (spread + 1e-4)
    return rewards, centred + config.alpha * signal * (right - right.mean()), signal


@pytest.mark.parametrize("normalise", [True, False])
def test_the_others_are_a_group_by_themselves(normalise):
    config = TGRPOConfig(temporal_reward=0.3, length_reward=0.2, alpha=0.7, normalise_std=normalise)
    made = rollout()
    result = advantages(made, config)
    sizes = set()
    for b in range(PROMPTS):
        keep = np.asarray(made.scored)[b] & bool(made.valid[b])
        sizes.add(int(keep.sum()))
        got = np.asarray(result.advantage)[b]
        np.testing.assert_array_equal(got[~keep], 0)
        np.testing.assert_array_equal(np.asarray(result.reward)[b][~keep], 0)
        if keep.any():
            rewards, advantage, signal = of_group(b, config)
            np.testing.assert_allclose(np.asarray(result.reward)[b][keep], rewards.numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got[keep], advantage.numpy(), rtol=2e-5, atol=2e-5)
            assert float(result.signal[b]) == pytest.approx(signal, abs=1e-6)
        else:
            assert float(result.signal[b]) == 0
    assert sizes >= {0, 1, 2, 8}


def test_one_failed_call_among_equal_rewards_moves_nothing():
    """It scored 0 before, and so had an advantage of -2.47."""
    equal = make_rollout(0, 1)._replace(
        accuracy=jnp.ones((1, 8)), reward=jnp.asarray([[2.0] * 7 + [0.0]]), valid=jnp.ones(1, bool),
        scored=jnp.asarray([[True] * 7 + [False]]),
    )  # fmt: skip
    config = TGRPOConfig(length_reward=0.0)
    np.testing.assert_array_equal(advantages(equal, config).advantage, np.zeros((1, 8)))
    old = advantages(equal._replace(scored=jnp.ones((1, 8), bool)), config).advantage
    assert float(old[0, 7]) == pytest.approx(-2.4745, abs=1e-3)


def test_where_all_are_scored_it_is_as_without_a_mask():
    made = make_rollout(5, PROMPTS, graded=True)
    masked = made._replace(scored=jnp.ones((PROMPTS, 8), bool))
    plain, same = (advantages(x, CONFIG) for x in (made, masked))
    np.testing.assert_allclose(plain.advantage, same.advantage, rtol=1e-5, atol=1e-5)
    one, other = (statistics(x, plain, CONFIG) for x in (made, masked))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5)


def test_statistics_are_of_the_scored():
    made = rollout()
    found = statistics(made, advantages(made, CONFIG), CONFIG)
    keep = np.asarray(made.scored) & np.asarray(made.valid)[:, None]
    some = keep.any(axis=1)
    accuracy = np.asarray(made.accuracy, np.float64)
    means = [accuracy[b][keep[b]].mean() for b in np.flatnonzero(some)]
    assert float(found["accuracy"].total / found["accuracy"].weight) == pytest.approx(np.mean(means), rel=1e-5)
    right = [(accuracy[b][keep[b]] > 0.5).all() for b in np.flatnonzero(some)]
    assert float(found["all_right"].total / found["all_right"].weight) == pytest.approx(np.mean(right), rel=1e-5)
    assert float(found["reward"].weight) == keep.sum()
