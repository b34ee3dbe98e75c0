"""Kernels of eight bits in generation: how far they are from what they stand for, and that nothing else differs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout.test_queue import CONFIG, ENDS, KEY, TASKS, assert_same, collected, random_model

from jvr1.model.rounded import LARGEST, Rounded, rounded
from jvr1.rollout.decoder import make_decoder
from jvr1.sharding import make_mesh, param_shardings


@pytest.mark.parametrize("dtype", LARGEST)
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


def read(kernel, inputs, dtype):
    """The kernel as its eight bits say."""
    got = rounded(kernel, inputs, dtype)
    return np.asarray(got.values, np.float32) * np.expand_dims(np.asarray(got.scale), inputs)


INPUTS = {"o": (1, 2)}
"""Axes that are summed over, of stacked kernels; of others the first after the layers."""


@pytest.mark.parametrize(
    ("dtype", "sizes", "how"),
    [("int8", {"data": 1}, {}), ("float8_e4m3fn", {"fsdp": 4, "tensor": 2}, {"apart": True, "tensor": 2})],
)
def test_rows_are_those_of_the_weights_that_the_eight_bits_stand_for(dtype, sizes, how):
    graphdef, host = random_model(CONFIG, seed=3, scale=0.25)
    layers = host["text"]["layers"]
    meant = jax.tree_util.tree_map_with_path(
        lambda path, x: read(x, INPUTS.get(path[-2].key, (1,)), dtype) if path[-1].key == "kernel" else x, layers
    )
    devices = jax.devices()[: 1 if sizes == {"data": 1} else 8]
    found = []
    for params, eight_bits in ((host, dtype), (host | {"text": host["text"] | {"layers": meant}}, "")):
        mesh = make_mesh(sizes, devices)
        decoder = make_decoder(graphdef, mesh, CONFIG, ENDS, **how)
        weights = decoder.weights(jax.device_put(params, param_shardings(params, mesh)), eight_bits=eight_bits)
        is_rounded = lambda x: isinstance(x, Rounded)  # noqa: E731
        kernels = [x for x in jax.tree.leaves(weights, is_leaf=is_rounded) if is_rounded(x)]
        assert len(kernels) == (0 if not eight_bits else 7 * (2 if how else 1))
        found.append(collected(decoder.queue(weights, TASKS[:1], KEY, slots=8, temperature=1.0), TASKS[:1]))
    assert_same(*found)
