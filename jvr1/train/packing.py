"""How long the tapes are on which the update and the reference read a microbatch's completions.

The length is static: one of a few, each a program of its own, compiled when it is first needed. It is a function of the
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
    """At most `count` lengths for G completions of at most C tokens, evenly from G*C/count to G*C."""
    whole = group * completion
    unit = ALIGNED if whole >= count * ALIGNED else 8
    return tuple(sorted({min(-(-(whole * n) // (count * unit)) * unit, whole) for n in range(1, count + 1)}))


def tape_size(most: int, group: int, completion: int, count: int) -> int | None:
    """The least of them that takes a row whose completions have `most` tokens together; None for a count of 0: no
    tape, completions are padded to C tokens each."""
    if count == 0:
        return None
    return next(size for size in tape_sizes(group, completion, count) if size >= most)


@jax.jit
def tokens_to_read(mask: Bool[Array, "B G C"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Of the completions' tokens those that the model must see for scores where `mask` is true: of the row that has
    most, and of all rows."""
    rows = jnp.sum(needed(mask), axis=1)
    return jnp.max(rows), jnp.sum(rows).astype(jnp.float32)
