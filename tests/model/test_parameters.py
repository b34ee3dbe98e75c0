"""The table of parameters against the model itself: names, axes, what products contract, sides of matrices."""

from __future__ import annotations

import jax
import pytest

from jvr1.model import vision_language
from jvr1.model.families import known, published
from jvr1.model.lora import LoRAConfig, linear_maps
from jvr1.model.parameters import DECODER_PARAMETERS, MESH_AXES
from jvr1.sharding import AXES, path_name

PARAMETERS = {**DECODER_PARAMETERS, **published("7b").family.parameters}
GRAPHDEF, SHAPES = vision_language.abstract(published("7b"), lora=LoRAConfig(16, 8.0, (".*",)))
ARRAYS = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(SHAPES)}


def test_every_parameter_is_in_the_table_with_its_axes():
    assert set(ARRAYS) <= set(PARAMETERS)
    assert {name: len(known(name).axes) for name in ARRAYS} == {name: len(shape) for name, shape in ARRAYS.items()}
    assert set(MESH_AXES) <= {axis for one in PARAMETERS.values() for axis in one.axes}
    assert set(MESH_AXES.values()) <= set(AXES)


def test_an_axis_has_one_size_in_all_that_has_it():
    """But for the text's and the tower's, which are of two sizes."""
    for part in ("text", "visual/blocks"):
        sizes: dict[str, set[int]] = {}
        for name, shape in ARRAYS.items():
            for axis, size in zip(known(name).axes, shape, strict=True):
                if name.startswith(part):
                    sizes.setdefault(axis, set()).add(size)
        assert {axis: found for axis, found in sizes.items() if len(found) > 1} == {}


def test_products_contract_what_the_linear_maps_contract():
    maps = dict(linear_maps(vision_language.merge(GRAPHDEF, SHAPES)))
    assert {f"{name}/kernel" for name in maps} == {n for n in ARRAYS if known(n).contracted and n.endswith("/kernel")}
    for name, linear in maps.items():
        assert known(f"{name}/kernel").contracted == linear.contracted
    assert {n for n in maps if not known(f"{n}/kernel").hidden} == {"text/head", "visual/patch_embed"}


@pytest.mark.parametrize(
    ("name", "batch", "sides"),  # sides: in_features and out_features of HF's modules
    [
        ("text/layers/q/kernel", (0,), (3584, 3584)),
        ("text/layers/k/kernel", (0,), (3584, 512)),
        ("text/layers/o/kernel", (0,), (3584, 3584)),
        ("text/layers/mlp/down/kernel", (0,), (18944, 3584)),
        ("text/layers/o/lora_a", (0,), (3584, 16)),
        ("text/layers/k/lora_b", (0,), (16, 512)),
        ("visual/blocks/qkv/kernel", (0, 2), (1280, 1280)),
        ("visual/blocks/qkv/lora_b", (0, 2), (16, 1280)),
        ("visual/blocks/proj/kernel", (0,), (1280, 1280)),
        ("visual/patch_embed/kernel", (), (1176, 1280)),
        ("visual/merge_out/kernel", (), (5120, 3584)),
        ("text/head/kernel", (), (3584, 152064)),
    ],
)
def test_matrices(name, batch, sides):
    matrix = known(name).matrix
    assert matrix is not None
    assert (matrix.batch, matrix.sides(ARRAYS[name])) == (batch, sides)
    if known(name).stacked:
        assert matrix.of_a_layer().sides(ARRAYS[name][1:]) == sides


@pytest.mark.parametrize("name", ["text/embedding", "text/layers/q/bias", "text/layers/norm1/scale", "unheard/of"])
def test_what_is_in_no_product_is_no_matrix(name):
    assert known(name).matrix is None
    assert not known(name).hidden
    assert known(name).decays == (name == "text/embedding")
