"""The vision tower: LayerNorm, learned positions resampled to each frame, full attention within a temporal step, and
DeepStack (arXiv 2406.04334), the outputs of some blocks made tokens too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jvr1.model.attention import attend
from jvr1.model.inputs import Visual
from jvr1.model.layers import LayerNorm, Linear, PlainMLP, constrain, constrain_batch, scan_layers, scan_stops, stack
from jvr1.model.patches import normalised_pairs
from jvr1.model.qwen3_vl.config import DeepVision
from jvr1.model.qwen3_vl.frames import IMAGE_MEAN, IMAGE_STD
from jvr1.model.rope import rotate, vision_angles


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=True)


class DeepBlock(nnx.Module):
    """Pre-norm attention and MLP (HF `Qwen3VLVisionBlock`)."""

    def __init__(self, config: DeepVision, *, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        size, head = config.hidden, config.hidden // config.heads
        kw: dict[str, Any] = {"std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1, self.norm2 = (LayerNorm(size, eps=config.eps, param_dtype=param_dtype) for _ in range(2))
        self.qkv = Linear((size,), (3, config.heads, head), bias=True, **kw)
        self.proj = Linear((config.heads, head), (size,), bias=True, **kw)
        self.mlp = PlainMLP(size, config.intermediate, gelu_tanh, **kw)

    def __call__(
        self, x: Float[Array, "b S D"], angles: Float[Array, "b S h"], real: Bool[Array, "b S"]
    ) -> Float[Array, "b S D"]:
        """x: steps of so many slots. Left to XLA: a kernel would fill up heads of 72 values to 128."""
        qkv = self.qkv(self.norm1(x))
        q, k = (rotate(qkv[..., i, :, :], angles) for i in (0, 1))
        x = x + self.proj(attend(q, k, qkv[..., 2, :, :], real))
        return x + self.mlp(self.norm2(x))


def merged(module: Any, x: Float[Array, "*X S D"], patches: int, *, joined_norm: bool) -> Float[Array, "*X U d"]:
    """Each `patches` neighbours made one token (HF `Qwen3VLVisionPatchMerger`, exact GELU); joined_norm: the norm is of
    what is joined already."""
    if not joined_norm:
        x = module.merge_norm(x)
    x = x.reshape(*x.shape[:-2], x.shape[-2] // patches, -1)
    if joined_norm:
        x = module.merge_norm(x)
    return module.merge_out(jax.nn.gelu(module.merge_in(x), approximate=False))


class DeepMerger(nnx.Module):
    """Tokens of a block's output, for a layer of the decoder."""

    def __init__(self, config: DeepVision, *, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        joined = config.hidden * config.merge**2
        kw: dict[str, Any] = {"bias": True, "std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.patches = config.merge**2
        self.merge_norm = LayerNorm(joined, eps=config.eps, param_dtype=param_dtype)
        self.merge_in = Linear((joined,), (joined,), **kw)
        self.merge_out = Linear((joined,), (config.out_hidden,), **kw)

    def __call__(self, x: Float[Array, "*X S D"]) -> Float[Array, "*X U d"]:
        return merged(self, x, self.patches, joined_norm=True)


class DeepTower(nnx.Module):
    """uint8 frames -> visual tokens in the decoder's width, and those of DeepStack (HF `Qwen3VLVisionModel`)."""

    def __init__(
        self, config: DeepVision, *, remat: str, std: float, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        kw: dict[str, Any] = {"std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.config, self.remat, self.dtype = config, remat, dtype
        joined = config.hidden * config.merge**2
        self.patch_embed = Linear((2, config.patch_values), (config.hidden,), bias=True, **kw)
        table = jax.random.normal(rngs.params(), (config.positions, config.hidden), param_dtype)
        self.positions = nnx.Param(table * jnp.asarray(std, param_dtype))
        self.blocks = stack(
            lambda rngs: DeepBlock(config, std=std, param_dtype=param_dtype, rngs=rngs), config.depth, rngs
        )
        self.merge_norm = LayerNorm(config.hidden, eps=config.eps, param_dtype=param_dtype)
        self.merge_in = Linear((joined,), (joined,), bias=True, **kw)
        self.merge_out = Linear((joined,), (config.out_hidden,), bias=True, **kw)
        levels = len(config.deep_blocks)

        def make(rngs: nnx.Rngs) -> DeepMerger:
            return DeepMerger(config, std=std, param_dtype=param_dtype, rngs=rngs)

        self.deepstack = stack(make, levels, rngs) if levels else None

    def __call__(self, visual: Visual) -> Float[Array, "B F W U D"]:
        return self.levels(visual)[0]

    def levels(self, visual: Visual) -> tuple[Float[Array, "B F W U D"], Float[Array, "K B F W U D"] | None]:
        """The tokens of the prompt, and those that are added after each of the decoder's first K layers."""
        config = self.config
        b, f, w, slots, _ = visual.hw.shape
        hw = visual.hw.reshape(b * f, w * slots, 2)
        real, hw = hw[..., 0] >= 0, jnp.maximum(hw, 0)
        angles = vision_angles(hw, config.hidden // config.heads)
        pixels = normalised_pairs(visual.frames, visual.pair, config.patch, IMAGE_MEAN, IMAGE_STD)
        x = self.patch_embed(pixels.astype(self.dtype)).reshape(b * f, w * slots, -1)
        x = constrain_batch(x + self.placed(hw).astype(self.dtype))

        def block(layer: DeepBlock, x: Array) -> Array:
            return constrain_batch(layer(x, angles, real))

        def apart(x: Array) -> Array:
            return x.reshape(*x.shape[:-3], b, f, w, -1, x.shape[-1])

        *deep, last = scan_stops(self.blocks, config.deep_blocks, block, x, remat=self.remat)
        tokens = apart(merged(self, last, config.merge**2, joined_norm=False))
        if self.deepstack is None:
            return tokens, None

        def level(layer: DeepMerger, carry: None, x: Array) -> tuple[None, Array]:
            return carry, constrain_batch(layer(x))

        return tokens, apart(scan_layers(self.deepstack, level, None, jnp.stack(deep), remat=self.remat)[1])

    def placed(self, hw: Int[Array, "b S 2"]) -> Float[Array, "b S D"]:
        """The table of positions resampled to each step's own rows and columns, in fp32.

        A product with the weights of all its places, of which four are not zero: its gradient is a product as well,
        where that of a gather would add row by row. Computed again in the backward pass: the weights are large.
        """
        table = constrain(self.positions[...].astype(jnp.float32), None, None)
        side = self.config.side

        def product(hw: Array, table: Array) -> Array:
            return jnp.einsum("bsp,pd->bsd", place_weights(hw, side), table, precision=jax.lax.Precision.HIGHEST)

        return jax.checkpoint(product)(hw, table)


def place_weights(hw: Int[Array, "b S 2"], side: int) -> Float[Array, "b S p"]:
    """Bilinear weights of the places of a side x side table for patches at (row, column) of frames that span the whole
    table, corner to corner (align_corners)."""
    last = jnp.max(hw, axis=1, keepdims=True)
    at = hw.astype(jnp.float32) * jnp.float32(side - 1) / jnp.maximum(last, 1).astype(jnp.float32)
    places = jnp.arange(side, dtype=jnp.float32).reshape(1, 1, 1, side)
    near = jnp.maximum(1 - jnp.abs(at[..., None] - places), 0)
    both = near[:, :, 0, :, None] * near[:, :, 1, None, :]
    return both.reshape(*hw.shape[:2], side**2)
