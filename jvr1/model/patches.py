"""From the pixels of frames to what a patch embedding takes, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


def normalised_pairs(
    frames: UInt8[Array, "B N W L v"],
    pair: Int[Array, "B F 2"],
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Array, "B F W L 2 v"]:
    """(value / 255 - mean) / std of the patches of each step's two frames, in fp32; mean and std of the channels."""
    pairs = jax.vmap(lambda frames, pair: frames[pair])(frames, pair)  # B F 2 W L v
    pixels = jnp.moveaxis(pairs, 2, 4).astype(jnp.float32) / jnp.float32(255)
    middle, deviation = (
        jnp.asarray(np.repeat(np.asarray(c, np.float32), patch**2)).reshape(1, 1, 1, 1, 1, -1) for c in (mean, std)
    )
    return (pixels - middle) / deviation
