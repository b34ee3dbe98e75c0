"""Kernels of eight bits, for generation: a value is a whole number or a short float, times a scale for each output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""What the values of a kernel are kept as, and the largest that is used of each."""


class Rounded(NamedTuple):
    """A kernel as `values * scale`: values of a dtype of LARGEST, in the kernel's shape; scale in fp32, in the shape of
    its outputs (and of its layers, where they are stacked)."""

    values: Array
    scale: Array

    def product(self, x: Float[Array, "..."], contracted: int) -> Float[Array, "..."]:
        """x . kernel over the last `contracted` axes of x: the scale is taken after the sum, so that what is read of
        the kernel is its eight bits."""
        y = jnp.tensordot(x, self.values.astype(x.dtype), axes=contracted)
        return y * jnp.broadcast_to(self.scale.astype(x.dtype), y.shape)


def rounded(kernel: Float[Array, "..."], inputs: Sequence[int], dtype: str) -> Rounded:
    """The kernel rounded so that the largest of each output's weights is the largest of the dtype. inputs: the axes
    that its product sums over."""
    wide = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=tuple(inputs), keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST[dtype], 1.0)
    values = wide / jnp.broadcast_to(scale, wide.shape)
    values = jnp.round(values) if dtype == "int8" else values
    return Rounded(values.astype(dtype), jnp.squeeze(scale, tuple(inputs)))


def rounded_shape(kernel: jax.ShapeDtypeStruct, inputs: Sequence[int], dtype: str) -> Rounded:
    """What comes of a kernel's shape; without shardings."""
    return jax.eval_shape(lambda x: rounded(x, inputs, dtype), jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))
