"""The policy loss: every variant against float64 torch, and one gradient for any split into microbatches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tgrpo_cases import make_rollout, make_tokens

from jvr1.rl import tgrpo
from jvr1.rl.tgrpo import TGRPOConfig, loss_denominator, loss_mask, policy_loss

advantages = jax.jit(tgrpo.advantages, static_argnames="config")

pytestmark = pytest.mark.usefixtures("strict_dtypes")


# --- loss variants ----------------------------------------------------------------------------------------------------

CLIPS = [(None, None), (0.2, 0.2), (0.2, 0.28), (None, 0.1)]
VARIANTS = list(itertools.product(["sequence", "token", "constant"], ["token", "sequence"], CLIPS, [True, False]))
KINDS = [(*variant, kl) for variant, kl in zip(VARIANTS, itertools.cycle(["k1", "k2", "k3"]))]  # period 3 in 8


def plain_loss(logp, old, ref, advantage, mask, config: TGRPOConfig):
    """The same quantities in float64 torch, completion by completion, and the number of clipped tokens."""
    losses, tokens, clipped = [], 0, 0
    for i in np.ndindex(*mask.shape[:2]):
        m = torch.tensor(mask[i])
        lp = logp[i][m]
        before = lp.detach() if old is None else torch.tensor(old[i], dtype=torch.float64)[m]
        ratio = (lp - before).exp() if config.ratio == "token" else (lp - before).mean().exp().expand(len(lp))
        a = float(advantage[i])
        low = 0.0 if config.clip_low is None else 1 - config.clip_low
        high = float("inf") if config.clip_high is None else 1 + config.clip_high
        gain = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
        clipped += int((gain < ratio * a).sum())
        x = torch.tensor(ref[i], dtype=torch.float64)[m] - lp
        kl = {"k1": -x, "k2": x**2 / 2, "k3": x.exp() - x - 1}[config.kl]
        token = -(gain - config.beta * kl)
        losses.append(token.mean() if config.aggregation == "sequence" else token.sum())
        tokens += len(lp)
    per = {"sequence": len(losses), "token": tokens, "constant": len(losses) * config.max_length}
    return sum(losses) / per[config.aggregation], clipped, tokens


@pytest.mark.parametrize(("aggregation", "ratio", "clip", "on_policy", "kl"), KINDS)
def test_loss_variants(aggregation, ratio, clip, on_policy, kl):
    config = TGRPOConfig(
        aggregation=aggregation, ratio=ratio, kl=kl, clip_low=clip[0], clip_high=clip[1], beta=0.1, max_length=30
    )
    logp, old, ref, mask = make_tokens(8, (2, 4, 16))
    old = None if on_policy else old
    advantage = np.random.default_rng(9).standard_normal((2, 4)).astype(np.float32)
    lp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    expected, clipped, tokens = plain_loss(lp, old, ref, advantage, mask, config)
    expected.backward()

    def loss(lp):
        m = jnp.asarray(mask)
        before = None if old is None else jnp.asarray(old)
        return policy_loss(lp, before, jnp.asarray(ref), jnp.asarray(advantage), m, loss_denominator(m, config), config)

    (value, stats), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logp))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, lp.grad.numpy(), rtol=2e-6, atol=1e-6)
    assert int(stats["clip_low"].total + stats["clip_high"].total) == clipped
    assert int(stats["clip_low"].weight) == tokens


@pytest.mark.parametrize(("aggregation", "ratio"), [("sequence", "token"), ("token", "sequence")])
def test_without_kl_completions_without_advantage_need_no_scores(aggregation, ratio):
    """They count in the denominator; with KL all tokens in the loss are needed."""
    config = TGRPOConfig(aggregation=aggregation, ratio=ratio, beta=0.0)
    logp, old, ref, mask = make_tokens(8, (2, 4, 16))
    advantage = np.random.default_rng(9).standard_normal((2, 4)).astype(np.float32)
    advantage[0], advantage[1, 2] = 0, 0
    lp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    expected, _, _ = plain_loss(lp, old, ref, advantage, mask, config)
    expected.backward()
    every = jnp.asarray(mask)
    needed = tgrpo.needed_tokens(every, jnp.asarray(advantage), config)
    np.testing.assert_array_equal(needed.any(-1), advantage != 0)
    unread = jnp.where(needed, jnp.asarray(logp), jnp.nan)

    def loss(lp):
        denominator = loss_denominator(every, config)
        return policy_loss(lp, jnp.asarray(old), None, jnp.asarray(advantage), needed, denominator, config)[0]

    value, grad = jax.value_and_grad(loss)(unread)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, lp.grad.numpy(), rtol=2e-6, atol=1e-6)
    with_kl = tgrpo.needed_tokens(every, jnp.asarray(advantage), TGRPOConfig(beta=0.1))
    np.testing.assert_array_equal(with_kl, mask)


def test_loss_without_reference_and_extreme_ratio():
    config = TGRPOConfig(clip_low=0.2, clip_high=0.2)
    logp, _, _, mask = make_tokens(10, (1, 2, 8))
    old = logp - 200.0
    args = [jnp.zeros((1, 2)), jnp.asarray(mask), jnp.asarray(2.0), config]
    value, grad = jax.value_and_grad(lambda lp: policy_loss(lp, jnp.asarray(old), None, *args)[0])(jnp.asarray(logp))
    assert float(value) == 0.0
    np.testing.assert_array_equal(grad, 0)


def test_bound_at_one_keeps_the_gradient():
    """clip_low=0 on policy: the ratio lies on its bound, and the gradient is still the whole one."""
    config = TGRPOConfig(clip_low=0.0, clip_high=0.0)
    mask = jnp.ones((1, 1, 1), bool)
    grad = jax.grad(lambda lp: policy_loss(lp, None, None, jnp.ones((1, 1)), mask, jnp.asarray(1.0), config)[0])(
        jnp.zeros((1, 1, 1))
    )
    assert float(grad.squeeze()) == -1.0


def test_bfloat16_log_probabilities_are_summed_in_fp32():
    logp, old, ref, mask = (jnp.asarray(x) for x in make_tokens(11, (2, 4, 64)))
    low = [x.astype(jnp.bfloat16) for x in (logp, old, ref)]
    config = TGRPOConfig()
    advantage, den = jnp.ones((2, 4)), loss_denominator(mask, config)
    value, _ = policy_loss(*low, advantage, mask, den, config)
    same, _ = policy_loss(*(x.astype(jnp.float32) for x in low), advantage, mask, den, config)
    assert value.dtype == jnp.float32
    assert float(value) == float(same)


# --- microbatches -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, has_aux=True)
def linear_policy_loss(theta, features, noise, ref, advantage, inside, denominator, config):
    """The loss of a policy whose log-probabilities are a function of five parameters."""
    logp = -jax.nn.softplus(jnp.einsum("bgcd,d->bgc", features, theta))
    old = jax.lax.stop_gradient(logp) + 0.5 * noise
    return policy_loss(logp, old, ref, advantage, inside, denominator, config)


@pytest.mark.parametrize(("aggregation", "drop"), [("sequence", True), ("token", False), ("constant", True)])
def test_microbatches_give_one_gradient(aggregation, drop):
    """1x8 = 2x4 = 4x2 = 8x1, unequal lengths and paddings, invalid rows: one of the microbatches has no valid row."""
    config = TGRPOConfig(aggregation=aggregation, drop_zero_variance=drop, clip_low=0.2, clip_high=0.28)
    rollout = make_rollout(12, 8)._replace(valid=jnp.asarray([True, True, True, False, True, True, False, False]))
    rng = np.random.default_rng(13)
    features = rng.standard_normal((8, 8, 24, 5)).astype(np.float32)
    theta = jnp.asarray(rng.standard_normal(5), jnp.float32)
    longest = np.asarray([24, 3, 12, 24, 7, 24, 12, 2])
    mask = np.arange(24) < rng.integers(1, longest[:, None] + 1, (8, 8))[..., None]
    noise, ref = (rng.standard_normal((8, 8, 24)).astype(np.float32) for _ in range(2))

    def accumulated(size: int):
        parts = []
        for rows in (slice(start, start + size) for start in range(0, 8, size)):
            width = 12 if longest[rows].max() <= 12 else 24  # microbatches of two buckets
            result = advantages(jax.tree.map(lambda x, rows=rows: x[rows], rollout), config)
            inside = loss_mask(jnp.asarray(mask[rows, :, :width]), result.weight)
            inputs = (jnp.asarray(x[rows, :, :width]) for x in (features, noise, ref))
            parts.append((*inputs, result.advantage, inside))
        denominator = sum(loss_denominator(part[-1], config) for part in parts)
        results = [linear_policy_loss(theta, *part, denominator, config) for part in parts]
        return functools.reduce(functools.partial(jax.tree.map, jnp.add), results)

    whole = accumulated(8)
    assert float(jnp.abs(whole[1]).max()) > 1e-3
    for size in (4, 2, 1):
        close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
        jax.tree.map(close, whole, accumulated(size))


def test_step_without_a_valid_row_is_zero():
    config = TGRPOConfig()
    rollout = make_rollout(15, 2)._replace(valid=jnp.zeros(2, bool))
    result = advantages(rollout, config)
    logp, old, ref, mask = (jnp.asarray(x) for x in make_tokens(16, (2, 8, 8)))
    inside = loss_mask(mask, result.weight)
    den = loss_denominator(inside, config)
    value, grad = jax.value_and_grad(lambda lp: policy_loss(lp, old, ref, result.advantage, inside, den, config)[0])(
        logp
    )
    assert float(den) == float(value) == float(jnp.abs(grad).max()) == 0.0
