"""Equal to transformers + torch in fp32: vision tower, text, whole model, values and gradients, greedy tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from oracle import Item, our_inputs, tokens, torch_inputs

from jvr1.model import hf, vision_language
from jvr1.model.families import from_hf
from jvr1.model.qwen2_5_vl.weights import published_name
from jvr1.model.text import KV
from jvr1.model.weights import hf_tensors
from jvr1.sharding import make_mesh, param_shardings

pytestmark = [pytest.mark.usefixtures("strict_dtypes"), pytest.mark.slow]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def load(model, tmp_path, **kw):
    """Ours from the torch model, through an HF folder."""
    model.save_pretrained(tmp_path / "hf")
    config = hf.read_config(tmp_path / "hf")
    graphdef, shapes = vision_language.abstract(config, **kw)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return config, graphdef, hf.load(tmp_path / "hf", config, shapes, param_shardings(shapes, mesh))


@pytest.fixture(scope="module", params=["untied", "tied"])
def pair(request, tmp_path_factory):
    raw = oracle.raw_config(tie_word_embeddings=request.param == "tied")
    model = oracle.torch_model(raw)
    return model, *load(model, tmp_path_factory.mktemp("parity"))


CASES = {
    "text": lambda r: [11],
    "image": lambda r: [3, Item(r, 1, 8, 8), 5],
    "images": lambda r: [2, Item(r, 1, 4, 6), 3, Item(r, 1, 10, 8), 4],
    "video": lambda r: [3, Item(r, 6, 8, 12, 1.0), 6],
    "odd video, real seconds": lambda r: [3, Item(r, 5, 6, 8, 0.73), 6],
    "image beside video": lambda r: [3, Item(r, 1, 6, 4), 2, Item(r, 4, 4, 10, 1.37), 4],
    "one row": lambda r: [2, Item(r, 1, 2, 14), 3],
    "one column": lambda r: [2, Item(r, 1, 18, 2), 3],
    "10x50": lambda r: [2, Item(r, 1, 10, 50), 3],
    "14x36": lambda r: [2, Item(r, 2, 14, 36, 1.0), 3],
}


def case(name):
    rng = np.random.default_rng(len(name))
    parts = CASES[name](rng)
    return tokens(rng, *parts), [p for p in parts if isinstance(p, Item)]


@pytest.fixture(scope="module")
def tower(pair):
    return jax.jit(lambda params, visual: vision_language.merge(pair[2], params).visual(visual))


@pytest.fixture(scope="module")
def logits(pair):
    def logits(params, prompt, visual):
        model = vision_language.merge(pair[2], params)
        return model.logits(model(prompt, visual))

    return jax.jit(logits)


LARGE = ("10x50", "14x36")
PADDED = {"windows": 3, "steps": 4, "slots": 8}
"""The room that takes every case but LARGE: one program for them all, and one for text."""


@pytest.mark.parametrize("name", [name for name in CASES if name != "text"])
def test_vision_tower(pair, tower, name):
    model, config, _, params = pair
    _, items = case(name)
    for item in items:
        with torch.no_grad():
            want = model.model.visual(torch.tensor(item.pixel_values()), torch.tensor([item.grid[:3]])).pooler_output
        visual, order = oracle.visual_inputs([item], config, **({} if name in LARGE else PADDED))
        got = tower(params, type(visual)(*(jnp.asarray(x)[None] for x in visual)))
        got = np.asarray(got).reshape(-1, got.shape[-1])[order]
        np.testing.assert_allclose(got, want.numpy(), **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in CASES if name not in LARGE for side in ("left", "right")]
    + [(name, "none") for name in ("text", "images", *LARGE)],
)
def test_logits(pair, logits, name, side):
    model, config, _, params = pair
    ids, items = case(name)
    with torch.no_grad():
        want = model(**torch_inputs(ids, items, config)).logits[0].numpy()
    padded = {"length": 90, "left": side == "left", **PADDED}
    prompt, visual = our_inputs(ids, items, config, **({} if side == "none" else padded))
    got = np.asarray(logits(params, prompt, visual))[0]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[np.asarray(prompt.mask[0])], want, **TOLERANCE)


@pytest.mark.parametrize(("name", "remat"), [("image beside video", "full"), ("14x36", "dots")])
def test_gradients_of_every_parameter(pair, tmp_path, name, remat):
    model, config, _, params = pair
    graphdef, _ = vision_language.abstract(config, remat=remat)
    ids, items = case(name)
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(len(ids), config.text.vocab)).astype(np.float32)
    model.zero_grad()
    (model(**torch_inputs(ids, items, config)).logits[0] * torch.tensor(weights)).sum().backward()
    prompt, visual = our_inputs(ids, items, config, len(ids) + 5)

    def loss(params):
        model = vision_language.merge(graphdef, params)
        logits = model.logits(model(prompt, visual))[0]
        return jnp.sum(jnp.where(prompt.mask[0][:, None], logits, jnp.float32(0)) * padded)

    padded = np.zeros((prompt.ids.shape[1], config.text.vocab), np.float32)
    padded[: len(ids)] = weights
    grads = jax.jit(jax.grad(loss))(params)
    theirs = {published_name(n): p.grad for n, p in model.named_parameters()}
    for tensor in hf_tensors(config, grads):
        got = hf._fetch(grads, tensor, "float32")
        want = theirs[tensor.name]
        want = np.zeros_like(got) if want is None else want.numpy()
        assert np.isfinite(got).all()
        error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-6)
        assert error < 1e-3, (tensor.name, error)


def test_published_7b_dimensions(tmp_path):
    """The 7B cut to a decoder layer, 2 vision layers and a small vocabulary, weights at trained scale (depth:
    test_depth.py)."""
    section = {"type": "mrope", "mrope_section": [16, 24, 24]}
    raw = oracle.raw_config(
        hidden_size=3584, num_hidden_layers=1, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
        rope_theta=1e6, rope_scaling=section, vocab_size=512, vision_depth=2, vision_hidden_size=1280,
        vision_num_heads=16, vision_intermediate_size=3420, vision_out_hidden_size=3584,
        vision_fullatt_block_indexes=[1],
    )  # fmt: skip
    model = oracle.torch_model(raw, scale=0.02)
    config, graphdef, params = load(model, tmp_path)
    rng = np.random.default_rng(0)
    video = Item(rng, 4, 8, 14, 1.0)
    ids = tokens(rng, 4, video, 8)
    with torch.no_grad():
        want = model(**torch_inputs(ids, [video], config)).logits[0].numpy()
    prompt, visual = our_inputs(ids, [video], config)
    module = vision_language.merge(graphdef, params)
    got = np.asarray(jax.jit(lambda m, p, v: m.logits(m(p, v)))(module, prompt, visual))[0]
    np.testing.assert_allclose(got, want, **TOLERANCE)


def test_greedy_decoding_gives_the_tokens_of_generate(pair):
    model, config, graphdef, params = pair
    ids, items = case("video")
    inputs = torch_inputs(ids, items, config)
    # transformers advances text one by one from the last position it was given, which is our rule after the prompt
    want = greedy_torch(model, inputs, ids, config, items, 12)
    prompt, visual = our_inputs(ids, items, config, len(ids) + 6)
    got = greedy_ours(vision_language.merge(graphdef, params), prompt, visual, 12)
    assert got == want


def greedy_torch(model, inputs, ids, config, items, count):
    kind = np.where(ids == oracle.IMAGE, 1, np.where(ids == oracle.VIDEO, 2, 0))
    positions = inputs.pop("position_ids")
    following = our_inputs(ids, items, config)[0].next_position[0]
    model.model.rope_deltas = torch.tensor([[int(following) - len(ids)]])
    original = model.model.get_rope_index
    model.model.get_rope_index = lambda *a, **k: (positions, model.model.rope_deltas)
    try:
        out = model.generate(
            **inputs,
            mm_token_type_ids=torch.tensor(kind)[None],
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
    finally:
        model.model.get_rope_index = original
    return out[0, len(ids) :].tolist()


def greedy_ours(model, prompt, visual, count):
    last, prefix = model.prefill(prompt, visual, None if visual is None else visual.pair[:, None])
    layers, b, _, heads, _, size = prefix[0].v.shape
    lines = (layers, b, 1, heads)
    cache = KV(jnp.zeros((*lines, size, count)), jnp.zeros((*lines, count, size)))
    step = jax.jit(lambda *a: model.decode(*a, rows=(1,)))
    out = [_best(model.logits(last)[0, 0])]
    for i in range(count - 1):
        token, position = jnp.asarray([[out[-1]]], jnp.int32), (prompt.next_position + np.int32(i))[:, None]
        written = jnp.full((1, 1), i + 1, jnp.int32)
        hidden, cache = step(token, position, prefix, prompt.mask[:, None], cache, jnp.int32(i), written)
        out.append(_best(model.logits(hidden)[0, 0]))
    return out


def _best(logits):
    """`min_new_tokens` keeps generate from ending: it masks the end token."""
    return int(np.argmax(np.where(np.arange(len(logits)) == 2, -np.inf, np.asarray(logits))))


def test_config_reads_both_forms(tmp_path):
    raw = oracle.raw_config()
    model = oracle.torch_model(raw)
    model.config.save_pretrained(tmp_path)
    assert hf.read_config(tmp_path) == from_hf(raw)
