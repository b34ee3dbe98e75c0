"""Qwen3-VL equal to transformers + torch in fp32: tower, positions, logits, gradients, greedy tokens; its config and
weights there and back."""

from __future__ import annotations

import json

import deep
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from deep import DeepItem as Item
from oracle import our_inputs, tokens, torch_inputs
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from jvr1.errors import UserError
from jvr1.model import hf, vision_language
from jvr1.model.families import from_hf, published, to_hf
from jvr1.model.qwen3_vl.tower import DeepTower
from jvr1.model.weights import hf_tensors
from tests.model.test_parity import greedy_ours, load

pytestmark = pytest.mark.usefixtures("strict_dtypes")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
RAW = deep.raw_config()
CASES = {
    "text": lambda r: [11],
    "images": lambda r: [2, Item(r, 1, 4, 6), 3, Item(r, 1, 10, 8), 4],
    "odd video": lambda r: [3, Item(r, 5, 6, 8), 6],
    "image beside videos": lambda r: [3, Item(r, 1, 6, 4), 2, Item(r, 4, 4, 10), Item(r, 2, 2, 14), 4],
    "one column": lambda r: [2, Item(r, 1, 18, 2), 3],
}
PADDED = {"windows": 20, "steps": 5, "slots": 9}
"""The room that takes every case: one program for them all, and one for text."""
OFTEN = ("images", "image beside videos")


def often(names):
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=["untied", pytest.param("tied", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """Tied: with a single level of DeepStack, from the last block."""
    changes = {"tie_word_embeddings": True, "vision_deepstack_visual_indexes": [3]} if request.param == "tied" else {}
    model = oracle.torch_model(deep.raw_config(**changes))
    return model, *load(model, tmp_path_factory.mktemp("deep"))


def case(name):
    rng = np.random.default_rng(len(name))
    parts = CASES[name](rng)
    return tokens(rng, *parts), [p for p in parts if isinstance(p, Item)]


def theirs_of(model, ids, items, config):
    """Their inputs with their own positions, which ours must be."""
    given = torch_inputs(ids, items, config)
    kinds = torch.tensor(np.select([ids == oracle.IMAGE, ids == oracle.VIDEO], [1, 2]))[None]
    grids = {name: given[name] for name in given if "grid" in name}
    positions, delta = model.model.get_rope_index(given["input_ids"], kinds, **grids)
    np.testing.assert_array_equal(given["position_ids"], positions)
    following = config.family.positions(ids, [i.grid for i in items], config)[1]
    assert following == len(ids) + int(delta)
    return given | {"mm_token_type_ids": kinds}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "odd video"])
def test_tower_and_its_levels(pair, name):
    model, config, graphdef, params = pair
    _, items = case(name)

    def levels(params, visual):
        tower = vision_language.merge(graphdef, params).visual
        assert isinstance(tower, DeepTower)
        return tower.levels(visual)

    run = jax.jit(levels)
    for item in items:
        with torch.no_grad():
            want = model.model.visual(torch.tensor(item.pixel_values()), torch.tensor([item.grid[:3]]))
        visual, order = oracle.visual_inputs([item], config, steps=4)
        tokens, levels = run(params, type(visual)(*(jnp.asarray(x)[None] for x in visual)))
        for got, expected in zip((tokens, *levels), (want.pooler_output, *want.deepstack_features), strict=True):
            flat = np.asarray(got).reshape(-1, got.shape[-1])
            np.testing.assert_allclose(flat[order], expected.numpy(), **TOLERANCE)


@pytest.fixture(scope="module")
def logits(pair):
    def logits(params, prompt, visual):
        model = vision_language.merge(pair[2], params)
        return model.logits(model(prompt, visual))

    return jax.jit(logits)


@pytest.mark.parametrize("name", often(CASES))
def test_logits_and_positions(pair, logits, name):
    model, config, _, params = pair
    ids, items = case(name)
    with torch.no_grad():
        want = model(**theirs_of(model, ids, items, config)).logits[0].numpy()
    prompt, visual = our_inputs(ids, items, config, 75, name == "images", **PADDED)
    got = np.asarray(logits(params, prompt, visual))[0]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[np.asarray(prompt.mask[0])], want, **TOLERANCE)


@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.slow), "full"])
def test_gradients_of_every_parameter(pair, remat):
    model, config, _, params = pair
    graphdef, _ = vision_language.abstract(config, remat=remat)
    ids, items = case("image beside videos")
    weights = np.random.default_rng(5).normal(size=(len(ids), config.text.vocab)).astype(np.float32)
    model.zero_grad()
    (model(**torch_inputs(ids, items, config)).logits[0] * torch.tensor(weights)).sum().backward()
    prompt, visual = our_inputs(ids, items, config, len(ids) + 5)
    padded = np.zeros((prompt.ids.shape[1], config.text.vocab), np.float32)
    padded[: len(ids)] = weights

    def loss(params):
        model = vision_language.merge(graphdef, params)
        logits = model.logits(model(prompt, visual))[0]
        return jnp.sum(jnp.where(prompt.mask[0][:, None], logits, jnp.float32(0)) * padded)

    grads = jax.jit(jax.grad(loss))(params)
    theirs = {n: p.grad for n, p in model.named_parameters()}
    named = list(hf_tensors(config, grads))
    assert {tensor.name for tensor in named} == set(theirs)
    for tensor in named:
        got, want = hf._fetch(grads, tensor, "float32"), theirs[tensor.name].numpy()
        error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-6)
        assert error < 1e-3, (tensor.name, error)


@pytest.mark.slow
def test_greedy_decoding_gives_the_tokens_of_generate(pair):
    model, config, graphdef, params = pair
    ids, items = case("odd video")
    given = theirs_of(model, ids, items, config)
    given.pop("position_ids")
    want = model.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    prompt, visual = our_inputs(ids, items, config, len(ids) + 6)
    assert greedy_ours(vision_language.merge(graphdef, params), prompt, visual, 12) == want


def test_there_and_back_to_the_bit(pair, tmp_path):
    """The export opens in transformers without a key too few or too many."""
    model, config, _, params = pair
    hf.save(params, config, tmp_path / "out", carried={}, dtype="float32")
    model.save_pretrained(tmp_path / "theirs")
    given, got = (load_file(tmp_path / where / "model.safetensors") for where in ("theirs", "out"))
    assert set(given) == set(got)
    assert all(torch.equal(given[name], got[name]) for name in given)
    loaded, told = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, mine), want in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, want), name
    assert hf.read_config(tmp_path / "out") == config


def test_both_forms_of_the_config_are_read():
    old = json.loads(json.dumps(RAW))
    rope = old["text_config"].pop("rope_parameters")
    old["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    config = from_hf(RAW)
    assert from_hf(old) == config == from_hf(to_hf(config, "float32"))
    assert config.text.rope_theta == 5e6
    assert from_hf(AutoConfig.for_model(**RAW).to_dict()) == config
    assert from_hf(AutoConfig.for_model(**old).to_dict()) == config


@pytest.mark.parametrize("size", ["qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-32b"])
def test_published_sizes(size):
    """Their parameters are as many as those of transformers' model of the config that is written."""
    config = published(size)
    assert from_hf(to_hf(config, "bfloat16")) == config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**to_hf(config, "bfloat16")))
    shapes = vision_language.abstract(config)[1]
    ours = {tensor.name: tensor.shape for tensor in hf_tensors(config, shapes)}
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_deepstack_visual_indexes": [0, 1, 2, 3]}, r"\[0, 1, 2, 3\] are 4 levels, .* num_hidden_layers is 3$"),
        ({"vision_deepstack_visual_indexes": [2, 1]}, r"deepstack_visual_indexes \[2, 1\] must ascend"),
        ({"vision_deepstack_visual_indexes": [4]}, "deepstack_visual_indexes is .* each must be from 0 to 3"),
        ({"vision_num_position_embeddings": 30}, "num_position_embeddings is 30; it must be a square"),
        ({"vision_hidden_act": "silu"}, 'vision_config.hidden_act is "silu"; it must be gelu_pytorch_tanh'),
        ({"attention_bias": True}, "text_config.attention_bias is true; Qwen3-VL has False"),
        ({"head_dim": 12}, r"mrope_section \[4, 2, 2\] must add up to half of head_dim, 6"),
        ({"rope_parameters": {"mrope_section": [4, 2, 2]}}, "field 'text_config.rope_theta' is missing"),
        ({"rope_parameters": deep.ROPE | {"rope_type": "yarn"}}, "rope type 'yarn' is not supported"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        from_hf(deep.raw_config(**change), "here")
    assert str(error.value).startswith("here: ")


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen3_omni_moe"])
def test_its_relatives_are_refused_with_what_is_read(kind):
    with pytest.raises(UserError) as error:
        from_hf(RAW | {"model_type": kind}, "config.json")
    told = f"config.json: model_type is {kind!r}; jvr1 reads 'qwen2_5_vl' (Qwen2.5-VL), 'qwen3_vl' (Qwen3-VL, dense)"
    assert str(error.value) == told
