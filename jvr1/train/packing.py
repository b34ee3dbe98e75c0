"""How long the tapes are on which the update and the reference read a microbatch's completions.

A length is static: one of a few, each a program of its own, compiled when it is first needed. It is a function of the
completions' lengths alone, over the rows of all devices, so it is the same on every process and after a restart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvr1.model.tape import needed

ALIGNED = 128
"""Tokens of which lengths are multiples, where they are that far apart: what a TPU's lanes take."""


def tape_sizes(group: int, completion: int, count: int) -> tuple[int, ...]:
    """Lengths, evenly from 1/count of G completions of C tokens to what is just less than all of these."""
    whole = group * completion
    unit = ALIGNED if whole >= count * ALIGNED else 1
    sizes = {-(-whole * n // (count * unit)) * unit for n in range(1, count)}
    return tuple(sorted(size for size in sizes if size < whole))


def tape_size(most: int, group: int, completion: int, count: int) -> int | None:
    """The least of them that takes a row whose completions have `most` tokens together. None: that needs all of G*C, or
    there are no lengths; then nothing is gained by a tape, and each completion is padded to C."""
    return next((size for size in tape_sizes(group, completion, count) if size >= most), None)


@jax.jit
def tokens_to_read(mask: Bool[Array, "B G C"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Of the completions' tokens those that the model must see for scores where `mask` is true: of the row that has
    most, and of all rows."""
    rows = jnp.sum(needed(mask), axis=1)
    return jnp.max(rows), jnp.sum(rows).astype(jnp.float32)
