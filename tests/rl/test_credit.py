"""Credit of tokens by numpy, written again; the threshold of the top share by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tgrpo_cases import make_rollout, make_tokens

from jvr1.rl import tgrpo
from jvr1.rl.credit import (
    completion_credit,
    credit_statistics,
    credit_weight,
    mean_credit,
    token_credit,
)
from jvr1.rl.tgrpo import Beside, TGRPOConfig
from jvr1.rl.top_share import top_threshold

advantages = jax.jit(tgrpo.advantages, static_argnames="config")

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def case(seed: int = 0):
    """Changes of 3 groups of 4 completions, the last row without a twin; right completions: some, all, none."""
    logp, twin, _, mask = make_tokens(seed, (3, 4, 10), spread=3.0)
    twin[0, 0] = logp[0, 0]  # a completion that owes nothing
    right = np.asarray([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    there = np.asarray([True, True, False])
    change = token_credit(jnp.asarray(logp), jnp.asarray(np.where(mask, twin, np.nan)), jnp.asarray(mask))
    return np.where(mask, logp.astype(np.float64) - twin, 0.0), change, jnp.asarray(mask), right, jnp.asarray(there)


def test_the_mean_of_a_completion_is_of_bounded_changes():
    want, change, mask, _, _ = case()
    np.testing.assert_allclose(change, want, rtol=1e-5, atol=1e-6)
    means = [[np.clip(want[i][np.asarray(mask)[i]], -2, 2).mean() for i in np.ndindex(3, 4)]]
    np.testing.assert_allclose(
        mean_credit(change, mask, TGRPOConfig()), np.reshape(means, (3, 4)), rtol=1e-5, atol=1e-6
    )


def test_the_term_prefers_one_right_completion_to_another():
    """Outside the normalisation, zero in sum, for wrong ones and rows without a twin; also where all are right."""
    rng = np.random.default_rng(1)
    config = TGRPOConfig(credit_alpha=15.0)
    _, _, _, right, there = case()
    w = rng.normal(size=(3, 4)).astype(np.float32)
    want = np.zeros((3, 4))
    for b in range(2):
        want[b, right[b]] = 15.0 * (w[b, right[b]] - w[b, right[b]].mean())
    got = completion_credit(jnp.asarray(w), jnp.asarray(right), there, config)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(got[1]).min() > 0.1

    rollout = make_rollout(2, 3, size=4)._replace(
        accuracy=jnp.asarray(right, jnp.float32), valid=jnp.asarray([True] * 3)
    )
    without = advantages(rollout, config)
    within = advantages(rollout, config, Beside(credit=jnp.asarray(w), credited=there))
    np.testing.assert_allclose(within.advantage - without.advantage, want, rtol=1e-5, atol=1e-5)
    equal = rollout._replace(reward=jnp.ones((3, 4)), length=jnp.ones((3, 4), jnp.int32))
    kept = advantages(
        equal, TGRPOConfig(credit_alpha=15.0, drop_zero_variance=True), Beside(credit=jnp.asarray(w), credited=there)
    )
    np.testing.assert_array_equal(kept.weight, [1, 1, 0])  # without a difference of rewards there is something to learn


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_selection_keeps_the_top_share_of_the_step(share):
    want, change, mask, _, there = case()
    used = np.asarray(mask & there[:, None, None])
    config = TGRPOConfig(credit="select", credit_share=share)
    threshold = top_threshold([jnp.abs(change)], [jnp.asarray(used)], share)
    weight = np.asarray(credit_weight(change, mask, there, jnp.asarray(threshold), config))
    sizes = np.sort(np.abs(want[used]))[::-1]
    count = int(np.ceil(share * used.sum()))
    assert weight[used].sum() == (count if sizes[count - 1] > 0 else used.sum())
    np.testing.assert_array_equal(weight[used] > 0, np.abs(np.asarray(change)[used]) >= threshold)
    np.testing.assert_array_equal(weight[2], 1)


def test_weights_keep_a_completion_s_weight():
    want, change, mask, _, there = case()
    weight = np.asarray(credit_weight(change, mask, there, jnp.float32(0), TGRPOConfig(credit="weight")))
    for b, g in np.ndindex(2, 4):
        m = np.asarray(mask)[b, g]
        size = np.minimum(np.abs(want[b, g][m]), 2)
        np.testing.assert_allclose(weight[b, g][m], size / size.mean() if size.any() else 1.0, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weight[2], 1)


def test_statistics_are_means_over_tokens():
    want, change, mask, right, there = case()
    stats = credit_statistics(change, mask, jnp.asarray(right), there)
    used = np.asarray(mask & there[:, None, None])
    for name, values in (
        ("credit/right", want[used & right[..., None]]),
        ("credit/wrong", want[used & ~right[..., None]]),
        ("credit/size", np.abs(want[used])),
    ):
        assert float(stats[name].total / stats[name].weight) == pytest.approx(values.mean(), rel=1e-5)


def test_the_top_share_s_threshold_is_exact_however_it_is_split():
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.exponential(size=90), np.zeros(20), np.full(10, 0.25), [1e-30, 3e30]]).astype(
        np.float32
    )
    mask = rng.random(len(values)) < 0.8
    ordered = np.sort(values[mask])[::-1]
    for share in (1e-9, 0.1, 0.37, 0.9, 1):
        want = ordered[int(np.ceil(share * len(ordered))) - 1]
        for parts in (1, 2, 5):
            cut = [[jnp.asarray(x) for x in np.array_split(y, parts)] for y in (values, mask)]
            assert top_threshold(*cut, share) == want
    assert top_threshold([jnp.ones(3)], [jnp.zeros(3, bool)], 0.5) == 0
