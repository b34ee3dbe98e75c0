"""Parts of config.json that families read alike: ids, fields that are handed on, what cannot be a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jvr1.errors import UserError
from jvr1.model.config import ModelConfig, TextConfig, Vision
from jvr1.model.fields import Fields

LAYERS, HEADS, WIDTH, VOCAB = 1024, 1024, 2**20, 2**24
"""The most that a config may ask for: far above any model, far below what would take minutes to lay out."""


_EXTRA = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_token_id", "max_window_layers", "sliding_window")


def read_model(
    top: Fields,
    model_type: str,
    text: Callable[[Fields, Fields], TextConfig],
    vision: Callable[[Fields], Vision],
    checks: Callable[[ModelConfig], Iterable[tuple[bool, str]]],
) -> ModelConfig:
    """A whole config.json, the flat form or the nested one of transformers 5.

    text(its fields, those of the top) and vision(fields) read the two halves; checks: what must be so of the whole,
    with what is said where it is not. Raises `UserError`, naming the file and the field, for quantised weights, a
    value of another kind or a shape that cannot be.
    """
    inner = top.part("text_config") if top.raw.get("text_config") else top
    for fields in (top, inner):
        if fields.given("quantization_config"):
            kind = fields.part("quantization_config").raw.get("quant_method", "unknown")
            raise UserError(
                f"{top.where}: the weights are quantised (quantization_config: {str(kind)[:100]}); jvr1 trains "
                f"bfloat16, float16 or float32: name the model they were made of"
            )
    decoder = text(inner, top)
    config = ModelConfig(
        model_type,
        decoder,
        vision(top.part("vision_config")),
        tied=top.flag("tie_word_embeddings", False) or inner.flag("tie_word_embeddings", False),
        image_token=_token(top, "image_token_id", 151655, decoder),
        video_token=_token(top, "video_token_id", 151656, decoder),
        vision_start_token=_token(top, "vision_start_token_id", 151652, decoder),
        vision_end_token=_token(top, "vision_end_token_id", 151653, decoder),
        initializer_range=inner.number("initializer_range", 0.02, above=0, most=10),
        extra=tuple((k, value) for k in _EXTRA if (value := _extra(k, top, inner)) is not None),
    )
    for good, message in (*checks(config), (config.image_token != config.video_token, SAME_TOKENS)):
        if not good:
            raise UserError(f"{top.where}: {message}")
    return config


SAME_TOKENS = "image_token_id and video_token_id are the same"


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
