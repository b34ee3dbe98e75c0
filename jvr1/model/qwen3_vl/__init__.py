"""Qwen3-VL, the dense ones: a tower without windows whose blocks feed the decoder's first layers too (DeepStack), norms
of queries and keys, interleaved M-RoPE, and the time of each step as text in the prompt."""

from __future__ import annotations

from typing import Any

from jvr1.model.config import ModelConfig
from jvr1.model.family import Family, ProcessorForm
from jvr1.model.layout import row_layout, row_windows
from jvr1.model.qwen3_vl.config import MODEL_TYPE, PUBLISHED, read_fields, write_fields
from jvr1.model.qwen3_vl.counts import tower_flops, tower_kept, tower_scores
from jvr1.model.qwen3_vl.export import ADVICE, base_fields, companions, image_fields, video_fields
from jvr1.model.qwen3_vl.frames import rules
from jvr1.model.qwen3_vl.parameters import PARAMETERS
from jvr1.model.qwen3_vl.positions import interleaved_axes, step_positions
from jvr1.model.qwen3_vl.prompt import PROMPT_FORMS, release
from jvr1.model.qwen3_vl.weights import TABLE, same_name


def model(config: ModelConfig, **kw: Any) -> Any:
    """A `VisionLanguageModel`."""
    from jvr1.model.qwen3_vl.decoder import Qwen3VL  # imports JAX

    return Qwen3VL(config, **kw)


QWEN3_VL = Family(
    model_type=MODEL_TYPE,
    title="Qwen3-VL, dense",
    read=read_fields,
    write=write_fields,
    published=PUBLISHED,
    weights=TABLE,
    published_name=same_name,
    memory_name=same_name,
    parameters=PARAMETERS,
    model=model,
    rope_axes=interleaved_axes,
    frames=rules,
    windows=row_windows,
    layout=row_layout,
    positions=step_positions,
    placeholders=release,
    ends=("<|im_end|>", "<|endoftext|>"),
    tower_flops=tower_flops,
    tower_scores=tower_scores,
    tower_kept=tower_kept,
    processor=ProcessorForm("Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", base_fields, image_fields, video_fields),
    companions=companions,
    advice=ADVICE,
    forms=PROMPT_FORMS,
    clocked=False,
)
