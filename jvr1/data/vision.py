"""From pixels to the model's visual inputs, in numpy: patches where a layout puts them, pairs of frames, and back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8

from jvr1.model.inputs import Layout


def window_patches(frames: UInt8[np.ndarray, "N Hp Wp 3"], layout: Layout, patch: int) -> UInt8[np.ndarray, "N W L v"]:
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
