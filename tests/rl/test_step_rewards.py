"""What advantages depend on beyond their group's rewards: numpy and torch, formulas written again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tgrpo_cases import make_rollout

from jvr1.rl import spread, tgrpo
from jvr1.rl.tgrpo import Beside, TGRPOConfig, overlong_penalty

advantages = jax.jit(tgrpo.advantages, static_argnames="config")
PLAIN = {"alpha": 0.0, "length_reward": 0.0, "gate": "none"}

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_the_overlong_penalty_is_dapo_s():
    """Soft overlong punishment: 0 up to L_max - L_cache, then linear, -1 at L_max = 100, of 20 tokens."""
    config = TGRPOConfig(overlong="penalty", overlong_tokens=20, overlong_penalty=0.5)
    length = np.asarray([[1, 79, 80, 81, 90, 99, 100]])
    dapo = [0 if n <= 80 else (80 - n) / 20 for n in length[0]]
    np.testing.assert_allclose(
        -overlong_penalty(jnp.asarray(length), 100, config)[0], 0.5 * np.asarray(dapo), rtol=1e-6
    )


def test_a_penalty_lowers_what_is_compared_and_not_what_is_logged():
    rollout = make_rollout(1, 20)
    penalty = np.random.default_rng(2).random((20, 8)).astype(np.float32)
    config = TGRPOConfig(**PLAIN)
    got = advantages(rollout, config, Beside(penalty=jnp.asarray(penalty)))
    rewards = np.asarray(rollout.reward, np.float64) - penalty
    want = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    valid = np.asarray(rollout.valid)
    np.testing.assert_allclose(got.advantage, np.where(valid[:, None], want, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.reward, advantages(rollout, config).reward)


def test_rewards_normalised_each_by_itself_are_gdpo_s():
    """Each reward within its group, weighted, summed, then over the batch; torch, as TRL's normalize_then_sum."""
    rng = np.random.default_rng(3)
    parts, weights = rng.choice([0.0, 0.5, 1.0], (6, 8, 3)).astype(np.float32), np.float32([1.0, 0.5, 2.0])
    parts[0, :, 1] = 1.0  # a reward that all have alike says nothing
    rollout = make_rollout(4, 6)._replace(valid=jnp.ones(6, bool), reward=jnp.asarray(parts @ weights))
    config = TGRPOConfig(**PLAIN, combine="normalise", std_of="batch")
    theirs = torch.tensor(parts).double()
    each = (theirs - theirs.mean(1, keepdim=True)) / (theirs.std(1, keepdim=True) + 1e-4)
    total = (each * torch.tensor(weights).double()).sum(-1)
    want = (total - total.mean()) / (total.std() + 1e-4)

    given = Beside(jnp.asarray(parts), jnp.asarray(np.tile(weights, (6, 1))))
    compared = tgrpo.compared_rewards(rollout, rollout.reward, config, given)
    sums = spread.reward_sums(("any", row) for row in np.asarray(compared))
    std = spread.batch_std(sums, unbiased=True)
    got = advantages(rollout, config, given._replace(divisor=jnp.full(6, std, jnp.float32)))
    np.testing.assert_allclose(got.advantage, want, rtol=1e-5, atol=1e-5)


def test_a_reward_without_an_opinion_is_no_term_and_completions_without_any_reward_take_no_part():
    """nan in one reward of two; completion 5 is not scored: numpy over what is left."""
    rng = np.random.default_rng(5)
    parts, weights = rng.normal(size=(3, 8, 2)).astype(np.float32), np.float32([[1, 2], [1, 0], [0.5, 3]])
    parts[0, 2, 1] = parts[2, :, 1] = np.nan
    scored = np.ones((3, 8), bool)
    scored[:, 5] = False
    rollout = make_rollout(4, 3)._replace(valid=jnp.ones(3, bool), scored=jnp.asarray(scored))
    config = TGRPOConfig(**PLAIN, combine="normalise", normalise_std=False)
    want = np.zeros((3, 8))
    for b in range(3):
        for k in range(2):
            here = scored[b] & ~np.isnan(parts[b, :, k])
            if here.any():
                values = parts[b, here, k].astype(np.float64)
                want[b, here] += weights[b, k] * (values - values.mean()) / (values.std(ddof=1) + 1e-4)
        want[b, scored[b]] -= want[b, scored[b]].mean()
    got = advantages(rollout, config, Beside(jnp.asarray(parts), jnp.asarray(weights)))
    np.testing.assert_allclose(got.advantage, np.where(scored, want, 0), rtol=1e-5, atol=1e-5)


def test_the_batch_s_deviation_is_torch_s_however_it_is_split():
    rewards = np.random.default_rng(5).random((9, 8)).astype(np.float32)
    kinds = ["a", "b", "a", "c", "c", "c", "a", "b", "b"]
    rows = list(zip(kinds, rewards, strict=True))
    whole = spread.joined([spread.reward_sums(rows)])
    parts = spread.joined([spread.reward_sums(rows[:2]), spread.reward_sums([]), spread.reward_sums(rows[2:])])
    for unbiased in (True, False):
        want = torch.tensor(rewards).double().std(unbiased=unbiased).item()
        assert spread.batch_std(whole, unbiased=unbiased) == pytest.approx(want, rel=1e-9)
        assert spread.batch_std(parts, unbiased=unbiased) == pytest.approx(want, rel=1e-9)


def test_a_kind_s_deviation_moves_with_its_rewards():
    """Moving averages with weights decay^(n - k), of the first two moments, step by step."""
    rng, decay = np.random.default_rng(6), 0.9
    steps = [
        {"a": rng.random((n, 4)), "b": 5 * rng.random((1, 4))} if n else {"b": rng.random((2, 4))} for n in (2, 0, 3)
    ]
    moments: spread.Moments = {}
    for step in steps:
        rows = [(kind, row) for kind, group in step.items() for row in group]
        moments = spread.moved(moments, spread.reward_sums(rows), decay)
    for kind in ("a", "b"):
        seen = [step[kind] for step in steps if kind in step]
        weights = np.asarray([decay ** (len(seen) - 1 - k) for k in range(len(seen))])
        first, second = (np.average([(r**power).mean() for r in seen], weights=weights) for power in (1, 2))
        assert spread.kind_std(moments, kind, decay) == pytest.approx(np.sqrt(second - first**2), rel=1e-9)
    constant = spread.moved({}, spread.reward_sums([("x", np.full(4, 0.7))]), decay)
    assert spread.kind_std(constant, "x", decay) == pytest.approx(0.0, abs=1e-6)
