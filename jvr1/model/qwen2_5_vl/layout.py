"""Attention windows: where the patches of a frame go."""

from __future__ import annotations

import numpy as np

from jvr1.model.inputs import Layout
from jvr1.model.qwen2_5_vl.config import VisionConfig


def windows(height: int, width: int, config: VisionConfig) -> int:
    """Windows of a frame of height x width PATCHES."""
    side = config.window // config.patch
    return -(-height // side) * -(-width // side)


def window_layout(height: int, width: int, config: VisionConfig) -> Layout:
    """Windows of a frame of height x width PATCHES (HF `get_window_index`, one temporal step).

    Windows go in row-major order, the merged units of a window in row-major order, the patches of a unit in
    row-major order. Windows at the lower and right edge are padded in whole units.
    """
    merge, side = config.merge, config.window // config.factor
    rows, columns = height // merge, width // merge
    down, across = -(-rows // side), -(-columns // side)
    grid = np.full((down * side, across * side), -1, np.int32)
    grid[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    order = grid.reshape(down, side, across, side).transpose(0, 2, 1, 3).reshape(-1)  # unit -> token or -1
    token = order[order >= 0]
    unit = np.empty(rows * columns, np.int32)
    unit[token] = np.flatnonzero(order >= 0)
    within = np.indices((merge, merge)).reshape(2, -1).T
    corner = np.stack([order // columns, order % columns], -1) * merge
    hw = np.where(order[:, None, None] >= 0, corner[:, None] + within[None], -1)
    return Layout(hw.reshape(down * across, config.slots, 2).astype(np.int16), unit)
