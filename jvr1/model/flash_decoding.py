"""Attention of a decode step by a kernel (Pallas), for GPUs and for TPUs: scores never reach the chip's main memory.

Keys are cut into parts; each keeps the sum of its weights and the largest score, by which the parts become one softmax
(FlashDecoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html). No gradient: the sums carry none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from jvr1.model.blockwise import MASKED
from jvr1.model.splash import LANES

Accelerator = Literal["gpu", "tpu"]
LEAST_BLOCK, MOST_BLOCK = 16, 128
"""Keys of a block on a GPU, a power of two: its tensor cores take 16 at least."""
PROGRAMS, MOST_PARTS = 128, 8
"""A GPU's keys are cut into parts until so many programs run, about as many as it has processors; into how many at
most."""
TPU_BYTES = 1 << 21
"""Keys and values that a TPU's program reads at a time: its fast memory holds them twice, with their scores."""


class Part(NamedTuple):
    """softmax(q k^T) v over some keys before it is normalised: the sum of exp(score - top) v, the sum of the weights,
    and the largest score."""

    mixed: Float[Array, "*X M H"]
    total: Float[Array, "*X M 1"]
    top: Float[Array, "*X M 1"]


def takes(form: Accelerator, keys: int, head_size: int) -> bool:
    """Whether the kernel takes so many keys, of this size."""
    if form == "tpu":
        return head_size % LANES == 0 and keys % LEAST_BLOCK == 0
    return block_of(keys) >= LEAST_BLOCK and head_size >= LEAST_BLOCK and head_size & (head_size - 1) == 0


def block_of(keys: int) -> int:
    """The largest power of two that divides so many keys, at most MOST_BLOCK."""
    return math.gcd(keys, MOST_BLOCK)


def gpu_parts(keys: int, sets: int) -> int:
    """Into how many parts the keys of each of so many sets of queries are cut."""
    blocks, parts = keys // block_of(keys), 1
    while sets * parts < PROGRAMS and parts < MOST_PARTS and blocks % (2 * parts) == 0:
        parts *= 2
    return parts


def tpu_parts(keys: int, sets: int, key_bytes: int) -> tuple[int, int]:
    """Into how many parts, and how many sets a program takes together. key_bytes: of one key and its value."""
    parts = 1
    while keys // parts * key_bytes > TPU_BYTES and keys % (2 * parts * LANES) == 0:
        parts *= 2
    most = max(TPU_BYTES // (keys // parts * key_bytes), 1)
    return parts, max(n for n in range(1, min(most, sets) + 1) if sets % n == 0)


def attend_parts(
    q: Float[Array, "X M H"],
    k: Float[Array, "X H T"],
    v: Float[Array, "X T H"],
    mask: Bool[Array, "Y T"],
    form: Accelerator,
    *,
    interpret: bool = False,
) -> Part:
    """M queries of each of X sets over the set's T keys, in fp32; several neighbours of the X share one of the Y masks.

    The parts stand on a leading axis. interpret: run by XLA on any platform, to test the kernel.
    """
    (sets, queries, size), keys = q.shape, k.shape[2]
    filled = max(LEAST_BLOCK, 1 << (queries - 1).bit_length())
    if form == "gpu":
        parts, together = gpu_parts(keys, sets), 1
    else:
        parts, together = tpu_parts(keys, sets, 2 * size * k.dtype.itemsize)
    own = keys // parts
    block = block_of(keys) if form == "gpu" else own
    shown = jnp.repeat(mask, sets // mask.shape[0], axis=0)
    place = jnp.where(shown, jnp.arange(keys, dtype=jnp.int32), keys)  # where the first key that is shown stands
    ends = jnp.stack([jnp.min(place, axis=1), jnp.max(jnp.where(shown, place, -1), axis=1) + 1], axis=1)
    call: Any = pl.pallas_call(
        partial(_kernel, block=block, blocks=own // block),
        grid=(sets // together, parts),
        in_specs=[
            pl.BlockSpec((together, filled, size), lambda x, s: (x, 0, 0)),
            pl.BlockSpec((together, size, own), lambda x, s: (x, 0, s)),
            pl.BlockSpec((together, own, size), lambda x, s: (x, s, 0)),
            pl.BlockSpec((together, 1, own), lambda x, s: (x, 0, s)),
            pl.BlockSpec((together, 1, 2), lambda x, s: (x, 0, 0)),
        ],
        out_specs=[pl.BlockSpec((None, together, filled, n), lambda x, s: (s, x, 0, 0)) for n in (size, 1, 1)],
        out_shape=[jax.ShapeDtypeStruct((parts, sets, filled, n), jnp.float32) for n in (size, 1, 1)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2) if form == "gpu" and not interpret else None,
        interpret=interpret,
        name="flash_decoding",
    )
    whole = jnp.pad(q, ((0, 0), (0, filled - queries), (0, 0)))
    return Part(*(x[:, :, :queries] for x in call(whole, k, v, shown.astype(jnp.int8)[:, None], ends[:, None])))


def _kernel(
    q: Any, k: Any, v: Any, mask: Any, ends: Any, mixed: Any, total: Any, top: Any, *, block: int, blocks: int
) -> None:
    """A part of a few sets, a block of its keys at a time, from the first to the last that `ends` says is shown."""
    scale = jnp.float32(q.shape[-1] ** -0.5)

    def of_block(number: Any, carry: tuple[Array, Array, Array], *, one: int) -> tuple[Array, Array, Array]:
        mixed, total, top = carry
        at = pl.ds(number * block, block)
        scores = _product(q[one], k[one, :, at]) * scale
        scores = jnp.where(mask[one, :, at] != 0, scores, jnp.float32(MASKED))
        higher = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
        weights, fade = jnp.exp(scores - higher), jnp.exp(top - higher)
        values = v[one, at, :]
        mixed = mixed * fade + _product(weights.astype(values.dtype), values)
        return mixed, total * fade + jnp.sum(weights, axis=1, keepdims=True), higher

    for one in range(q.shape[0]):
        queries, size = q.shape[1:]
        nothing = jnp.zeros((queries, size), jnp.float32), jnp.zeros((queries, 1), jnp.float32)
        start = (*nothing, jnp.full((queries, 1), MASKED, jnp.float32))
        step = partial(of_block, one=one)
        if blocks == 1:
            found = step(0, start)
        else:
            before = pl.program_id(1) * blocks
            first = jnp.clip(ends[one, 0, 0] // block - before, 0, blocks)
            last = jnp.clip((ends[one, 0, 1] + block - 1) // block - before, 0, blocks)
            found = jax.lax.fori_loop(first, last, step, start)
        mixed[one], total[one], top[one] = found


def _product(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def normalised(parts: Sequence[Part]) -> Float[Array, "*X M H"]:
    """Parts over all keys of the same queries, each with its own on a leading axis -> softmax(q k^T) v, in fp32."""
    top = jnp.max(jnp.concatenate([part.top for part in parts]), axis=0, keepdims=True)
    weights = [jnp.exp(part.top - top) for part in parts]
    mixed = reduce(jnp.add, [jnp.sum(part.mixed * w, axis=0) for part, w in zip(parts, weights, strict=True)])
    total = reduce(jnp.add, [jnp.sum(part.total * w, axis=0) for part, w in zip(parts, weights, strict=True)])
    return mixed / total
