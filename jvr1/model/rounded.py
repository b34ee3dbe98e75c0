"""Products of eight bits, for generation: kernels kept as whole numbers or short floats times a scale for each output,
and what they are multiplied with rounded alike, times a scale for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EIGHT_BITS = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""What the values of a kernel are kept as, and the largest that is used of each."""


class Rounded(NamedTuple):
    """A kernel as `values * scale`: values of one of EIGHT_BITS, in the kernel's shape; scale in fp32, in the shape of
    its outputs (and of its layers, where they are stacked)."""

    values: Array
    scale: Array

    def product(self, x: Float[Array, "..."], contracted: int) -> Float[Array, "..."]:
        """x . kernel over the last `contracted` axes of x. x is rounded, too: both sides of eight bits are what matrix
        units take, and a kernel that was made wide for them would be written and read again for each token. Sums are
        exact (int32), or in fp32; the scales come after them."""
        kind = str(self.values.dtype)
        own = rounded(x, tuple(range(x.ndim - contracted, x.ndim)), kind)
        wide = jnp.int32 if kind == "int8" else jnp.float32
        y = jnp.tensordot(own.values, self.values, axes=contracted, preferred_element_type=wide)
        outputs = self.values.ndim - contracted
        scale = own.scale.reshape(*own.scale.shape, *[1] * outputs)
        y = y.astype(jnp.float32) * jnp.broadcast_to(scale, y.shape) * jnp.broadcast_to(self.scale, y.shape)
        return y.astype(x.dtype)


def rounded(side: Float[Array, "..."], inputs: Sequence[int], dtype: str) -> Rounded:
    """A side of a product, rounded so that the largest of what is summed is the largest of the dtype. inputs: the axes
    that are summed over."""
    wide = side.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=tuple(inputs), keepdims=True)
    scale = jnp.where(largest > 0, largest / EIGHT_BITS[dtype], 1.0)
    values = wide / jnp.broadcast_to(scale, wide.shape)
    values = jnp.round(values) if dtype == "int8" else values
    return Rounded(values.astype(dtype), jnp.squeeze(scale, tuple(inputs)))


def rounded_shape(kernel: jax.ShapeDtypeStruct, inputs: Sequence[int], dtype: str) -> Rounded:
    """What comes of a kernel's shape; without shardings."""
    return jax.eval_shape(lambda x: rounded(x, inputs, dtype), jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))
