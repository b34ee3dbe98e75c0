"""The demo's tiny Qwen3-VL: its config.json and processor's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jvr1.model.media import PixelLimits
from jvr1.model.qwen3_vl import QWEN3_VL
from jvr1.model.qwen3_vl.config import MERGE, PATCH, DeepVision

_TOKEN_PIXELS = (PATCH * MERGE) ** 2
_DEEP_BLOCKS = (0, 1)
STEP_TIMES = tuple(f"<{step}.2 seconds>" for step in range(4)) * 32
"""When the steps of a clip are shown."""


def deep_config(tokens: Mapping[str, Any], vocab: int) -> dict[str, Any]:
    """0.9M parameters; a frame of 56x56, enlarged to 64x64, is four tokens of a window."""
    own = {name: tokens[name] for name in ("bos_token_id", "eos_token_id")}
    return {
        "model_type": QWEN3_VL.model_type,
        **{name: number for name, number in tokens.items() if name not in own},
        "tie_word_embeddings": False,
        "text_config": {
            **own,
            "vocab_size": vocab,
            "hidden_size": 128,
            "head_dim": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 352,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "initializer_range": 0.05,
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 128,
            "out_hidden_size": 128,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": list(_DEEP_BLOCKS),
        },
    }


def deep_processor() -> dict[str, Any]:
    """preprocessor_config.json: the published fields, pictures of 2x2 to 8x8 merged tokens."""
    form = QWEN3_VL.processor
    limits = PixelLimits(4 * _TOKEN_PIXELS, 64 * _TOKEN_PIXELS)
    vision = DeepVision(3, 64, 4, 128, 128, _DEEP_BLOCKS)
    return form.base(vision) | form.image(limits) | {"image_processor_type": form.image_type}
