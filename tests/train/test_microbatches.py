"""However a step is cut into microbatches, its gradient is the same; and it is the naive computation's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_model, raw_config
from step_cases import BUCKET, GROUP, INVALID, ROWS, make_rows, make_scores, part

from jvr1.data.batch import empty_example, stack_examples
from jvr1.model.families import from_hf
from jvr1.model.vision_language import merge
from jvr1.optimizers.config import OptimizerConfig
from jvr1.rl import tgrpo
from jvr1.rl.objectives import policy_loss
from jvr1.sharding import make_mesh, param_shardings, put_batch
from jvr1.train.optimizer import make_optimizer
from jvr1.train.state import apply_gradients, init_state
from jvr1.train.steps import (
    PolicyBatch,
    make_advantages,
    make_answer_count,
    make_answer_gradients,
    make_policy_gradients,
    make_reference_scores,
)
from jvr1.train.trees import zeros_like
from tools.benchmarks.shared import naive_logprobs

pytestmark = pytest.mark.slow

CONFIG = from_hf(raw_config(vision_depth=1, vision_fullatt_block_indexes=[0], num_hidden_layers=2))
CUTS = [(8, 1), (2, 4), (1, 8)]  # rows a microbatch, microbatches


@pytest.fixture(scope="module")
def model():
    """On one device, as a mesh."""
    graphdef, params = random_model(CONFIG, seed=3)
    shardings = param_shardings(params, make_mesh({"data": 1}, jax.devices()[:1]))
    return graphdef, jax.device_put(params, shardings), shardings


def once(make):
    """Makes a thing once for each of its hashable arguments after the model: what it compiles, tests share."""
    made = {}
    return lambda model, *key: made.setdefault(key, None) or made.update({key: make(model, *key)}) or made[key]


@once
def policy_functions(model, algorithm):
    graphdef, _, shardings = model
    mesh = jax.tree.leaves(shardings)[0].mesh
    gradients = make_policy_gradients(graphdef, algorithm, shardings, temperature=0.9, chunk=4)
    scores = make_reference_scores(graphdef, mesh, temperature=0.9, chunk=4)
    return make_advantages(algorithm, mesh), scores, gradients


@once
def answer_functions(model, on_prompt):
    graphdef, _, shardings = model
    return make_answer_count(on_prompt=on_prompt), make_answer_gradients(
        graphdef, shardings, chunk=4, on_prompt=on_prompt
    )


def policy_step(model, algorithm, cut, rows, scores, ids, reference=None):
    """The step of `train_rl` over microbatches of `cut`: gradient, loss, denominator."""
    _, params, shardings = model
    size, count = cut
    mesh = jax.tree.leaves(shardings)[0].mesh
    compare, score, gradients = policy_functions(model, algorithm)
    put = [put_batch((stack_examples(rows[i : i + size]), part(scores, i, size), ids[i : i + size]), mesh)
           for i in range(0, size * count, size)]  # fmt: skip
    worth = [compare(s, s.length, tokens) for _, s, tokens in put]
    denominator = np.float32(sum(float(w[2]) for w in worth))
    total, loss, logprobs = zeros_like(params), 0.0, []
    for (arrays, _, tokens), (result, mask, _, _) in zip(put, worth, strict=True):
        unknown = jnp.full(tokens.shape, jnp.nan, jnp.float32)  # what the first pass must not look at
        sampled = jnp.zeros(tokens.shape, jnp.float32)
        anchor = None if reference is None else score(reference, arrays, tokens)
        batch = PolicyBatch(
            arrays, tokens, anchor, sampled, unknown, np.bool_(True), result.advantage, mask, denominator
        )
        total, value, _, _, own = gradients(params, {}, total, batch)
        loss, logprobs = loss + float(value), [*logprobs, np.asarray(own)]
    return jax.device_get(total), loss, denominator, np.concatenate(logprobs)


def assert_close(got, want, rtol=2e-5):
    """Relative to the largest entry of each parameter's gradient."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        scale = np.abs(b).max()
        assert np.abs(a - b).max() <= rtol * scale + 1e-9, (path, np.abs(a - b).max(), scale)


@pytest.mark.parametrize("aggregation", ["token", pytest.param("sequence", marks=pytest.mark.nightly)])
def test_cuts_of_an_rl_step_give_one_gradient(model, aggregation):
    algorithm = tgrpo.TGRPOConfig(aggregation=aggregation)
    scores, ids = make_scores()
    results = [policy_step(model, algorithm, cut, make_rows(CONFIG), scores, ids, reference=model[1]) for cut in CUTS]
    whole, loss, denominator, _ = results[0]
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole)) > 1e-3
    for gradient, other, count, _ in results[1:]:
        assert count == denominator
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert_close(gradient, whole)


def test_rows_that_are_not_valid_change_nothing(model):
    """Their pixels, tokens and scores may be anything finite."""
    algorithm, (scores, ids) = tgrpo.TGRPOConfig(), make_scores()
    whole, loss, _, _ = policy_step(model, algorithm, (8, 1), make_rows(CONFIG), scores, ids, model[1])
    valid = [i for i in range(ROWS) if i not in INVALID]
    alone = jax.tree.map(lambda x: x[np.asarray(valid)], (scores, ids))
    rows = make_rows(CONFIG)
    gradient, other, _, _ = policy_step(model, algorithm, (6, 1), [rows[i] for i in valid], *alone, model[1])
    assert other == pytest.approx(loss, rel=1e-6)
    assert_close(gradient, whole)


def test_an_update_over_a_shared_prefix_is_the_naive_one(model):
    """The prompt with its video repeated for each completion, and the whole of the logits."""
    graphdef, params, _ = model
    algorithm, (scores, ids), rows = tgrpo.TGRPOConfig(), make_scores(), make_rows(CONFIG)
    anchors = jax.tree.map(lambda x: x * 1.02, params)
    got, loss, denominator, logprobs = policy_step(model, algorithm, (8, 1), rows, scores, ids, anchors)
    arrays = stack_examples(rows)
    mesh = jax.tree.leaves(model[2])[0].mesh
    result, mask, _, _ = make_advantages(algorithm, mesh)(scores, scores.length, ids)

    @jax.jit
    def naive(params):
        own = naive_logprobs(merge(graphdef, params), arrays.prompt, arrays.visual, ids, 0.9)
        anchor = naive_logprobs(merge(graphdef, anchors), arrays.prompt, arrays.visual, ids, 0.9)
        value, _ = policy_loss(own, None, anchor, result.advantage, mask, jnp.asarray(denominator), algorithm)
        return value, own

    (value, own), want = jax.value_and_grad(naive, has_aux=True)(params)
    np.testing.assert_allclose(np.where(mask, logprobs, 0), np.where(mask, own, 0), rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(float(value), rel=1e-5, abs=1e-7)
    assert_close(got, jax.device_get(want), rtol=1e-4)


def answer_step(model, cut, rows, on_prompt):
    """The step of `train_sft` over microbatches of `cut`."""
    _, params, shardings = model
    size, number = cut
    mesh = jax.tree.leaves(shardings)[0].mesh
    count, gradients = answer_functions(model, on_prompt)
    put = [put_batch(stack_examples(rows[i : i + size]), mesh) for i in range(0, size * number, size)]
    denominator = sum(count(arrays)[0] for arrays in put)
    total, loss = zeros_like(params), 0.0
    for arrays in put:
        total, value, _ = gradients(params, {}, total, arrays, denominator)
        loss += float(value)
    return jax.device_get(total), loss, float(denominator)


@pytest.mark.parametrize(("on_prompt", "cuts"), [(False, CUTS[::2]), (True, CUTS[:2])])
def test_cuts_of_an_sft_step_give_one_gradient(model, on_prompt, cuts):
    rows = make_rows(CONFIG)
    whole, loss, denominator = answer_step(model, (8, 1), rows, on_prompt)
    valid = [row for i, row in enumerate(rows) if i not in INVALID]
    tokens = sum(int(row.target_mask.sum()) + on_prompt * (int(row.prompt.mask.sum()) - 1) for row in valid)
    assert denominator == tokens
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole)) > 1e-3
    for cut in cuts[1:]:
        gradient, other, _ = answer_step(model, cut, rows, on_prompt)
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert_close(gradient, whole)


def test_a_step_without_a_valid_row_is_a_no_op(model):
    _, params, _ = model
    rows = [empty_example(BUCKET, CONFIG)] * 2
    scores, ids = (part(x, 0, 2) for x in make_scores())
    scores = scores._replace(valid=np.zeros(2, bool), length=np.zeros((2, GROUP), np.int32))
    policy, loss, denominator, _ = policy_step(model, tgrpo.TGRPOConfig(), (2, 1), rows, scores, ids, params)
    answers, other, tokens = answer_step(model, (2, 1), rows, on_prompt=False)
    assert (loss, denominator, other, tokens) == (0, 0, 0, 0)
    tx = make_optimizer(OptimizerConfig(learning_rate=1.0, weight_decay=0.1), params)
    state = jax.jit(lambda p: init_state(tx, p))(params)
    apply = jax.jit(lambda state, gradient: apply_gradients(tx, state, gradient, has_rows=False)[0])
    for gradient in (policy, answers):
        assert all(not np.any(x) for x in jax.tree.leaves(gradient))  # zero, and finite
        new = apply(state, gradient)
        assert int(new.step) == 1
        for a, b in zip(jax.tree.leaves(new._replace(step=0)), jax.tree.leaves(state._replace(step=0)), strict=True):
            np.testing.assert_array_equal(a, b)
