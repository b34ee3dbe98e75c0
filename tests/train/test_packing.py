"""Completions on tapes give the padded ones' log-probabilities and gradient; and how long tapes are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_model
from step_cases import BUCKET, GROUP, make_rows, make_scores
from train.test_microbatches import CONFIG

from jvr1.data.batch import stack_examples
from jvr1.rl import tgrpo
from jvr1.sharding import make_mesh, param_shardings, put_batch
from jvr1.train.packing import tape_size, tape_sizes, tokens_to_read
from jvr1.train.steps import PolicyBatch, make_advantages, make_policy_gradients, make_reference_scores
from jvr1.train.trees import zeros_like


@pytest.mark.parametrize(
    ("group", "completion", "count", "sizes"),
    [
        (8, 768, 16, tuple(range(384, 6144, 384))),
        (8, 768, 5, (1280, 2560, 3712, 4992)),  # 1228.8 and so on, up to 128s
        (8, 24, 4, (48, 96, 144)),
        (3, 6, 4, (5, 9, 14)),
        (8, 768, 1, ()),
        (8, 768, 0, ()),
    ],
)
def test_lengths_of_tapes(group, completion, count, sizes):
    assert tape_sizes(group, completion, count) == sizes
    for most in (0, 50, *sizes, *(size + 1 for size in sizes), group * completion):
        assert tape_size(most, group, completion, count) == min((s for s in sizes if s >= most), default=None)


def test_what_a_microbatch_reads():
    """Of its longest row, and of all: up to the last token in the loss."""
    mask = np.zeros((3, 2, 5), bool)
    mask[0, 0, :4] = mask[0, 1, 2] = mask[2, 1, :5] = True
    most, every = tokens_to_read(jnp.asarray(mask))
    assert (int(most), float(every)) == (7, 12)


@pytest.mark.slow
def test_packed_and_padded_give_one_gradient():
    """Rows that are not valid, completions of all lengths, one update after another; what is not read is garbage."""
    mesh, algorithm = make_mesh({"data": 1}, jax.devices()[:1]), tgrpo.TGRPOConfig(clip_low=0.2, clip_high=0.2)
    graphdef, params = random_model(CONFIG, seed=3)
    shardings = param_shardings(params, mesh)
    scores, ids = make_scores(longest=4)
    params = jax.device_put(params, shardings)
    arrays, scores, ids = put_batch((stack_examples(make_rows(CONFIG)), scores, ids), mesh)
    result, mask, denominator, _ = make_advantages(algorithm, mesh)(scores, scores.length, ids)
    size = tape_size(int(tokens_to_read(mask)[0]), GROUP, BUCKET.completion, 16)
    assert size is not None
    how = {"temperature": 0.9, "chunk": 2}
    score = make_reference_scores(graphdef, mesh, **how)
    gradients = make_policy_gradients(graphdef, algorithm, shardings, **how)
    reference = jax.tree.map(lambda x: x * 1.02, params)

    def step(tape: int | None):
        anchor = score(reference, arrays, ids, mask, tape=tape)
        unread = jnp.where(mask, anchor, jnp.nan)
        out = PolicyBatch(
            arrays, ids, anchor, unread, unread, np.bool_(False), result.advantage, mask, np.float32(denominator)
        )
        return jax.device_get((anchor, *gradients(params, {}, zeros_like(params), out, tape=tape)))

    got_anchor, got, *got_sums, _, got_logprobs = step(size)
    want_anchor, want, *want_sums, _, want_logprobs = step(None)
    mask = np.asarray(mask)
    for a, b in ((got_anchor, want_anchor), (got_logprobs, want_logprobs)):
        np.testing.assert_allclose(a[mask], b[mask], rtol=1e-6, atol=2e-6)
        assert not a[~mask].any()
    for a, b in zip(jax.tree.leaves(got_sums), jax.tree.leaves(want_sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    assert largest_difference(got, want) < 1e-6


def largest_difference(got, want) -> float:
    """Of a parameter's gradient, relative to its norm."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
