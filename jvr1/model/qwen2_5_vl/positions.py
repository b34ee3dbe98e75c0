"""Positions of text and visual tokens, and which of the three axes a rotary frequency follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.inputs import Grid
from jvr1.model.positions import block_positions
from jvr1.model.qwen2_5_vl.config import vision_of


def mrope_positions(
    ids: Int[np.ndarray, " T"], grids: Sequence[Grid], config: ModelConfig
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """`block_positions` with a time axis that advances by floor(step * seconds_per_step * tokens_per_second).

    The rule of transformers up to 4.x, which the model was trained with (`Qwen2_5_VLModel.get_rope_index`).
    """
    rate = np.float32(vision_of(config).tokens_per_second)

    def time(grid: Grid) -> Int32[np.ndarray, " F"]:
        # fp32: its rounding decides ties
        seconds = np.arange(grid.steps, dtype=np.float32) * np.float32(grid.seconds_per_step)
        return np.floor(seconds * rate).astype(np.int32)

    return block_positions(ids, grids, config, time)


def rope_axes(text: TextConfig) -> Int[np.ndarray, " h"]:
    """Of the H/2 frequencies: the first section[0] follow time, the next rows, the last columns."""
    return np.repeat(np.arange(3), text.mrope_section)
