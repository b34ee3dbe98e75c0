"""Where the patches of a frame go in towers without attention windows: tokens row by row, padded to whole windows."""

from __future__ import annotations

import numpy as np

from jvr1.model.config import Vision
from jvr1.model.inputs import Layout


def row_windows(height: int, width: int, vision: Vision) -> int:
    """Windows of a frame of height x width PATCHES."""
    return -(-height * width // vision.slots)


def row_layout(height: int, width: int, vision: Vision) -> Layout:
    """The order of HF's processors within a temporal step; the padding stands at the end."""
    columns, count = width // vision.merge, height * width // vision.merge**2
    token = np.arange(row_windows(height, width, vision) * vision.units)
    corner = np.stack([token // columns, token % columns], -1) * vision.merge
    within = np.indices((vision.merge, vision.merge)).reshape(2, -1).T
    hw = np.where(token[:, None, None] < count, corner[:, None] + within[None], -1)
    return Layout(hw.reshape(-1, vision.slots, 2).astype(np.int16), np.arange(count, dtype=np.int32))
