"""The decoder, with norms of queries and keys, and visual tokens added again after its first layers (DeepStack)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jvr1.model.attention import QKV
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.layers import RMSNorm, constrain_batch, scan_layers
from jvr1.model.qwen3_vl.tower import DeepTower
from jvr1.model.rope import rotate
from jvr1.model.text import Embedded, TextDecoder, TextLayer
from jvr1.model.vision_language import VisionLanguageModel, at_places


class NormedLayer(TextLayer):
    """Queries and keys have an RMS norm over each head, and no bias (HF `Qwen3VLTextDecoderLayer`)."""

    bias = False

    def __init__(self, config: TextConfig, *, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, std=std, param_dtype=param_dtype, rngs=rngs)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_size, eps=config.eps, param_dtype=param_dtype) for _ in range(2)
        )

    def qkv(self, x: Float[Array, "*X D"], angles: Float[Array, "*X h"]) -> QKV:
        x = self.norm1(x)
        return QKV(rotate(self.q_norm(self.q(x)), angles), rotate(self.k_norm(self.k(x)), angles), self.v(x))


@dataclass(frozen=True)
class Deep(Embedded):
    """deep: what is added to the prompts' tokens after each of the first K layers, zero at text; None: nothing."""

    deep: Float[Array, "K B P D"] | None


class DeepDecoder(TextDecoder):
    def through(
        self, given: Embedded, x: Array, attend: Callable[[TextLayer, Array], tuple[Array, Any]]
    ) -> tuple[Array, Any]:
        assert isinstance(given, Deep)
        if given.deep is None:
            return super().through(given, x, attend)
        deep, after = given.deep, x.shape[1] - given.x.shape[1]
        levels = len(deep)

        def body(layer: TextLayer, x: Array, number: Array) -> tuple[Array, Any]:
            mixed, kept = attend(layer, x)
            x = layer.finish(x, mixed)
            add = jnp.where(number < levels, deep[jnp.minimum(number, levels - 1)], 0)
            return constrain_batch(x + jnp.pad(add, ((0, 0), (0, after), (0, 0)))), kept

        # one scan, not two: its parts would be copies of the stacked weights
        numbers = jnp.arange(self.config.layers)
        return scan_layers(self.layers, body, constrain_batch(x), numbers, remat=self.remat)


class Qwen3VL(VisionLanguageModel):
    """HF `Qwen3VLForConditionalGeneration`."""

    def __init__(self, config: ModelConfig, **kw: Any):
        super().__init__(config, DeepTower, partial(DeepDecoder, layer=NormedLayer), **kw)

    def embed(
        self,
        prompt: Prompt,
        visual: Visual | None,
        streams: int = 1,
        tokens: Float[Array, "B P D"] | None = None,
    ) -> Deep:
        x = self.text.embed(prompt.ids) if tokens is None else tokens
        levels = None
        if visual is not None:
            assert isinstance(self.visual, DeepTower)
            merged, found = self.visual.levels(visual)
            nothing = jnp.zeros_like(x)
            x = at_places(merged, prompt.visual_index, streams, x)
            if found is not None:
                levels = jnp.stack([at_places(one, prompt.visual_index, streams, nothing) for one in found])
        return Deep(x, self._angles(prompt.positions), prompt.mask, levels)
