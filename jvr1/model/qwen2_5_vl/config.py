"""config.json of Qwen2.5-VL, read and written; the published sizes; windows, patches and tokens of its tower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jvr1.errors import UserError, shown
from jvr1.model.config import ModelConfig, TextConfig, Vision
from jvr1.model.fields import Fields
from jvr1.model.reading import HEADS, LAYERS, VOCAB, WIDTH, read_model

MODEL_TYPE = "qwen2_5_vl"
PATCH, MERGE = 14, 2
"""Pixels on a side of a patch, and patches on a side of a visual token, of all published models."""


@dataclass(frozen=True)
class VisionConfig(Vision):
    """The vision tower. Defaults are those HF fills a sparse `vision_config` with."""

    depth: int = 32
    hidden: int = 3584
    heads: int = 16
    intermediate: int = 3420
    out_hidden: int = 3584
    patch: int = PATCH
    merge: int = MERGE
    window: int = 112
    full_blocks: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 4
    eps: float = 1e-6

    @property
    def slots(self) -> int:
        """Patches of one attention window, and of one window's slots in `frames`: 64 as published."""
        return (self.window // self.patch) ** 2


def vision_of(config: ModelConfig) -> VisionConfig:
    """The tower's config of a model of this family."""
    assert isinstance(config.vision, VisionConfig)
    return config.vision


def read_fields(top: Fields) -> ModelConfig:
    """The model of a parsed config.json. Raises UserError as `read_model`."""
    return read_model(top, MODEL_TYPE, read_text, _vision, _checks)


def read_text(fields: Fields, top: Fields) -> TextConfig:
    rope = fields.part("rope_parameters", "rope_scaling")
    if not rope.raw:
        rope = top.part("rope_scaling")
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(f"{fields.where}: rope type {shown(kind)} is not supported; Qwen2.5-VL uses 'mrope'")
    if fields.given("use_sliding_window") and fields.flag("use_sliding_window", False):
        fields.refuse("use_sliding_window", "; only full attention in the decoder is supported")
    if fields.raw.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", "; Qwen2.5-VL uses 'silu'")
    heads = fields.whole("num_attention_heads", most=HEADS)
    theta = rope if "rope_theta" in rope.raw else fields
    return TextConfig(
        hidden=fields.whole("hidden_size", most=WIDTH),
        layers=fields.whole("num_hidden_layers", most=LAYERS),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", most=HEADS) if fields.given("num_key_value_heads") else heads,
        intermediate=fields.whole("intermediate_size", most=WIDTH),
        vocab=fields.whole("vocab_size", most=VOCAB),
        mrope_section=_section(rope),
        rope_theta=theta.number("rope_theta", 1e6, above=1, most=1e12),
        eps=fields.number("rms_norm_eps", 1e-5, above=0, most=0.1),
        max_position=fields.whole("max_position_embeddings", 32768, most=2**31 - 1),
    )


def _section(rope: Fields) -> tuple[int, int, int]:
    section = rope.wholes("mrope_section", (16, 24, 24), most=WIDTH)
    if len(section) != 3:
        rope.refuse("mrope_section", "; it must hold three numbers")
    return section[0], section[1], section[2]


def _vision(fields: Fields) -> VisionConfig:
    default = VisionConfig()
    if fields.raw.get("temporal_patch_size", 2) != 2:
        fields.refuse("temporal_patch_size", "; it must be 2: a temporal step is a pair of frames")
    for name in ("in_channels", "in_chans"):
        if fields.raw.get(name, 3) != 3:
            fields.refuse(name, "; it must be 3")
    if fields.raw.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", "; Qwen2.5-VL uses 'silu'")
    depth = fields.whole("depth", default.depth, most=LAYERS)
    return VisionConfig(
        depth=depth,
        hidden=fields.whole("hidden_size", default.hidden, most=WIDTH),
        heads=fields.whole("num_heads", default.heads, most=HEADS),
        intermediate=fields.whole("intermediate_size", default.intermediate, most=WIDTH),
        out_hidden=fields.whole("out_hidden_size", default.out_hidden, most=WIDTH),
        patch=fields.whole("patch_size", default.patch, most=256),
        merge=fields.whole("spatial_merge_size", default.merge, most=16),
        window=fields.whole("window_size", default.window, most=4096),
        full_blocks=fields.wholes("fullatt_block_indexes", default.full_blocks, most=depth - 1),
        tokens_per_second=fields.whole("tokens_per_second", default.tokens_per_second, most=1000),
    )


def _checks(config: ModelConfig) -> Iterator[tuple[bool, str]]:
    text, vision = config.text, vision_of(config)
    yield from text_checks(text)
    yield vision.hidden % (4 * vision.heads) == 0, "vision hidden_size must be a multiple of 4 x num_heads"
    whole = vision.window % vision.factor == 0
    yield whole, "vision window_size must be a multiple of patch_size x spatial_merge_size"
    same = vision.out_hidden == text.hidden
    yield same, f"vision out_hidden_size {vision.out_hidden} is not hidden_size {text.hidden}"


def text_checks(text: TextConfig) -> Iterator[tuple[bool, str]]:
    """What must be so of the decoder."""
    yield text.hidden % text.heads == 0, "hidden_size must be a multiple of num_attention_heads"
    yield text.heads % text.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"
    half = (
        f"rope_scaling.mrope_section {list(text.mrope_section)} must add up to half the head size, "
        f"{text.head_size // 2}"
    )
    yield 2 * sum(text.mrope_section) == text.head_size, half


def write_fields(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The published flat config.json of a model whose tensors have `dtype` ('bfloat16' or 'float32')."""
    vision = vision_of(config)
    tower = {
        "model_type": MODEL_TYPE,
        "depth": vision.depth,
        "hidden_act": "silu",
        "hidden_size": vision.hidden,
        "intermediate_size": vision.intermediate,
        "num_heads": vision.heads,
        "in_channels": 3,
        "in_chans": 3,
        "out_hidden_size": vision.out_hidden,
        "patch_size": vision.patch,
        "spatial_merge_size": vision.merge,
        "spatial_patch_size": vision.patch,
        "window_size": vision.window,
        "fullatt_block_indexes": list(vision.full_blocks),
        "tokens_per_second": vision.tokens_per_second,
        "temporal_patch_size": 2,
    }
    return write_text(config, "Qwen2_5_VLForConditionalGeneration", dtype) | {"vision_config": tower}


def write_text(config: ModelConfig, architecture: str, dtype: str) -> dict[str, Any]:
    """The fields that are not of the tower. architecture: the class that `transformers` opens it with."""
    text = config.text
    return {
        "architectures": [architecture],
        "model_type": config.model_type,
        **dict(config.extra),
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": text.hidden,
        "initializer_range": config.initializer_range,
        "intermediate_size": text.intermediate,
        "max_position_embeddings": text.max_position,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": text.eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": text.vocab,
    }


def _published(text: TextConfig, intermediate: int, tied: bool) -> ModelConfig:
    vision = VisionConfig(hidden=1280, intermediate=intermediate, out_hidden=text.hidden, tokens_per_second=2)
    return ModelConfig(MODEL_TYPE, text, vision, tied)


PUBLISHED = {
    "3b": _published(TextConfig(2048, 36, 16, 2, 11008, 151936), 3420, True),
    "7b": _published(TextConfig(3584, 28, 28, 4, 18944, 152064), 3420, False),
    "32b": _published(TextConfig(5120, 64, 40, 8, 27648, 152064), 3456, False),
    "72b": _published(TextConfig(8192, 80, 64, 8, 29568, 152064), 3456, False),
}
