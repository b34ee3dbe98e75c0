"""The forms of Qwen3-VL agree as those of Qwen2.5-VL do (test_forms.py), with its levels of DeepStack in all of them;
sharded equals unsharded."""

from __future__ import annotations

import deep
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AbstractMesh

from jvr1.model import vision_language
from jvr1.model.families import from_hf, known, published
from jvr1.sharding import AXES, partition_spec, path_name
from tests import test_sharding as sharding
from tests.model import test_forms as forms

CONFIG = from_hf(
    deep.raw_config(num_hidden_layers=2, vision_depth=2, vision_hidden_size=16, vision_deepstack_visual_indexes=[0, 1])
)
SPLIT = from_hf(
    deep.raw_config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=8, intermediate_size=64, vision_depth=2,
        vision_hidden_size=64, vision_num_heads=4, vision_intermediate_size=40, vision_out_hidden_size=64,
        vision_num_position_embeddings=64, vision_deepstack_visual_indexes=[1], initializer_range=0.2,
    )
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def of_this_family():
    with pytest.MonkeyPatch.context() as patch:
        for module, config in ((forms, CONFIG), (sharding, SPLIT)):
            patch.setattr(module, "CONFIG", config)
            patch.setattr(module, "Item", deep.DeepItem)
        forms.batch.cache_clear()
        yield
    forms.batch.cache_clear()


@pytest.fixture(scope="module")
def model():
    return oracle.random_model(CONFIG)


@pytest.mark.usefixtures("strict_dtypes")
def test_prefix_and_completions_equal_separate_forwards(model):
    forms.test_prefix_and_completions_equal_separate_forwards(model)


@pytest.mark.usefixtures("strict_dtypes")
def test_prefill_and_decode_equal_the_full_forward(model):
    forms.test_prefill_and_decode_equal_the_full_forward(model, 2)


@pytest.mark.slow
@pytest.mark.parametrize("left", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_hidden_states_do_not_see_the_padding(model, left):
    forms.test_hidden_states_do_not_see_the_padding(model, left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"rows": 2, "frames": 3, "steps": 0, "windows": 0}, marks=pytest.mark.nightly),
        {"rows": 0, "frames": 0, "steps": 2, "windows": 2},
    ],
)
def test_visual_tokens_do_not_change_when_padding_grows(model, more):
    forms.test_visual_tokens_do_not_change_when_padding_grows(model, more)


@pytest.mark.slow
def test_rows_and_steps_of_padding_alone_are_finite_in_value_and_gradient(model):
    forms.test_rows_and_steps_of_padding_alone_are_finite_in_value_and_gradient(model)


def test_text_alone_has_no_levels(model):
    """And no tower in its program."""
    graphdef, params = model
    prompt, _ = forms.batch()
    prompt = prompt._replace(visual_index=jnp.full_like(prompt.visual_index, -1))
    given = jax.eval_shape(lambda p: vision_language.merge(graphdef, p)(prompt, None), params)
    assert given.shape == (*prompt.ids.shape, CONFIG.text.hidden)


@pytest.fixture(scope="module")
def unsharded():
    graphdef, params = oracle.random_model(SPLIT, remat="full")
    params = jax.tree.map(np.asarray, params)
    step = jax.jit(jax.value_and_grad(lambda p, b: sharding.loss_of(graphdef, p, *b)))
    return graphdef, params, *step(params, sharding.batch())


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.nightly) for s in ((1, 8, 1), (8, 1, 1), (1, 4, 2)))],
)
def test_sharded_equals_unsharded(unsharded, sizes):
    sharding.test_sharded_equals_unsharded(unsharded, sizes)


@pytest.mark.parametrize("size", ["qwen3-vl-4b", "qwen3-vl-8b"])
def test_every_parameter_of_the_published_models_is_known_and_split(size):
    _, shapes = vision_language.abstract(published(size))
    for path, x in jax.tree_util.tree_leaves_with_path(shapes):
        name = path_name(path)
        assert len(known(name).axes) == x.ndim, name
        for sizes in ((1, 8, 1), (4, 8, 2)):
            assert any(partition_spec(name, x.shape, AbstractMesh(sizes, AXES))), name
