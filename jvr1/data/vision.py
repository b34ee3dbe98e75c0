"""From pixels to the model's visual inputs, in numpy: sizes, patches in window order, masks, the gather index."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Int32, UInt8

from jvr1.errors import UserError
from jvr1.model.config import VisionConfig

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest size with both sides multiples of `factor` and an area in [min_pixels, max_pixels].

    Source: `smart_resize` of qwen-vl-utils, through which Video-R1 reads all media; rounds half to even, as Python
    does. HF's own, which comes after it there, gives the same but for sides up to half of `factor`, which it counts as
    0 before it looks at the area. A side that shrinks below `factor` is 0 in qwen-vl-utils, which ends in an error;
    here, as in HF, it is `factor`.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise UserError(f"aspect ratio of {width}x{height} is above {MAX_ASPECT_RATIO}")
    new_h, new_w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_h * new_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_h * new_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    return new_h, new_w


class WindowLayout(NamedTuple):
    """Where the patches of one frame go. W windows of L slots, U = L / merge^2 merged tokens.

    hw: row and column of the patch in each slot; -1 for a slot without one.
    unit: for each merged token in row-major order, the number of its unit in [0, W*U).
    """

    hw: Int16[np.ndarray, "W L 2"]
    unit: Int32[np.ndarray, " tokens"]


def window_layout(height: int, width: int, config: VisionConfig) -> WindowLayout:
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
    return WindowLayout(hw.reshape(down * across, config.slots, 2).astype(np.int16), unit)


def window_patches(
    frames: UInt8[np.ndarray, "N Hp Wp 3"], layout: WindowLayout, patch: int
) -> UInt8[np.ndarray, "N W L v"]:
    """Cuts frames into patches (values in the order channel, row, column) in window order; padding is 0."""
    n, height, width, _ = frames.shape
    rows, columns = height // patch, width // patch
    flat = frames.reshape(n, rows, patch, columns, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    flat = flat.reshape(n, rows * columns, 3 * patch * patch)
    hw = layout.hw.astype(np.int64)
    patches = flat[:, np.maximum(hw[..., 0] * columns + hw[..., 1], 0)]
    patches[:, hw[..., 0] < 0] = 0
    return patches


def frame_pairs(frames: int) -> Int32[np.ndarray, "F 2"]:
    """The two frames of each temporal step; an odd last frame, and so an image, is paired with itself."""
    first = np.arange(0, frames, 2, dtype=np.int32)
    return np.stack([first, np.minimum(first + 1, frames - 1)], -1).astype(np.int32)


def frames_of(
    frames: UInt8[np.ndarray, "n W L v"], hw: Int32[np.ndarray, "W L 2"], patch: int
) -> UInt8[np.ndarray, "n Hp Wp 3"]:
    """The pictures again, from their patches in window order and the grid they share: what the model saw."""
    real = hw[..., 0] >= 0
    rows, columns = hw[real].max(axis=0) + 1
    out = np.zeros((len(frames), rows, columns, 3, patch, patch), np.uint8)
    at = hw[real]
    out[:, at[:, 0], at[:, 1]] = frames[:, real].reshape(len(frames), len(at), 3, patch, patch)
    return out.transpose(0, 1, 4, 2, 5, 3).reshape(len(frames), rows * patch, columns * patch, 3)
