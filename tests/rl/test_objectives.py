"""The policy loss: every objective against float64 torch, and one gradient for any split into microbatches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tgrpo_cases import make_rollout, make_tokens

from jvr1.errors import UserError
from jvr1.rl import tgrpo
from jvr1.rl.objectives import CORRECTIONS, TokenExtras, kl_penalty, loss_denominator, policy_loss, token_kl
from jvr1.rl.tgrpo import TGRPOConfig, loss_mask

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
        half = x**2 / 2
        kl = {"k1": (-x - half).detach() + half, "k2": half, "k3": x.exp() - x - 1}[config.kl]
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
    bonus = tgrpo.needed_tokens(every, jnp.asarray(advantage), TGRPOConfig(beta=0.0, entropy_weight=0.1))
    np.testing.assert_array_equal(bonus, mask)


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


# --- objectives, weights, corrections ------------------------------------------------------------------------------


def torch_gain(lp, ratio, a, config):
    """PPO with dual clip (Ye et al. 2020), CISPO (MiniMax-M1), SAPO (arXiv 2511.20347), of one completion."""
    low = 0.0 if config.clip_low is None else 1 - config.clip_low
    high = float("inf") if config.clip_high is None else 1 + config.clip_high
    if config.objective == "cispo":
        return ratio.detach().clamp(low, high) * a * lp
    if config.objective == "sapo":
        tau = config.sapo_positive if a > 0 else config.sapo_negative
        return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * a
    gain = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    return torch.maximum(gain, torch.tensor(config.clip_dual * a)) if config.clip_dual and a < 0 else gain


def torch_correction(old, sampled, config):
    """TRL's vllm_importance_sampling_mode: ratio of a token or of the sequence, truncated at the cap or 0 above it."""
    gap = old - sampled
    weight = (gap.sum().expand(len(gap)) if "sequence" in config.rollout_correction else gap).exp()
    if "truncate" in config.rollout_correction:
        return weight.clamp(max=config.rollout_cap)
    return torch.where(weight > config.rollout_cap, torch.zeros(()).double(), weight)


SWITCHES = {
    "dual clip": {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 1.3},
    "dual clip alone": {"clip_dual": 1.3},
    "cispo": {"objective": "cispo", "clip_low": 0.2, "clip_high": 0.28},
    "cispo by sequence": {"objective": "cispo", "ratio": "sequence", "clip_high": 0.05},
    "sapo": {"objective": "sapo", "sapo_positive": 1.0, "sapo_negative": 1.7},
    **{c: {"rollout_correction": c, "rollout_cap": 1.4} for c in CORRECTIONS if c != "none"},
    "entropy": {"entropy_weight": 0.3},
    "own": {"objective": "rl.own_objective:gppo", "clip_low": 0.1, "clip_high": 0.1},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_objectives_and_weights_of_tokens(name):
    """Weighted tokens keep the whole KL, and what a completion's sum is divided by."""
    config = TGRPOConfig(**SWITCHES[name], beta=0.1)
    logp, old, ref, mask = make_tokens(18, (2, 4, 16))
    rng = np.random.default_rng(19)
    advantage = rng.standard_normal((2, 4)).astype(np.float32)
    sampled = (old + 0.3 * rng.standard_normal(old.shape)).astype(np.float32)
    weight = rng.choice([0.0, 1.0, 1.7], old.shape).astype(np.float32)
    lp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    losses, corrections = [], []
    for i in np.ndindex(2, 4):
        m = torch.tensor(mask[i])
        own, before, drawn, reference, w = (torch.as_tensor(x[i]).double()[m] for x in (lp, old, sampled, ref, weight))
        ratio = (own - before).exp() if config.ratio == "token" else (own - before).mean().exp().expand(len(own))
        a = float(advantage[i])
        gain = gppo_in_torch(ratio, a, 0.1) if name == "own" else torch_gain(own, ratio, a, config)
        if config.rollout_correction != "none":
            corrections.append(torch_correction(before, drawn, config))
            gain = gain * corrections[-1]
        x = reference - own
        losses.append((-(gain * w) + 0.1 * (x.exp() - x - 1) - config.entropy_weight * own**2).mean())
    expected = sum(losses) / 8
    expected.backward()

    def loss(lp):
        m = jnp.asarray(mask)
        bonus = jnp.square(lp) if config.entropy_weight else None
        extras = TokenExtras(jnp.asarray(sampled), jnp.asarray(weight), bonus, jnp.float32(config.entropy_weight))
        rest = (jnp.asarray(old), jnp.asarray(ref), jnp.asarray(advantage), m, loss_denominator(m, config))
        return policy_loss(lp, *rest, config, extras)

    (value, stats), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logp))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, lp.grad.numpy(), rtol=2e-6, atol=1e-6)
    if corrections:
        np.testing.assert_allclose(stats["correction"].total, torch.cat(corrections).sum(), rtol=1e-5)


def gppo_in_torch(ratio, a, bound):
    """GPPO (Klear-Reasoner, arXiv 2508.07629), A times the ratio, of which what is clipped keeps a gradient."""
    kept = torch.where(ratio < 1 - bound, (1 - bound) / ratio.detach() * ratio, ratio)
    kept = torch.where(ratio > 1 + bound, (1 + bound) / ratio.detach() * ratio, kept)
    return torch.minimum(ratio * a, kept * a)


@pytest.mark.parametrize(
    ("name", "said"), [("summed", r"gave \[\]; it must be \[B,G,C\], \[1, 2, 4\]"), ("misspelt", "Attr")]
)
def test_what_is_wrong_of_an_own_objective_is_one_line(name, said):
    config = TGRPOConfig(objective=f"rl.wrong_objectives:{name}")
    one = jnp.zeros((1, 2, 4))
    with pytest.raises(UserError, match=rf"^rl\.objective='rl\.wrong_objectives:{name}' .*{said}"):
        policy_loss(one, None, None, jnp.ones((1, 2)), one == 0, jnp.float32(1), config)


def test_shares_of_clipped_tokens():
    """Ratios 0.5, 1, 2, 4 with a negative advantage, then a positive one; clipped to 0.8 and 1.2, dual at 3."""
    config = TGRPOConfig(clip_low=0.2, clip_high=0.2, clip_dual=3.0)
    old = -jnp.log(jnp.asarray([0.5, 1.0, 2.0, 4.0]))[None, None]
    old, mask = jnp.concatenate([old, old], axis=1), jnp.ones((1, 2, 4), bool)
    _, stats = policy_loss(jnp.zeros((1, 2, 4)), old, None, jnp.asarray([[-1.0, 1.0]]), mask, jnp.float32(1), config)
    shares = {name: (float(s.total), float(s.weight)) for name, s in stats.items()}
    assert shares == {"ratio": (15.0, 8.0), "clip_low": (1.0, 8.0), "clip_high": (2.0, 8.0), "clip_dual": (1.0, 8.0)}
    cispo = TGRPOConfig(objective="cispo", clip_low=0.2, clip_high=0.2)
    _, stats = policy_loss(jnp.zeros((1, 2, 4)), old, None, jnp.asarray([[-1.0, 1.0]]), mask, jnp.float32(1), cispo)
    assert (float(stats["clip_low"].total), float(stats["clip_high"].total)) == (2.0, 4.0)


def test_k1_s_gradient_is_that_of_the_kl():
    """Over all words of two softmaxes: the expectation of the estimator's gradient, and torch's of the KL itself."""
    rng = np.random.default_rng(20)
    logits, other = (rng.standard_normal(7).astype(np.float32) for _ in range(2))
    theirs = torch.tensor(logits, requires_grad=True)
    own, ref = torch.log_softmax(theirs, -1), torch.log_softmax(torch.tensor(other), -1)
    kl = (own.exp() * (own - ref)).sum()
    kl.backward()
    p = jax.nn.softmax(logits)

    def estimate(x):
        return jnp.sum(p * token_kl(jax.nn.log_softmax(x), jnp.asarray(ref.numpy()), TGRPOConfig(kl="k1")))

    value, gradient = jax.value_and_grad(estimate)(jnp.asarray(logits))
    np.testing.assert_allclose(value, kl.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_kl_in_the_reward():
    config = TGRPOConfig(beta=0.2, kl_in="reward", kl_clip=0.5)
    logp, _, ref, mask = make_tokens(21, (2, 3, 9))
    expected = 0.2 * np.where(mask, np.clip(logp.astype(np.float64) - ref, -0.5, 0.5), 0).sum(-1)
    np.testing.assert_allclose(kl_penalty(*map(jnp.asarray, (logp, ref, mask)), config), expected, rtol=1e-5)
    args = jnp.ones((2, 3)), jnp.asarray(mask), jnp.float32(6), config
    value, stats = policy_loss(jnp.asarray(logp), None, jnp.asarray(ref), *args)
    assert float(value) == pytest.approx(-1.0)  # it is measured, and not in the loss
    assert stats["kl"].weight == 6
    assert "kl" not in policy_loss(jnp.asarray(logp), None, None, *args)[1]


# --- microbatches -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, has_aux=True)
def linear_policy_loss(theta, features, noise, ref, advantage, inside, denominator, config):
    """The loss of a policy whose log-probabilities are a function of five parameters."""
    logp = -jax.nn.softplus(jnp.einsum("bgcd,d->bgc", features, theta))
    old = jax.lax.stop_gradient(logp) + 0.5 * noise
    extras = TokenExtras(ref, jnp.abs(noise), jnp.square(logp), config.entropy_weight)
    return policy_loss(logp, old, ref, advantage, inside, denominator, config, extras)


CUT = [
    {"aggregation": "sequence", "drop_zero_variance": True, "clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0},
    {"aggregation": "token", "objective": "cispo", "clip_high": 0.28, "entropy_weight": 0.1},
    {"aggregation": "constant", "drop_zero_variance": True, "objective": "sapo", "ratio": "sequence"},
    {"aggregation": "sequence", "clip_low": 0.2, "kl": "k1", "rollout_correction": "sequence_mask"},
]


@pytest.mark.parametrize("switches", CUT)
def test_microbatches_give_one_gradient(switches):
    """1x8 = 2x4 = 4x2 = 8x1, unequal lengths and paddings, invalid rows: one of the microbatches has no valid row."""
    config = TGRPOConfig(**switches)
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
