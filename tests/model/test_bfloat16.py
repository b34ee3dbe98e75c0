"""bfloat16 on a CPU: XLA runs every product that generation and training ask of it, rounding no more than it must."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1.model.attention import attend, attend_shared
from jvr1.model.blockwise import attend_packed

pytestmark = pytest.mark.usefixtures("strict_dtypes")
K, G, H = 2, 3, 16
PRODUCTS = {"rtol": 2e-2, "atol": 2e-2}
"""bfloat16 keeps 8 bits: inputs are rounded, then the weights before their product with the values."""


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Values that bfloat16 holds, in fp32."""
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)


def rounded(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)


def dense(q, keys, values, mask):
    """softmax(q k^T / sqrt(H)) v of one query [N,H] over keys [T,K,H], in fp64."""
    q = np.asarray(q, np.float64).reshape(K, G, H)
    logits = np.einsum("kgh,tkh->kgt", q, np.asarray(keys, np.float64)) / np.sqrt(H)
    weights = np.where(np.asarray(mask), np.exp(logits - logits.max()), 0)
    return np.einsum("kgt,tkh->kgh", weights / weights.sum(-1, keepdims=True), np.asarray(values, np.float64)).reshape(
        K * G, H
    )


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("rows", [(1,), (3,), (3, 2)])
def test_decoding_any_number_of_prompts(prompts, rows):
    rng = np.random.default_rng(prompts)
    total, streams, prefix, own = sum(rows), len(rows), 9, 5
    q = normal(rng, prompts, total, K * G, H)
    shared = normal(rng, prompts, streams, K, H, prefix), normal(rng, prompts, streams, K, prefix, H)
    mine = normal(rng, prompts, total, K, H, own), normal(rng, prompts, total, K, own, H)
    shared_mask = jnp.asarray(np.arange(prefix) < rng.integers(1, prefix + 1, (prompts, streams, 1)))
    own_mask = jnp.asarray(np.arange(own) < rng.integers(1, own + 1, (prompts, total, 1)))

    def of_streams(k, v):
        return [(k[:, s], v[:, s]) for s in range(streams)]

    step = jax.jit(lambda q, shared, mine: attend_shared(q, of_streams(*shared), shared_mask, mine, own_mask, rows))
    exact, got = step(q, shared, mine), step(*rounded((q, shared, mine)))
    assert got.dtype == jnp.bfloat16
    of_stream = np.repeat(np.arange(streams), rows)
    for b, r in itertools.product(range(prompts), range(total)):
        s = of_stream[r]
        keys = np.concatenate([shared[0][b, s].transpose(2, 0, 1), mine[0][b, r].transpose(2, 0, 1)])
        values = np.concatenate([shared[1][b, s].swapaxes(0, 1), mine[1][b, r].swapaxes(0, 1)])
        want = dense(q[b, r], keys, values, np.concatenate([shared_mask[b, s], own_mask[b, r]]))
        np.testing.assert_allclose(exact[b, r], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[b, r].astype(jnp.float32), want, **PRODUCTS)


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_training_and_vision_with_gradients(prompts):
    rng = np.random.default_rng(prompts)
    p, rows, length = 7, 2, 3
    q, k, v = (normal(rng, prompts, p + rows * length, n, H) for n in (K * G, K, K))
    mask = jnp.ones((prompts, p), bool)
    slots = jnp.ones(q.shape[:2], bool)
    for forward in (lambda *x: attend_packed(*x, mask, rows, length), lambda *x: attend(*x, slots)):

        def squares(*x, forward=forward):
            return jnp.sum(jnp.square(forward(*x).astype(jnp.float32)))

        step = jax.jit(jax.value_and_grad(squares, argnums=(0, 1, 2)))
        (exact, grads), (got, got_grads) = step(q, k, v), step(*rounded((q, k, v)))
        np.testing.assert_allclose(got, exact, rtol=2e-2)
        for x, y in zip(got_grads, grads, strict=True):
            assert x.dtype == jnp.bfloat16
            np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=5e-2, atol=2e-2 * float(jnp.abs(y).max()))
