"""A tape: a prompt's completions one after the other, without the padding that makes them as long as each other.

A model's pass over a tape costs what is written on it. Its length is static, so it ends with padding of its own.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


class Tape(NamedTuple):
    """Where the tokens of completions [B,G,C] lie on tapes of S tokens.

    length: how many of each completion's tokens are on it, the first ones. row, place: of a token of the tape, which
    completion it is of, and which token of that; row G is the tape's padding.
    """

    length: Int[Array, "B G"]
    row: Int[Array, "B S"]
    place: Int[Array, "B S"]


def lay(length: Int[Array, "B G"], size: int) -> Tape:
    """A tape of `size` tokens, which must be as many as a row's lengths add up to, or more."""
    at = jnp.arange(size, dtype=jnp.int32)
    ends = jnp.cumsum(length, axis=1, dtype=jnp.int32)
    row = jnp.sum(at[None, None] >= ends[:, :, None], axis=1, dtype=jnp.int32)
    starts = jnp.pad(ends, ((0, 0), (1, 0)))
    return Tape(length, row, at[None] - jnp.take_along_axis(starts, row, axis=1))


def needed(mask: Bool[Array, "B G C"]) -> Int[Array, "B G"]:
    """How many of each completion's tokens the model must see for scores where `mask` is true."""
    number = jnp.arange(1, mask.shape[2] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, number[None, None], 0), axis=2, initial=0)


# Each is the other's transpose. Said so, gradients are gathered too; left to JAX they would be scattered.


@jax.custom_vjp
def wind(x: Shaped[Array, "B G C *X"], tape: Tape) -> Shaped[Array, "B S *X"]:
    """Completions onto their tape; 0 at its padding."""
    b, g, c = x.shape[:3]
    return _gather(x.reshape(b, g * c, *x.shape[3:]), tape.row * c + tape.place, tape.row < g)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def unwind(x: Shaped[Array, "B S *X"], tape: Tape, count: int) -> Shaped[Array, "B G C *X"]:
    """Completions of `count` tokens, C, off their tape; 0 where they are not on it."""
    b, g = tape.length.shape
    start = jnp.cumsum(tape.length, axis=1, dtype=jnp.int32) - tape.length
    place = jnp.arange(count, dtype=jnp.int32)[None, None]
    at, there = start[:, :, None] + place, place < tape.length[:, :, None]
    return _gather(x, at.reshape(b, -1), there.reshape(b, -1)).reshape(b, g, count, *x.shape[2:])


def _gather(x: Shaped[Array, "B s *X"], at: Int[Array, "B t"], there: Bool[Array, "B t"]) -> Shaped[Array, "B t *X"]:
    at, there = (y.reshape(*y.shape, *(1,) * (x.ndim - 2)) for y in (at, there))
    return jnp.where(there, jnp.take_along_axis(x, at, axis=1, mode="clip"), jnp.zeros((), x.dtype))


wind.defvjp(
    lambda x, tape: (wind(x, tape), (tape, x.shape[2])),
    lambda kept, d: (unwind(d, *kept), None),
)
unwind.defvjp(
    lambda x, tape, count: (unwind(x, tape, count), tape),
    lambda count, tape, d: (wind(d, tape), None),
)
