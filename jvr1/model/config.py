"""The shape of a Qwen2.5-VL model, read from and written to the `config.json` of HF folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jvr1.errors import UserError, shown
from jvr1.model.fields import Fields

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


LAYERS, HEADS, WIDTH, VOCAB = 1024, 1024, 2**20, 2**24
"""The most that a config may ask for: far above any model, far below what would take minutes to lay out."""


def from_hf(raw: Mapping[str, Any], name: str = "config.json") -> ModelConfig:
    """Reads a parsed config.json: the published flat form or the nested one of transformers 5.

    Raises `UserError`, naming `name` and the field, for another architecture, quantised weights, a value of another
    kind or a shape that cannot be.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise UserError(f"{name}: model_type is {shown(raw.get('model_type'))}; jvr1 reads {MODEL_TYPE!r} (Qwen2.5-VL)")
    top = Fields(raw, name)
    inner = top.part("text_config") if top.raw.get("text_config") else top
    for fields in (top, inner):
        if fields.given("quantization_config"):
            kind = fields.part("quantization_config").raw.get("quant_method", "unknown")
            raise UserError(
                f"{name}: the weights are quantised (quantization_config: {str(kind)[:100]}); jvr1 trains bfloat16, "
                f"float16 or float32: name the model they were made of"
            )
    text = _text(inner, top)
    config = ModelConfig(
        text=text,
        vision=_vision(top.part("vision_config")),
        tied=top.flag("tie_word_embeddings", False) or inner.flag("tie_word_embeddings", False),
        image_token=_token(top, "image_token_id", 151655, text),
        video_token=_token(top, "video_token_id", 151656, text),
        vision_start_token=_token(top, "vision_start_token_id", 151652, text),
        vision_end_token=_token(top, "vision_end_token_id", 151653, text),
        initializer_range=inner.number("initializer_range", 0.02, above=0, most=10),
        extra=tuple((k, value) for k in _EXTRA if (value := _extra(k, top, inner)) is not None),
    )
    _validate(config, name)
    return config


_EXTRA = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_token_id", "max_window_layers", "sliding_window")


def _token(fields: Fields, name: str, default: int, text: TextConfig) -> int:
    token = fields.whole(name, default, least=0, most=VOCAB)
    placeholder = name in ("image_token_id", "video_token_id")  # the others are only handed on
    if token >= text.vocab and (placeholder or name in fields.raw):
        given = "" if name in fields.raw else f" is {default} by default"
        fields.refuse(name, f"{given}, beyond the table of vocab_size {text.vocab}")
    return token


def _extra(name: str, top: Fields, inner: Fields) -> Any:
    """What is only handed on: ids, several where a model has several ends, and whole numbers."""
    fields = top if top.given(name) else inner
    if not fields.given(name):
        return None
    if name.endswith("_token_id"):
        if isinstance(fields.raw[name], list):
            return list(fields.wholes(name, (), most=VOCAB))
        return fields.whole(name, least=-1, most=VOCAB)
    return fields.whole(name, least=0, most=2**31)


def _text(fields: Fields, top: Fields) -> TextConfig:
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


def _validate(config: ModelConfig, name: str) -> None:
    text, vision = config.text, config.vision
    checks = (
        (text.hidden % text.heads == 0, "hidden_size must be a multiple of num_attention_heads"),
        (text.heads % text.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"),
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
        (config.image_token != config.video_token, "image_token_id and video_token_id are the same"),
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
