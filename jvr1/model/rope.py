"""Rotary positions on the device, in fp32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def text_angles(
    positions: Int[Array, "B 3 T"], axes: Int[np.ndarray, " h"], head_size: int, theta: float
) -> Float[Array, "B T h"]:
    """Angles of the H/2 frequencies, each by the position on the axis it follows (time, row, column)."""
    frequencies = jnp.asarray(theta ** (-np.arange(0, head_size, 2) / head_size), jnp.float32)
    chosen = jnp.moveaxis(positions[:, axes], 1, -1).astype(jnp.float32)
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
