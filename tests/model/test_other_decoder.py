"""A decoder of other layers on the shared one: Qwen3-VL's (DeepStack, norms of queries and keys, heads of their own
size, interleaved M-RoPE), judged by transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from jvr1.model import families
from jvr1.model.attention import QKV
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.families import FAMILIES, published
from jvr1.model.layers import Linear, RMSNorm, scan_layers
from jvr1.model.rope import rotate, text_angles
from jvr1.model.text import Embedded, TextDecoder, TextLayer
from jvr1.model.weights import DECODER_NAMES, Rule, get, hf_tensors, to_ours

pytestmark = pytest.mark.slow
P, G, C, DEEP, HEAD = 9, 2, 4, 2, 16
VISUAL = slice(2, 6)
SECTION = (4, 2, 2)


@dataclass(frozen=True)
class HeadedText(TextConfig):
    @property
    def head_size(self) -> int:
        return HEAD


class NormedLayer(TextLayer):
    def __init__(self, config: TextConfig, *, std, param_dtype, rngs):
        super().__init__(config, std=std, param_dtype=param_dtype, rngs=rngs)
        kw: dict[str, Any] = {"bias": False, "std": std, "param_dtype": param_dtype, "rngs": rngs}
        for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
            setattr(self, name, Linear((config.hidden,), (heads, config.head_size), **kw))
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_size, eps=config.eps, param_dtype=param_dtype) for _ in range(2)
        )

    def qkv(self, x, angles) -> QKV:
        x = self.norm1(x)
        return QKV(rotate(self.q_norm(self.q(x)), angles), rotate(self.k_norm(self.k(x)), angles), self.v(x))


@dataclass(frozen=True)
class Deep(Embedded):
    """deep: what is added to the prompt's tokens after each of the first layers, [K,B,P,D]."""

    deep: jax.Array


class DeepDecoder(TextDecoder):
    def through(self, given: Deep, x, attend):
        def body(layer, x, number):
            mixed, kept = attend(layer, x)
            x = layer.finish(x, mixed)
            add = jnp.where(number < DEEP, given.deep[jnp.minimum(number, DEEP - 1)], 0)
            return jnp.concatenate([x[:, :P] + add, x[:, P:]], axis=1), kept

        return scan_layers(self.layers, body, x, jnp.arange(self.config.layers), remat=self.remat)


def interleaved(text: TextConfig) -> np.ndarray:
    i = np.arange(text.head_size // 2)
    axes = np.zeros_like(i)
    for axis in (1, 2):
        axes[(i % 3 == axis) & (i < 3 * text.mrope_section[axis])] = axis
    return axes


@pytest.fixture
def config(monkeypatch) -> ModelConfig:
    norms = (f"self_attn.{name}_norm" for name in "qk")
    rules = (Rule(f"model.layers.{{}}.{name}.weight", f"text/layers/{name[-6:]}/scale") for name in norms)
    own = replace(FAMILIES["qwen2_5_vl"], model_type="normed", weights=(*DECODER_NAMES, *rules), rope_axes=interleaved)
    monkeypatch.setattr(families, "FAMILIES", {**FAMILIES, "normed": own})
    text = HeadedText(40, 3, 4, 2, 56, 30, mrope_section=SECTION, rope_theta=5e6)
    return replace(published("7b"), model_type="normed", text=text, tied=True)


@pytest.fixture
def theirs() -> Qwen3VLTextModel:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": list(SECTION), "mrope_interleaved": True}
    raw = Qwen3VLTextConfig(
        vocab_size=30, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=HEAD, rope_parameters=rope,
    )  # fmt: skip
    raw._attn_implementation = "eager"
    torch.manual_seed(0)
    model = Qwen3VLTextModel(raw).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else 0.3 * torch.randn_like(p))
    return model


def loaded(config: ModelConfig, shapes: dict, theirs: Qwen3VLTextModel) -> dict:
    """Their weights in our places."""
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), shapes)
    values = {f"model.{name}": value.detach().numpy() for name, value in theirs.state_dict().items()}
    for tensor in hf_tensors(config, {"text": params}):
        leaf = get({"text": params}, tensor.rule.path)
        part = leaf if tensor.layer is None else leaf[tensor.layer]
        part[...] = to_ours(tensor, values.pop(tensor.name), part.shape)
    assert values == {}
    return jax.tree.map(jnp.asarray, params)


def test_values_are_those_of_transformers(config, theirs):
    """A prompt with visual tokens, whose features enter after the first layers, and its completions."""
    rng, text = np.random.default_rng(0), config.text

    def make() -> DeepDecoder:
        kw = {"std": 0.02, "dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        return DeepDecoder(text, tied=True, remat="none", attention="xla", layer=NormedLayer, **kw)

    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    params = loaded(config, nnx.to_pure_dict(shapes), theirs)
    x, y = rng.normal(size=(1, P, 40)).astype(np.float32), rng.normal(size=(1, G, C, 40)).astype(np.float32)
    deep = np.zeros((DEEP, 1, P, 40), np.float32)
    deep[:, :, VISUAL] = rng.normal(size=deep[:, :, VISUAL].shape)
    positions = rng.integers(0, 7, (3, P)).cumsum(1)
    own = np.broadcast_to(positions.max() + 1 + np.arange(C), (3, C))

    def angles(positions):
        return text_angles(jnp.asarray(positions)[None], config.family.rope_axes(text), HEAD, text.rope_theta)

    def run(params, x, deep, y):
        decoder = nnx.merge(graphdef, params)
        given = Deep(x, angles(positions), jnp.ones((1, P), bool), deep)
        own_angles = jnp.broadcast_to(angles(own)[:, None], (1, G, C, HEAD // 2))
        return decoder.prompt(given, keep=False)[0], decoder.complete(given, y, own_angles)

    alone, (prompt, completions) = jax.jit(run)(params, x, deep, y)
    mask = np.zeros((1, P + C), bool)
    mask[:, VISUAL] = True
    for row in range(G):
        with torch.no_grad():
            want = theirs(
                inputs_embeds=torch.tensor(np.concatenate([x, y[:, row]], axis=1)),
                position_ids=torch.tensor(np.concatenate([positions, own], axis=1))[:, None],
                visual_pos_masks=torch.tensor(mask),
                deepstack_visual_embeds=[torch.tensor(d[0, VISUAL]) for d in deep],
            ).last_hidden_state.numpy()
        for got in (alone, prompt):
            np.testing.assert_allclose(got, want[:, :P], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(completions[:, row], want[:, P:], rtol=1e-4, atol=1e-4)
