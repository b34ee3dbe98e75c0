"""What a step scores before its updates, and what it carries from one to the next."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_model
from step_cases import make_rows, make_scores
from train.test_microbatches import CONFIG

from jvr1.data.batch import stack_examples
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.sharding import make_mesh
from jvr1.train.policy import make_credit, make_token_weights, make_varied
from jvr1.train.steps import make_reference_scores, make_twin_scores

pytestmark = pytest.mark.slow

SCORING = {"temperature": 0.9, "chunk": 4}


@pytest.fixture(scope="module")
def scored():
    """The clips' arrays, and log-probabilities of one set of completions under four versions of them: as they are, with
    the frames laid in the twin's order or blackened by numpy, and by the two programs for that."""
    graphdef, params = random_model(CONFIG, seed=3, scale=0.3)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    arrays, (_, ids) = stack_examples(make_rows(CONFIG)), make_scores()
    score = make_reference_scores(graphdef, mesh, **SCORING)
    order, visual = arrays.shuffled.reshape(len(ids), -1), arrays.visual
    laid = np.stack([frames[at] for frames, at in zip(visual.frames, order, strict=True)])
    plain = np.arange(order.shape[1], dtype=np.int32).reshape(1, -1, 2).repeat(len(ids), 0)
    permuted = arrays._replace(visual=visual._replace(frames=laid, pair=plain))
    black = arrays._replace(visual=visual._replace(frames=np.zeros_like(visual.frames)))
    of = {name: score(params, one, ids) for name, one in (("own", arrays), ("laid", permuted), ("black", black))}
    for twin in ("shuffled", "blank"):
        of[twin] = make_twin_scores(graphdef, mesh, twin, **SCORING)(params, {}, arrays, ids)
    return arrays, {name: np.asarray(x) for name, x in of.items()}


def test_twins_are_what_they_are_called(scored):
    arrays, of = scored
    valid = np.asarray(arrays.valid)
    np.testing.assert_allclose(of["shuffled"][valid], of["laid"][valid], atol=2e-5)
    np.testing.assert_allclose(of["blank"][valid], of["black"][valid], atol=2e-5)
    for name in ("shuffled", "blank"):
        assert np.abs(of[name] - of["own"])[valid].max() > 1e-3


def test_rows_have_credit_where_they_have_a_twin():
    """Shuffled: valid videos of enough frames; blank: all that are valid."""
    scores, _ = make_scores()
    scores = jax.tree.map(jnp.asarray, scores)._replace(
        is_video=jnp.arange(8) != 0, distinct_frames=jnp.where(jnp.arange(8) == 1, 3, 4)
    )
    logp = jnp.zeros((*scores.length.shape, 6))
    mesh, valid = make_mesh({"data": 1}, jax.devices()[:1]), np.asarray(scores.valid)
    for twin, without in (("shuffled", [0, 1]), ("blank", [])):
        owed, statistics = make_credit(TGRPOConfig(credit_twin=twin), mesh)(scores, scores.length, logp, logp - 1.0)
        want = valid & ~np.isin(np.arange(8), without)
        np.testing.assert_array_equal(owed.there, want)
        tokens = np.asarray(scores.length)[want].sum()
        assert float(statistics["credit/size"].weight) == tokens
        assert float(statistics["credit/size"].total) == tokens


def test_tokens_count_where_both_selections_keep_them():
    mesh, algorithm = make_mesh({"data": 1}, jax.devices()[:1]), TGRPOConfig(entropy_share=0.5, credit="select")
    scores, ids = make_scores()
    rng = np.random.default_rng(0)
    twin, entropy = (rng.random(ids.shape, np.float32) for _ in range(2))
    owed, _ = make_credit(algorithm, mesh)(scores, scores.length, jnp.zeros(ids.shape), twin)
    mask = np.arange(6) < scores.length[..., None]
    weight = make_token_weights(algorithm, mesh)(mask, entropy, np.float32(0.4), owed, np.float32(0.6))
    want = (entropy >= 0.4) & (np.where(mask, twin, 0) >= 0.6)
    want[~scores.valid] = entropy[~scores.valid] >= 0.4
    np.testing.assert_array_equal(np.asarray(weight) > 0, want)


def test_groups_with_different_rewards_are_counted():
    scores, _ = make_scores()
    reward = scores.reward.copy()
    reward[0] = 1.0
    scores = scores._replace(reward=reward, accuracy=np.ones_like(reward), length=np.full_like(scores.length, 4))
    assert float(make_varied(TGRPOConfig())(scores)) == scores.valid.sum() - 1
