"""The vision tower over frames in window order: dense window attention, full attention within a temporal step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from jvr1.model.attention import attend
from jvr1.model.inputs import Visual
from jvr1.model.layers import GatedMLP, Linear, RMSNorm, constrain_batch, scan_kinds, stack
from jvr1.model.patches import normalised_pairs
from jvr1.model.qwen2_5_vl.config import VisionConfig
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD
from jvr1.model.rope import rotate, vision_angles


class VisionBlock(nnx.Module):
    """Pre-norm attention and gated MLP (HF `Qwen2_5_VLVisionBlock`)."""

    def __init__(self, config: VisionConfig, *, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        size, head = config.hidden, config.hidden // config.heads
        kw: dict[str, Any] = {"std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = RMSNorm(size, eps=config.eps, param_dtype=param_dtype)
        self.norm2 = RMSNorm(size, eps=config.eps, param_dtype=param_dtype)
        self.qkv = Linear((size,), (3, config.heads, head), bias=True, **kw)
        self.proj = Linear((config.heads, head), (size,), bias=True, **kw)
        self.mlp = GatedMLP(size, config.intermediate, bias=True, **kw)

    def __call__(self, x: Array, angles: Array, real: Array, full: bool) -> Array:
        """x [B,F,W,L,D]; real [B,F,W,L]; `full` widens attention from a window to its step.

        Both are left to XLA: full attention over a step of 512 slots is 1.34 GFLOP beside the 20.2 of the block's
        products, in 4 of 32 blocks, and for a kernel its heads of 80 values would be filled up to 128.
        """
        b, f, w, l, _ = x.shape
        qkv = self.qkv(self.norm1(x))
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        q, k = rotate(q, angles), rotate(k, angles)

        shape = (b * f, w * l) if full else (b * f * w, l)
        q_, k_, v_ = (y.reshape(*shape, *y.shape[-2:]) for y in (q, k, v))
        x = x + self.proj(attend(q_, k_, v_, real.reshape(shape)).reshape(q.shape))
        return x + self.mlp(self.norm2(x))


class VisionTower(nnx.Module):
    """uint8 frames -> merged visual tokens in the decoder's width (HF `Qwen2_5_VisionTransformerPretrainedModel`)."""

    def __init__(
        self, config: VisionConfig, *, remat: str, std: float, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        kw: dict[str, Any] = {"std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.config, self.remat, self.dtype = config, remat, dtype
        merged = config.hidden * config.merge**2
        self.patch_embed = Linear((2, config.patch_values), (config.hidden,), bias=False, **kw)
        self.blocks = stack(
            lambda rngs: VisionBlock(config, std=std, param_dtype=param_dtype, rngs=rngs), config.depth, rngs
        )
        self.merge_norm = RMSNorm(config.hidden, eps=config.eps, param_dtype=param_dtype)
        self.merge_in = Linear((merged,), (merged,), bias=True, **kw)
        self.merge_out = Linear((merged,), (config.out_hidden,), bias=True, **kw)

    def __call__(self, visual: Visual) -> Float[Array, "B F W U D"]:
        config = self.config
        real = visual.hw[..., 0] >= 0
        hw = jnp.maximum(visual.hw, 0)
        angles = vision_angles(hw, config.hidden // config.heads)
        x = constrain_batch(self.embed(visual.frames, visual.pair))

        def block(full: bool, layer: VisionBlock, x: Array) -> Array:
            return constrain_batch(layer(x, angles, real, full))

        full = [number in config.full_blocks for number in range(config.depth)]
        return self.merge(scan_kinds(self.blocks, full, block, x, remat=self.remat))

    def embed(self, frames: UInt8[Array, "B N W L v"], pair: Int[Array, "B F 2"]) -> Float[Array, "B F W L D"]:
        """Normalises the pixels and embeds each step's pair of frames: one half-kernel for each frame."""
        pixels = normalised_pairs(frames, pair, self.config.patch, IMAGE_MEAN, IMAGE_STD)
        return self.patch_embed(pixels.astype(self.dtype))

    def merge(self, x: Float[Array, "B F W L D"]) -> Float[Array, "B F W U d"]:
        """Joins each block of merge x merge patches into one token (HF `Qwen2_5_VLPatchMerger`, exact GELU)."""
        x = self.merge_norm(x)
        x = x.reshape(*x.shape[:3], self.config.units, -1)
        return self.merge_out(jax.nn.gelu(self.merge_in(x), approximate=False))
