"""Kernels of eight bits in generation: how far they are from what they stand for, and that nothing else differs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout.test_queue import CONFIG, ENDS, KEY, TASKS, C, collected, random_model

from jvr1.model.rounded import EIGHT_BITS, Rounded, rounded
from jvr1.rollout.decoder import make_decoder
from jvr1.rollout.tasks import Sampled
from jvr1.sharding import make_mesh, param_shardings


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_a_weight_is_off_by_half_a_step_at_most(dtype):
    """Of int8 the step is the output's scale, of E4M3 an eighth of the power of two below, from 2^-6 down 2^-9."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(24, 5, 6)).astype(np.float32) * np.exp2(rng.integers(-9, 3, (5, 6))).astype(np.float32)
    kernel[:, 2, 3] = 0
    got = rounded(jnp.asarray(kernel), (0,), dtype)
    assert (str(got.values.dtype), got.scale.shape) == (dtype, (5, 6))
    scale = np.asarray(got.scale, np.float64)
    want, back = kernel.astype(np.float64), np.asarray(got.values, np.float64) * scale
    powers = np.exp2(np.floor(np.log2(np.maximum(np.abs(want) / scale, 2.0**-6))))
    step = scale * (1.0 if dtype == "int8" else powers / 8)
    assert (np.abs(back - want) <= 0.5001 * step).all()
    np.testing.assert_allclose(np.abs(back).max(0), np.abs(want).max(0), rtol=1e-6)
    assert not back[:, 2, 3].any()


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("contracted", [1, 2])
def test_a_product_is_that_of_what_the_eight_bits_stand_for(dtype, contracted):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(3, 2, 8)).astype(np.float32), rng.normal(size=(8, 2, 5)).astype(np.float32)
    x[1, 1] = 0
    x, kernel = (x.reshape(3, 16), kernel.reshape(16, 5)) if contracted == 1 else (x, kernel.transpose(1, 0, 2))
    inputs = tuple(range(contracted))
    sides = rounded(jnp.asarray(x), tuple(i + 1 for i in inputs), dtype), rounded(jnp.asarray(kernel), inputs, dtype)
    left, right = (np.asarray(s.values, np.float64).reshape(n) for s, n in zip(sides, ((3, 16), (16, 5)), strict=True))
    want = left @ right * np.asarray(sides[0].scale)[:, None] * np.asarray(sides[1].scale)
    got = jax.jit(lambda x: sides[1].product(x, contracted))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def answers(dtype: str, sizes: dict[str, int], **how):
    """Rows of three microbatches, and how many kernels were rounded."""
    graphdef, host = random_model(CONFIG, seed=3, scale=0.25)
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    decoder = make_decoder(graphdef, mesh, CONFIG, ENDS, **how)
    weights = decoder.weights(jax.device_put(host, param_shardings(host, mesh)), eight_bits=dtype)
    leaves = jax.tree.leaves(weights, is_leaf=lambda x: isinstance(x, Rounded))
    kernels = sum(isinstance(x, Rounded) for x in leaves)
    found = collected(decoder.queue(weights, TASKS[:3], KEY, slots=12, temperature=1.0), TASKS[:3])
    return Sampled(*map(np.concatenate, zip(*found, strict=True))), kernels


def gap(one, other) -> float:
    """Between log-probabilities, in the mean over tokens up to the first that differs."""
    same = np.cumprod(one.ids == other.ids, axis=-1).astype(bool) & (np.arange(C) < other.length[..., None])
    assert same.sum() > 100
    return float(np.abs(one.logprobs - other.logprobs)[same].mean())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.1), ("float8_e4m3fn", 0.4)])
def test_rows_are_drawn_nearly_as_the_whole_weights_would_on_any_mesh(dtype, most):
    """Not to the bit: a last bit may decide how a value is rounded."""
    one, kernels = answers(dtype, {"data": 1})
    assert kernels == 7  # stacked
    spread, kernels = answers(dtype, {"fsdp": 4, "tensor": 2}, apart=True, tensor=2)
    assert kernels == 7 * CONFIG.text.layers
    whole, kernels = answers("", {"data": 1})
    assert kernels == 0
    lost = gap(one, whole)
    assert 1e-3 < lost < most
    assert gap(spread, one) < lost / 4
