"""The shape of a Qwen2.5-VL model, read from and written to the `config.json` of HF folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jvr1.errors import UserError

MODEL_TYPE = "qwen2_5_vl"


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Defaults are those HF fills a sparse `vision_config` with."""

    depth: int = 32
    hidden: int = 3584
    heads: int = 16
    intermediate: int = 3420
    out_hidden: int = 3584
    patch: int = 14
    merge: int = 2
    window: int = 112
    full_blocks: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 4
    eps: float = 1e-6

    @property
    def slots(self) -> int:
        """Patches of one attention window, and of one window's slots in `frames`: 64 as published."""
        return (self.window // self.patch) ** 2

    @property
    def units(self) -> int:
        """Merged tokens of one window: 16 as published."""
        return self.slots // self.merge**2

    @property
    def patch_values(self) -> int:
        """Values of one patch of one frame: 3 x 14 x 14 = 588 as published."""
        return 3 * self.patch**2

    @property
    def factor(self) -> int:
        """Pixels on a side of one merged token: frame sizes are multiples of it."""
        return self.patch * self.merge


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_position: int = 128000

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """A whole model; `extra` keeps the fields of config.json that do not shape it, for the export."""

    text: TextConfig
    vision: VisionConfig
    tied: bool
    image_token: int = 151655
    video_token: int = 151656
    vision_start_token: int = 151652
    vision_end_token: int = 151653
    initializer_range: float = 0.02
    extra: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """Placeholder ids that stand for merged visual tokens; never to be sampled."""
        return self.image_token, self.video_token


def from_hf(raw: Mapping[str, Any], name: str = "config.json") -> ModelConfig:
    """Reads a parsed config.json: the published flat form or the nested one of transformers 5.

    Raises `UserError`, naming `name` and the field, for another architecture or a shape that cannot be.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise UserError(f"{name}: model_type is {raw.get('model_type')!r}; jvr1 reads {MODEL_TYPE!r} (Qwen2.5-VL)")
    text_raw = raw.get("text_config") or raw
    try:
        text = _text(text_raw, raw)
        vision = _vision(raw.get("vision_config") or {})
    except KeyError as error:
        raise UserError(f"{name}: field {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: {error}") from None
    config = ModelConfig(
        text=text,
        vision=vision,
        tied=bool(raw.get("tie_word_embeddings") or text_raw.get("tie_word_embeddings")),
        image_token=raw.get("image_token_id", 151655),
        video_token=raw.get("video_token_id", 151656),
        vision_start_token=raw.get("vision_start_token_id", 151652),
        vision_end_token=raw.get("vision_end_token_id", 151653),
        initializer_range=text_raw.get("initializer_range", 0.02),
        extra=tuple((k, _pick(k, raw, text_raw)) for k in _EXTRA if _pick(k, raw, text_raw) is not None),
    )
    _validate(config, name)
    return config


_EXTRA = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_token_id", "max_window_layers", "sliding_window")


def _pick(key: str, raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> Any:
    return raw.get(key) if raw.get(key) is not None else text_raw.get(key)


def _text(raw: Mapping[str, Any], top: Mapping[str, Any]) -> TextConfig:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or top.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope type {kind!r} is not supported; Qwen2.5-VL uses 'mrope'")
    if raw.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true; only full attention in the decoder is supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {raw['hidden_act']!r}; Qwen2.5-VL uses 'silu'")
    hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
    return TextConfig(
        hidden=hidden,
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        intermediate=int(raw["intermediate_size"]),
        vocab=int(raw["vocab_size"]),
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 1e6))),
        eps=float(raw.get("rms_norm_eps", 1e-5)),
        max_position=int(raw.get("max_position_embeddings", 32768)),
    )


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    default = VisionConfig()
    if raw.get("temporal_patch_size", 2) != 2:
        raise ValueError("vision_config.temporal_patch_size must be 2: a temporal step is a pair of frames")
    if raw.get("in_channels", raw.get("in_chans", 3)) != 3:
        raise ValueError("vision_config.in_channels must be 3")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"vision_config.hidden_act is {raw['hidden_act']!r}; Qwen2.5-VL uses 'silu'")
    return VisionConfig(
        depth=int(raw.get("depth", default.depth)),
        hidden=int(raw.get("hidden_size", default.hidden)),
        heads=int(raw.get("num_heads", default.heads)),
        intermediate=int(raw.get("intermediate_size", default.intermediate)),
        out_hidden=int(raw.get("out_hidden_size", default.out_hidden)),
        patch=int(raw.get("patch_size", default.patch)),
        merge=int(raw.get("spatial_merge_size", default.merge)),
        window=int(raw.get("window_size", default.window)),
        full_blocks=tuple(int(i) for i in raw.get("fullatt_block_indexes", default.full_blocks)),
        tokens_per_second=int(raw.get("tokens_per_second", default.tokens_per_second)),
    )


def _validate(config: ModelConfig, name: str) -> None:
    text, vision = config.text, config.vision
    sizes = {
        "hidden_size": text.hidden,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "intermediate_size": text.intermediate,
        "vocab_size": text.vocab,
        "vision depth": vision.depth,
        "vision hidden_size": vision.hidden,
        "vision num_heads": vision.heads,
        "vision intermediate_size": vision.intermediate,
        "vision patch_size": vision.patch,
        "vision spatial_merge_size": vision.merge,
        "vision window_size": vision.window,
    }
    for field_name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: {field_name} is {size}; it must be at least 1")
    checks = (
        (text.hidden % text.heads == 0, "hidden_size must be a multiple of num_attention_heads"),
        (text.heads % text.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"),
        (len(text.mrope_section) == 3, "rope_scaling.mrope_section must hold three numbers"),
        (
            2 * sum(text.mrope_section) == text.head_size,
            f"rope_scaling.mrope_section {list(text.mrope_section)} must add up to half the head size, "
            f"{text.head_size // 2}",
        ),
        (vision.hidden % (4 * vision.heads) == 0, "vision hidden_size must be a multiple of 4 x num_heads"),
        (
            vision.window % vision.factor == 0,
            "vision window_size must be a multiple of patch_size x spatial_merge_size",
        ),
        (
            vision.out_hidden == text.hidden,
            f"vision out_hidden_size {vision.out_hidden} is not hidden_size {text.hidden}",
        ),
    )
    for good, message in checks:
        if not good:
            raise UserError(f"{name}: {message}")


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The published flat config.json of a model whose tensors have `dtype` ('bfloat16' or 'float32')."""
    text, vision = config.text, config.vision
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
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
        "vision_config": {
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
        },
    }


def published(size: str) -> ModelConfig:
    """The published model of a size: '3b', '7b', '32b' or '72b'."""
    shapes = {
        "3b": (TextConfig(2048, 36, 16, 2, 11008, 151936), 3420, True),
        "7b": (TextConfig(3584, 28, 28, 4, 18944, 152064), 3420, False),
        "32b": (TextConfig(5120, 64, 40, 8, 27648, 152064), 3456, False),
        "72b": (TextConfig(8192, 80, 64, 8, 29568, 152064), 3456, False),
    }
    if size not in shapes:
        raise UserError(f"no published size {size!r}; there are {', '.join(shapes)}")
    text, intermediate, tied = shapes[size]
    vision = replace(
        VisionConfig(), hidden=1280, intermediate=intermediate, out_hidden=text.hidden, tokens_per_second=2
    )
    return ModelConfig(text=text, vision=vision, tied=tied)
