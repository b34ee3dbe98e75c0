"""Rotary positions: host-side M-RoPE ids in numpy, rotation on the device in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvr1.model.config import ModelConfig


class Grid(NamedTuple):
    """One image or video in a prompt: temporal steps, rows and columns of PATCHES, seconds from step to step."""

    steps: int
    height: int
    width: int
    seconds_per_step: float = 0.0


def mrope_positions(
    ids: Int[np.ndarray, " T"], grids: Sequence[Grid], config: ModelConfig
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """Position ids (time, row, column) of an unpadded sequence, and the position of the token after it.

    The rule of transformers up to 4.x, which the model was trained with (`Qwen2_5_VLModel.get_rope_index`):
    text advances all three axes by one; a visual block starts at the next free position, its time axis advances
    by floor(step * seconds_per_step * tokens_per_second), and text goes on at one above the largest position used.
    `grids` are in order of appearance. Raises ValueError when `ids` holds other visual tokens than `grids` say.
    """
    visual = np.isin(ids, config.visual_tokens)
    merge, rate = config.vision.merge, config.vision.tokens_per_second
    positions = np.empty((3, len(ids)), np.int32)
    at = free = 0
    for grid in grids:
        rows, columns = grid.height // merge, grid.width // merge
        count = grid.steps * rows * columns
        ahead = np.flatnonzero(visual[at:])
        if not len(ahead) or visual[at + ahead[0] : at + ahead[0] + count].sum() != count:
            raise ValueError(f"the sequence holds fewer visual tokens than {grid} needs, {count}")
        text = int(ahead[0])
        positions[:, at : at + text] = free + np.arange(text)
        at, free = at + text, free + text
        step, row, column = np.indices((grid.steps, rows, columns)).reshape(3, -1)
        seconds = step.astype(np.float32) * np.float32(grid.seconds_per_step)  # fp32: its rounding decides ties
        time = np.floor(seconds * np.float32(rate)).astype(np.int32)
        positions[:, at : at + count] = free + np.stack([time, row, column])
        at, free = at + count, int(positions[:, at : at + count].max()) + 1
    if visual[at:].any():
        raise ValueError(f"the sequence holds {int(visual[at:].sum())} more visual tokens than its media give")
    positions[:, at:] = free + np.arange(len(ids) - at)
    return positions, free + len(ids) - at


def text_angles(
    positions: Int[Array, "B 3 T"], section: tuple[int, int, int], head_size: int, theta: float
) -> Float[Array, "B T h"]:
    """Angles of the H/2 frequencies: the first section[0] follow time, the next rows, the last columns."""
    frequencies = jnp.asarray(theta ** (-np.arange(0, head_size, 2) / head_size), jnp.float32)
    axis = np.repeat(np.arange(3), section)
    chosen = jnp.moveaxis(positions[:, axis], 1, -1).astype(jnp.float32)
    return chosen * frequencies[None, None, :]


def vision_angles(hw: Int[Array, "*X 2"], head_size: int) -> Float[Array, "*X h"]:
    """Angles of the H/2 frequencies of a patch: the first half follows its row, the second its column."""
    half = head_size // 2
    frequencies = jnp.asarray(10000.0 ** (-np.arange(0, half, 2) / half), jnp.float32)
    angles = hw[..., None].astype(jnp.float32) * frequencies.reshape((1,) * hw.ndim + (-1,))
    return angles.reshape(*hw.shape[:-1], half)


def rotate(x: Float[Array, "*X N H"], angles: Float[Array, "*X h"]) -> Float[Array, "*X N H"]:
    """Rotates the pairs (x_i, x_{i+H/2}) by `angles`, in fp32 whatever the dtype of x."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
