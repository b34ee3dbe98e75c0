"""Sharded equals unsharded; every parameter of the published models is split; meshes that cannot be are refused."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AbstractMesh, AxisType
from oracle import Item, our_inputs, tokens

from jvr1.errors import UserError
from jvr1.model import vision_language
from jvr1.model.families import from_hf, known, published
from jvr1.sharding import (
    AXES,
    check_mesh,
    decode_ways,
    make_mesh,
    param_shardings,
    partition_spec,
    path_name,
    put_batch,
)
from jvr1.sharding import valid_tensor_sizes as valid

COUNTS = {"3b": 3_754_622_976, "7b": 8_292_166_656, "32b": 33_452_718_336, "72b": 73_410_777_344}
CONFIG = from_hf(
    oracle.raw_config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, intermediate_size=64,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}, vision_depth=2, vision_out_hidden_size=64,
        vision_intermediate_size=40, vision_num_heads=4, initializer_range=0.2,
    )
)  # fmt: skip


def batch():
    """8 prompts of images and videos with 2 completions each, of one static shape."""
    rows = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        items = [Item(rng, 4, 4, 6, 1.0)] if seed % 2 else [Item(rng, 1, 6, 6), Item(rng, 1, 4, 4)]
        ids = tokens(rng, 3, *items, 1 + seed)
        rows.append((*our_inputs(ids, items, CONFIG, 32, windows=1, steps=2), rng.integers(3, 90, (1, 2, 5))))
    frames = max(visual.frames.shape[1] for _, visual, _ in rows)

    def more_frames(visual):
        missing = frames - visual.frames.shape[1]
        return visual._replace(frames=np.pad(visual.frames, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))))

    rows = [(prompt, more_frames(visual), ids.astype(np.int32)) for prompt, visual, ids in rows]
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)


def loss_of(graphdef, params, prompt, visual, completions):
    model = vision_language.merge(graphdef, params)
    logits = model.logits(model.complete(prompt, visual, completions))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), completions[..., None], axis=-1))


@pytest.fixture(scope="module")
def unsharded():
    graphdef, params = oracle.random_model(CONFIG, remat="full")
    params = jax.tree.map(np.asarray, params)
    value, grads = jax.jit(jax.value_and_grad(lambda p, b: loss_of(graphdef, p, *b)))(params, batch())
    return graphdef, params, value, grads


@pytest.mark.parametrize(
    "sizes", [(1, 8, 1), (2, 2, 2), *(pytest.param(s, marks=pytest.mark.nightly) for s in ((8, 1, 1), (1, 4, 2)))]
)
def test_sharded_equals_unsharded(unsharded, sizes):
    graphdef, params, want, want_grads = unsharded
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    shardings = param_shardings(params, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(lambda p, b: loss_of(graphdef, p, *b)), out_shardings=(None, shardings))
        value, grads = step(jax.device_put(params, shardings), put_batch(batch(), mesh))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for path, got in jax.tree_util.tree_leaves_with_path(grads):
        expected = np.asarray(_at(want_grads, path_name(path)))
        error = np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected)
        assert error < 1e-4, (path_name(path), error)


def _at(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def test_ways_of_decoding_follow_key_and_value_heads():
    mesh = AbstractMesh((1, 8, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    assert [decode_ways(mesh, published(size), "gpu") for size in COUNTS] == [2, 4, 4, 4]  # of 2, 4, 8 and 8 heads
    assert decode_ways(mesh, published("7b"), "cpu") == 1
    for devices, ways in ((1, 1), (2, 2), (6, 2)):
        few = AbstractMesh((1, devices, 1), AXES, axis_types=(AxisType.Auto,) * 3)
        assert decode_ways(few, published("7b"), "tpu") == ways


BY_OUTPUTS = ("text/layers/{q,k,v,mlp/gate,mlp/up}", "visual/blocks/{qkv,mlp/gate,mlp/up}", "visual/{merge_in}")
BY_INPUTS = ("text/layers/{o,mlp/down}", "visual/blocks/{proj,mlp/down}", "visual/{merge_out}")


@pytest.mark.parametrize(("stacks", "side"), [(BY_OUTPUTS, "outputs"), (BY_INPUTS, "inputs")])
def test_pairs_of_products_are_split_by_outputs_then_by_inputs(stacks, side):
    """Over tensor, so that a pair exchanges once (Megatron-LM, arXiv 1909.08053, section 3); over fsdp on the other
    side."""
    _, shapes = vision_language.abstract(published("7b"))
    mesh = AbstractMesh((1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    specs = {path_name(p): x.spec for p, x in jax.tree_util.tree_leaves_with_path(param_shardings(shapes, mesh))}
    other = {"outputs": "inputs", "inputs": "outputs"}[side]
    for stack in stacks:
        start, _, names = stack.rstrip("}").partition("{")
        for name in names.split(","):
            path = f"{start}{name}/kernel"
            matrix = known(path).matrix
            axes = {part: [specs[path][i] for i in getattr(matrix, part)] for part in ("inputs", "outputs")}
            assert "tensor" in axes[side], (path, specs[path])
            assert "fsdp" in axes[other], (path, specs[path])


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (4, 8, 2)])
def test_every_parameter_of_the_published_models_is_split(size, sizes):
    _, shapes = vision_language.abstract(published(size))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    assert sum(math.prod(x.shape) for _, x in leaves) == COUNTS[size]
    mesh = AbstractMesh(sizes, AXES)
    check_mesh(mesh, published(size))
    share = 0
    for path, x in leaves:
        spec = partition_spec(path_name(path), x.shape, mesh)
        parts = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        assert parts > 1, path_name(path)
        share += math.prod(x.shape) / parts
    assert share == pytest.approx(COUNTS[size] / (sizes[1] * sizes[2]), rel=0.05)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [("3b", [1, 2, 4, 8, 16]), ("7b", [1, 2, 4]), ("32b", [1, 2, 4, 8]), ("72b", [1, 2, 4, 8, 16, 32, 64])],
)
def test_valid_tensor_sizes(size, sizes):
    assert valid(published(size)) == sizes


def test_an_impossible_tensor_axis_is_refused_with_the_valid_sizes():
    mesh = make_mesh({"tensor": 8})
    with pytest.raises(UserError, match=r"tensor=8 cannot split 28 query heads.*valid sizes are 1, 2, 4$"):
        check_mesh(mesh, published("7b"))
    check_mesh(mesh, published("3b"))


def test_key_value_heads_are_replicated_where_tensor_exceeds_them():
    mesh = make_mesh({"tensor": 8})
    _, shapes = vision_language.abstract(published("3b"))
    specs = jax.tree.map(lambda s: s.spec, param_shardings(shapes, mesh))
    assert specs["text"]["layers"]["k"]["kernel"] == jax.P(None, "fsdp", None, None)
    assert specs["text"]["layers"]["q"]["kernel"] == jax.P(None, "fsdp", "tensor", None)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, "mesh.data=3, mesh.fsdp=1, mesh.tensor=1: does not fit 8 devices"),
        ({"data": -1, "fsdp": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"fsdp": 0}, "must be positive"),
        ({"model": 8}, "mesh axis 'model' is unknown; the axes are data, fsdp, tensor"),
    ],
)
def test_meshes_that_cannot_be(shape, message):
    with pytest.raises(UserError, match=message):
        make_mesh(shape)


def test_one_mesh_size_may_be_left_open():
    mesh = make_mesh({"data": 2, "fsdp": -1})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
    ("slice_", "shape"),
    [
        ("v6e:4x4", {"fsdp": 8, "tensor": 2}),
        ("v5p:4x4x4", {"fsdp": 32, "tensor": 2}),
        ("v5e:4x8", {"data": 2, "fsdp": 16}),
    ],
)
def test_sizes_need_not_be_those_of_a_slice(topology, slice_, shape):
    """A mesh axis may take part of an axis of the slice; tensor's chips are neighbours."""
    mesh = make_mesh(shape, topology(slice_))
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1} | shape
    assert len(set(mesh.devices.reshape(-1))) == mesh.size
    for pair in mesh.devices.reshape(-1, mesh.shape["tensor"]):
        if len(pair) == 2:
            assert sum(abs(a - b) for a, b in zip(pair[0].coords, pair[1].coords, strict=True)) == 1


def test_put_batch_splits_rows_over_data_and_fsdp():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = put_batch({"x": np.arange(16).reshape(8, 2)}, mesh)["x"]
    assert {s.data.shape for s in rows.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(rows, np.arange(16).reshape(8, 2))
