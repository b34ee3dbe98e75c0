"""The kernel for attention in decoding, run by XLA, beside a softmax in fp64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1.model import flash_decoding
from jvr1.model.attention import attend_shared
from jvr1.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("strict_dtypes")
B, K, G, H, PREFIX, OWN = 2, 2, 3, 16, 96, 48


def softmax_over(q, keys, values, mask):
    """softmax(q k^T / sqrt(H)) v of [K,G,H] over the keys [K,T,H] that the mask shows."""
    logits = np.where(mask, np.einsum("kgh,kth->kgt", q, keys) / np.sqrt(H), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("kgt,kth->kgh", weights / weights.sum(-1, keepdims=True), values)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "tensor": 2}], ids=["one device", "2x1x2"])
@pytest.mark.parametrize("rows", [(3,), (3, 2)], ids=str)
@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_rows_attend_to_their_prefix_and_what_they_wrote(backend, rows, mesh, monkeypatch):
    rng = np.random.default_rng(len(rows))
    total = sum(rows)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = normal(B, total, K * G, H)
    prefix = [(normal(B, K, H, PREFIX), normal(B, K, PREFIX, H)) for _ in rows]
    own = normal(B, total, K, H, OWN), normal(B, total, K, OWN, H)
    prefix_mask = np.arange(PREFIX) < rng.integers(1, PREFIX + 1, (B, len(rows), 1))
    own_mask = (np.arange(OWN) + rng.integers(0, OWN)) % OWN < rng.integers(1, OWN + 1, (B, total, 1))  # a ring
    by_kernel = []

    def interpreted(*args, parts=flash_decoding.attend_parts, **how):
        by_kernel.append(how["form"])
        return parts(*args, **how | {"interpret": True})

    monkeypatch.setattr(flash_decoding, "attend_parts", interpreted)
    monkeypatch.setattr(flash_decoding, "LANES", 16)  # heads of this test

    def step(backend):
        f = jax.jit(lambda *x: attend_shared(*x, rows, backend))
        return np.asarray(f(*jax.tree.map(jnp.asarray, (q, prefix, prefix_mask, own, own_mask))))

    if mesh is None:
        got, plain = step(backend), step("xla")
    else:
        with jax.set_mesh(make_mesh(mesh, jax.devices()[:4])):
            got, plain = step(backend), step("xla")
    assert by_kernel == [{"cudnn": "gpu", "splash": "tpu"}[backend]] * (1 + len(rows))
    of_stream = np.repeat(np.arange(len(rows)), rows)
    for b in range(B):
        for r, s in enumerate(of_stream):
            keys = np.concatenate([prefix[s][0][b].swapaxes(1, 2), own[0][b, r].swapaxes(1, 2)], axis=1)
            values = np.concatenate([prefix[s][1][b], own[1][b, r]], axis=1)
            mask = np.concatenate([prefix_mask[b, s], own_mask[b, r]])
            want = softmax_over(*(x.astype(np.float64) for x in (q[b, r].reshape(K, G, H), keys, values)), mask)
            np.testing.assert_allclose(got[b, r].reshape(K, G, H), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-5)


def test_lengths_that_the_kernel_cannot_cut_are_left_to_xla():
    assert flash_decoding.takes("gpu", 1536, 128)
    assert flash_decoding.takes("gpu", 16, 64)
    assert not flash_decoding.takes("gpu", 1540, 128)  # blocks of 4
    assert not flash_decoding.takes("gpu", 1536, 72)
    assert flash_decoding.takes("tpu", 1536, 128)
    assert not flash_decoding.takes("tpu", 1536, 64)


def test_parts():
    """A GPU's, until 128 programs run; a TPU's, of 2 MiB at most, and sets together up to that."""
    assert [flash_decoding.gpu_parts(*x) for x in ((1536, 64), (1536, 8), (96, 1), (768, 384))] == [2, 4, 1, 1]
    assert flash_decoding.tpu_parts(1536, 64, 512) == (1, 2)
    assert flash_decoding.tpu_parts(96, 384, 512) == (1, 32)
    assert flash_decoding.tpu_parts(16384, 2, 512) == (4, 1)
