"""Positions of text and visual tokens, and which of the three axes a rotary frequency follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.inputs import Grid
from jvr1.model.positions import block_positions


def step_positions(
    ids: Int[np.ndarray, " T"], grids: Sequence[Grid], config: ModelConfig
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """`block_positions` where each temporal step of a video is a block of its own (HF `Qwen3VLModel.get_rope_index`):
    time is in the text between them."""
    steps = [grid._replace(steps=1) for grid in grids for _ in range(grid.steps)]
    return block_positions(ids, steps, config, lambda grid: np.zeros(1, np.int32))


def interleaved_axes(text: TextConfig) -> Int[np.ndarray, " h"]:
    """Of the H/2 frequencies: row for every third from the second on, column for every third from the third on, each
    as often as mrope_section says; time for the others."""
    number = np.arange(text.head_size // 2)
    axes = np.zeros_like(number)
    for axis in (1, 2):
        axes[(number % 3 == axis) & (number < 3 * text.mrope_section[axis])] = axis
    return axes
