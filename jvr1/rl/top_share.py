"""The value above which the top share of a step's tokens lies, exact however the step is split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import bitcast_convert_type, shift_right_logical
from jaxtyping import Array, Bool, Float, Int, UInt32

DIGIT = 8
"""Bits of a float32 that are told apart at a time."""


def top_threshold(
    values: Sequence[Float[Array, "..."]], masks: Sequence[Bool[Array, "..."]], share: float | int
) -> np.float32:
    """The ceil(share n)-th largest of the n values that are not masked, none of them negative; 0 of none.

    Found digit by digit from counts, which add over microbatches and devices: nothing is sorted or brought together.
    """
    count = sum(int(jnp.sum(mask)) for mask in masks)
    left, prefix = math.ceil(share * count), 0
    if not count:
        return np.float32(0)
    for shift in range(32 - DIGIT, -1, -DIGIT):
        parts = [_counts(x, m, np.uint32(prefix), np.uint32(shift)) for x, m in zip(values, masks, strict=True)]
        counts = np.sum([np.asarray(part, np.int64) for part in parts], axis=0)
        above = np.cumsum(counts[::-1])[::-1]  # with a digit as large or larger
        digit = int(np.flatnonzero(above >= left)[-1])
        left -= int(above[digit] - counts[digit])
        prefix = prefix << DIGIT | digit
    return np.uint32(prefix).view(np.float32)


@jax.jit
def _counts(
    value: Float[Array, "..."], mask: Bool[Array, "..."], prefix: UInt32[Array, ""], shift: UInt32[Array, ""]
) -> Int[Array, " 256"]:
    """How many of the values that begin with `prefix` go on with each digit. Of floats that are not negative the order
    is that of their bits."""
    bits = bitcast_convert_type(jnp.maximum(value.astype(jnp.float32), 0.0), jnp.uint32)
    begins = shift_right_logical(shift_right_logical(bits, shift), jnp.uint32(DIGIT)) == prefix
    digit = shift_right_logical(bits, shift) & jnp.uint32(2**DIGIT - 1)
    each = digit.reshape(-1, 1) == jnp.arange(2**DIGIT, dtype=jnp.uint32)[None]
    return jnp.sum(each & (begins & mask).reshape(-1, 1), axis=0, dtype=jnp.int32)
