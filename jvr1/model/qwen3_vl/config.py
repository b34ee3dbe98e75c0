"""config.json of Qwen3-VL, read and written; the published sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jvr1.errors import UserError, shown
from jvr1.model.config import ModelConfig, TextConfig, Vision
from jvr1.model.fields import Fields
from jvr1.model.reading import HEADS, LAYERS, VOCAB, WIDTH, read_model

MODEL_TYPE = "qwen3_vl"
PATCH, MERGE = 16, 2
UNITS = 16
"""Merged tokens of a window, which here is nothing but the unit in which a frame is padded."""


@dataclass(frozen=True, kw_only=True)
class DeepText(TextConfig):
    """The decoder, whose heads have a size of their own."""

    head_dim: int = 128

    @property
    def head_size(self) -> int:
        return self.head_dim


@dataclass(frozen=True)
class DeepVision(Vision):
    """The vision tower. positions: of the learned table, a square of them; deep_blocks: those whose outputs go to the
    decoder's first layers, one each (DeepStack)."""

    depth: int
    hidden: int
    heads: int
    intermediate: int
    out_hidden: int
    deep_blocks: tuple[int, ...]
    patch: int = PATCH
    merge: int = MERGE
    positions: int = 2304
    eps: float = 1e-6

    @property
    def slots(self) -> int:
        return UNITS * self.merge**2

    @property
    def side(self) -> int:
        """Rows, and columns, of the table of positions."""
        return math.isqrt(self.positions)


def vision_of(config: ModelConfig) -> DeepVision:
    """The tower's config of a model of this family."""
    assert isinstance(config.vision, DeepVision)
    return config.vision


def read_fields(top: Fields) -> ModelConfig:
    """The model of a parsed config.json. Raises UserError as `read_model`."""
    config = read_model(top, MODEL_TYPE, _text, _vision, _checks)
    return replace(config, tied=top.flag("tie_word_embeddings", False))  # the one that counts in transformers


def _text(fields: Fields, top: Fields) -> DeepText:
    """Two forms of the rotary fields: `rope_parameters`, or `rope_scaling` with `rope_theta` beside it. What published
    files always say has no default, for the library's own are other values."""
    rope = fields.part("rope_parameters", "rope_scaling")
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(f"{fields.where}: rope type {shown(kind)} is not supported; Qwen3-VL uses 'default'")
    for name, only in (("hidden_act", "silu"), ("attention_bias", False)):
        if fields.raw.get(name, only) != only:
            fields.refuse(name, f"; Qwen3-VL has {shown(only)}")
    section = rope.wholes("mrope_section", (24, 20, 20), most=WIDTH)
    if len(section) != 3:
        rope.refuse("mrope_section", "; it must hold three numbers")
    theta = rope if "rope_theta" in rope.raw else fields
    if "rope_theta" not in theta.raw:
        raise UserError(f"{fields.where}: field '{fields.section}rope_theta' is missing")
    return DeepText(
        hidden=fields.whole("hidden_size", most=WIDTH),
        layers=fields.whole("num_hidden_layers", most=LAYERS),
        heads=fields.whole("num_attention_heads", most=HEADS),
        kv_heads=fields.whole("num_key_value_heads", most=HEADS),
        intermediate=fields.whole("intermediate_size", most=WIDTH),
        vocab=fields.whole("vocab_size", most=VOCAB),
        mrope_section=(section[0], section[1], section[2]),
        rope_theta=theta.number("rope_theta", 5e6, above=1, most=1e12),
        eps=fields.number("rms_norm_eps", 1e-6, above=0, most=0.1),
        max_position=fields.whole("max_position_embeddings", 128000, most=2**31 - 1),
        head_dim=fields.whole("head_dim", 128, most=WIDTH),
    )


def _vision(fields: Fields) -> DeepVision:
    for name, only in (("temporal_patch_size", 2), ("in_channels", 3), ("hidden_act", "gelu_pytorch_tanh")):
        if fields.raw.get(name, only) != only:
            fields.refuse(name, f"; it must be {only}")
    depth = fields.whole("depth", 27, most=LAYERS)
    return DeepVision(
        depth=depth,
        hidden=fields.whole("hidden_size", 1152, most=WIDTH),
        heads=fields.whole("num_heads", 16, most=HEADS),
        intermediate=fields.whole("intermediate_size", 4304, most=WIDTH),
        out_hidden=fields.whole("out_hidden_size", 3584, most=WIDTH),
        deep_blocks=fields.wholes("deepstack_visual_indexes", (8, 16, 24), most=depth - 1),
        patch=fields.whole("patch_size", PATCH, most=256),
        merge=fields.whole("spatial_merge_size", MERGE, most=16),
        positions=fields.whole("num_position_embeddings", 2304, most=WIDTH),
    )


def _checks(config: ModelConfig) -> Iterator[tuple[bool, str]]:
    text, vision = config.text, vision_of(config)
    yield text.heads % text.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"
    section = list(text.mrope_section)
    half = f"mrope_section {section} must add up to half of head_dim, {text.head_size // 2}"
    yield 2 * sum(section) == text.head_size, half
    yield vision.hidden % (4 * vision.heads) == 0, "vision hidden_size must be a multiple of 4 x num_heads"
    square = f"num_position_embeddings is {vision.positions}; it must be a square"
    yield vision.side**2 == vision.positions, square
    same = vision.out_hidden == text.hidden
    yield same, f"vision out_hidden_size {vision.out_hidden} is not hidden_size {text.hidden}"
    blocks = list(vision.deep_blocks)
    yield blocks == sorted({*blocks}), f"deepstack_visual_indexes {blocks} must ascend"
    few = (
        f"deepstack_visual_indexes {blocks} are {len(blocks)} levels, each for a decoder layer of its own; "
        f"num_hidden_layers is {text.layers}"
    )
    yield len(blocks) <= text.layers, few


def write_fields(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The published config.json of a model whose tensors have `dtype` ('bfloat16' or 'float32')."""
    text, vision = config.text, vision_of(config)
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "text_config": {
            "model_type": f"{MODEL_TYPE}_text",
            **dict(config.extra),
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": dtype,
            "head_dim": text.head_size,
            "hidden_act": "silu",
            "hidden_size": text.hidden,
            "initializer_range": config.initializer_range,
            "intermediate_size": text.intermediate,
            "max_position_embeddings": text.max_position,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "num_key_value_heads": text.kv_heads,
            "rms_norm_eps": text.eps,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": list(text.mrope_section),
                "rope_type": "default",
            },
            "rope_theta": text.rope_theta,
            "use_cache": True,
            "vocab_size": text.vocab,
        },
        "vision_config": {
            "model_type": MODEL_TYPE,
            "deepstack_visual_indexes": list(vision.deep_blocks),
            "depth": vision.depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.hidden,
            "in_channels": 3,
            "initializer_range": config.initializer_range,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.heads,
            "num_position_embeddings": vision.positions,
            "out_hidden_size": vision.out_hidden,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": 2,
        },
    }


def _published(hidden: int, layers: int, heads: int, intermediate: int, large: bool, tied: bool) -> ModelConfig:
    text = DeepText(
        hidden, layers, heads, 8, intermediate, 151936, (24, 20, 20), rope_theta=5e6, max_position=262144, head_dim=128
    )
    tower = (27, 1152, 16, 4304, hidden, (8, 16, 24)) if large else (24, 1024, 16, 4096, hidden, (5, 11, 17))
    return ModelConfig(MODEL_TYPE, text, DeepVision(*tower), tied)


PUBLISHED = {
    "qwen3-vl-2b": _published(2048, 28, 16, 6144, large=False, tied=True),
    "qwen3-vl-4b": _published(2560, 36, 32, 9728, large=False, tied=True),
    "qwen3-vl-8b": _published(4096, 36, 32, 12288, large=True, tied=False),
    "qwen3-vl-32b": _published(5120, 64, 64, 25600, large=True, tied=False),
}
