"""Qwen2.5-VL (arXiv 2502.13923): a tower with attention windows, M-RoPE whose time is that of the clock."""

from __future__ import annotations

from typing import Any

from jvr1.model.config import ModelConfig
from jvr1.model.family import Family, ProcessorForm
from jvr1.model.qwen2_5_vl.config import MODEL_TYPE, PUBLISHED, read_fields, write_fields
from jvr1.model.qwen2_5_vl.counts import tower_flops, tower_kept, tower_scores
from jvr1.model.qwen2_5_vl.export import ADVICE, base_fields, companions, image_fields, video_fields
from jvr1.model.qwen2_5_vl.frames import rules
from jvr1.model.qwen2_5_vl.layout import window_layout, windows
from jvr1.model.qwen2_5_vl.parameters import TOWER
from jvr1.model.qwen2_5_vl.positions import mrope_positions, rope_axes
from jvr1.model.qwen2_5_vl.prompt import ENDS, placeholders
from jvr1.model.qwen2_5_vl.weights import TABLE, memory_name, published_name


def model(config: ModelConfig, **kw: Any) -> Any:
    """A `VisionLanguageModel` (HF `Qwen2_5_VLForConditionalGeneration`)."""
    from jvr1.model.qwen2_5_vl.tower import VisionTower  # imports JAX
    from jvr1.model.vision_language import VisionLanguageModel

    return VisionLanguageModel(config, VisionTower, **kw)


QWEN2_5_VL = Family(
    model_type=MODEL_TYPE,
    title="Qwen2.5-VL",
    read=read_fields,
    write=write_fields,
    published=PUBLISHED,
    weights=TABLE,
    published_name=published_name,
    memory_name=memory_name,
    parameters=TOWER,
    model=model,
    rope_axes=rope_axes,
    frames=rules,
    windows=windows,
    layout=window_layout,
    positions=mrope_positions,
    placeholders=placeholders,
    ends=ENDS,
    tower_flops=tower_flops,
    tower_scores=tower_scores,
    tower_kept=tower_kept,
    processor=ProcessorForm("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", base_fields, image_fields, video_fields),
    companions=companions,
    advice=ADVICE,
    marked=False,
)
