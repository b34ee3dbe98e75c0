"""Weights laid out for generation: how they lie, and that the tokens stay the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_model, raw_config
from step_cases import as_task, make_rows

from jvr1.data.batch import stack_examples
from jvr1.errors import UserError
from jvr1.model.families import from_hf
from jvr1.rollout.decoder import make_decoder
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.reference import open_reference

pytestmark = pytest.mark.slow

CONFIG = from_hf(raw_config(vision_depth=1, vision_fullatt_block_indexes=[0], num_hidden_layers=2))


def sampled(sizes, devices, **how):
    """Completions of eight prompts, ordered and shuffled, and the decoder's weights."""
    mesh = make_mesh(sizes, jax.devices()[:devices])
    graphdef, host = random_model(CONFIG, seed=3)
    params = jax.device_put(host, param_shardings(host, mesh))
    decoder = make_decoder(graphdef, mesh, CONFIG, (2,), **how)
    with jax.set_mesh(mesh):
        weights = decoder.weights(params)
    (done,) = decoder.answers(
        weights, [as_task(stack_examples(make_rows(CONFIG)), (2, 1))], jax.random.key(1), temperature=1.0
    )
    return params, weights, done


@pytest.fixture(scope="module")
def alone():
    return sampled({"data": 1}, 1)[2]


@pytest.mark.parametrize(
    ("sizes", "tensor"), [({"fsdp": 8}, 0), ({"fsdp": 8}, 2), ({"fsdp": 2, "tensor": 4}, 1), ({"data": 8}, 4)]
)
def test_the_layout_changes_no_token(alone, sizes, tensor):
    _, weights, got = sampled(sizes, 8, tensor=tensor)
    np.testing.assert_array_equal(got.ids, alone.ids)
    np.testing.assert_allclose(got.logprobs, alone.logprobs, atol=1e-4)
    ways = tensor or sizes.get("tensor", 1)
    for path, x in jax.tree_util.tree_leaves_with_path(weights):
        axes = [axis for axis in x.sharding.spec if axis is not None]
        assert x.sharding.mesh.shape == {"data": 8 // ways, "fsdp": 1, "tensor": ways}
        split = x.sharding.shard_shape(x.shape) != x.shape
        assert split == ("tensor" in axes and ways > 1), path_name(path)


def test_what_lies_right_is_not_copied_and_the_dtype_is_asked_for():
    params, weights, _ = sampled({"data": 1}, 1)
    assert all(a is b for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(params), strict=True))
    params, weights, _ = sampled({"data": 1}, 1, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_size_that_cannot_split_the_model_is_refused():
    graphdef, _ = random_model(CONFIG)
    with pytest.raises(UserError, match="tensor=8 cannot split 4 query heads"):
        make_decoder(graphdef, make_mesh({"fsdp": 8}), CONFIG, (2,), tensor=8)


def test_a_reference_in_host_memory_scores_from_the_device_and_is_freed():
    mesh = make_mesh({"fsdp": 8})
    graphdef, host = random_model(CONFIG)
    params = jax.device_put(host, param_shardings(host, mesh))
    kept = {w: open_reference(graphdef, params, "float32", host=w == "host") for w in ("device", "host")}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(kept["host"].params)} == {"pinned_host"}
    with kept["host"].on_device() as there, kept["device"].on_device() as always:
        for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(always), strict=True):
            assert a.sharding.memory_kind == "device"
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
            np.testing.assert_array_equal(a, b)
    assert all(x.is_deleted() for x in jax.tree.leaves(there))
    for x in jax.tree.leaves(params):
        x.delete()  # the copy is the reference's own
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept["device"].params))
