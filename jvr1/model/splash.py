"""Attention of a prompt and its completions as one packed sequence: JAX's splash kernel for TPUs (Pallas).

The kernel knows the mask when it is compiled and skips blocks in which nobody sees anybody; attention scores exist a
block at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Array, Bool, Float, Int

LANES = 128
"""Sequence, blocks and head size must be multiples of it."""
SPLASH_BLOCK = 512
"""Queries and keys a block: larger ones keep the matrix unit busier, smaller ones skip more."""


class Seen(Mask):
    """[total, total], true where a query sees a key, made a block at a time: of a long video all of it would be
    gigabytes. `rule` of numbers of queries [q,1] and of keys [1,k], which are no later."""

    def __init__(self, rule: Callable[[np.ndarray, np.ndarray], np.ndarray], total: int):
        self.rule, self.total = rule, total

    @property
    def shape(self) -> tuple[int, int]:
        return self.total, self.total

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        query, key = (np.arange(self.total)[part] for part in place)
        query, key = query[:, None], key[None]
        return (key <= query) & self.rule(query, key)


def packed_mask(prompt: int, rows: int, length: int, total: int) -> Seen:
    """P prompt tokens, G completions of C tokens, and what pads them.

    The prompt is causal; a completion sees the prompt and itself causally. Padding sees the padding before it, so that
    every query sees itself: without any key the kernel divides by 0.
    """

    def rule(query: np.ndarray, key: np.ndarray) -> np.ndarray:
        # -1 prompt, 0..G-1, G padding
        of_query, of_key = (np.minimum(np.maximum(x - prompt, -1) // max(length, 1), rows) for x in (query, key))
        return (of_query == of_key) | ((of_key == -1) & (of_query < rows))

    return Seen(rule, total)


def tape_mask(prompt: int, tape: int, longest: int, total: int) -> Seen:
    """As `packed_mask`, where completions lie on a tape: what a token of it might see. Of the tape that is as many
    tokens, itself the last, as the longest completion has; which of them are of its own is known when it runs."""

    def rule(query: np.ndarray, key: np.ndarray) -> np.ndarray:
        padded = query >= prompt + tape
        near = (query - key < longest) & (key >= prompt)
        return np.where(padded, key >= prompt + tape, near | (key < prompt))

    return Seen(rule, total)


FAR = 2.0**17
"""By so much the scores of keys of other completions are lowered; exp(-FAR) is 0, and bf16 has it exactly."""


def marks(row: Int[Array, "B S"], rows: int) -> tuple[Float[Array, "B S z"], Float[Array, "B S z"]]:
    """Further values of the queries and keys on a tape, z = G + 1: their product is 0 for two tokens of one completion,
    exactly, and else -FAR. Keys of the prompt have zeros.

    The kernel's own segments are compared for equality, which cannot say that all completions see the prompt.
    """
    own = jax.nn.one_hot(row, rows + 1, dtype=jnp.float32)
    return (own - 1.0) * jnp.float32(FAR), own


def block_sizes(total: int) -> tuple[int, int]:
    """Tokens of a block, and of the whole sequence padded to blocks."""
    block = min(SPLASH_BLOCK, -(-total // LANES) * LANES)
    return block, -(-total // block) * block


def attend_packed(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    real: Bool[Array, "B T"],
    prompt: int,
    rows: int,
    length: int,
    row: Int[Array, "B S"] | None = None,
    *,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Attention within [prompt | G completions of `length` tokens], T = P + G*C; softmax in fp32.

    real: false at padding, which nobody but padding sees. Heads smaller than 128 are filled up with zeros, which cost
    their share of time and change nothing. row: completions of at most `length` tokens lie on a tape, T = P + S, and
    this says which of them a token is of; queries and keys are then wider by `marks`. interpret: run by XLA on any
    platform, to test the kernel.
    """
    total, _, size = q.shape[1:]
    block, padded = block_sizes(total)

    def laid_out(x: Array) -> Array:
        fill = -x.shape[3] % LANES
        return jnp.pad(x, ((0, 0), (0, padded - total), (0, 0), (0, fill))).swapaxes(1, 2)

    def marked(x: Array, mark: Array) -> Array:
        mark = jnp.pad(mark.astype(x.dtype), ((0, 0), (prompt, 0), (0, 0)))
        return jnp.concatenate([x, jnp.broadcast_to(mark[:, :, None], (*x.shape[:3], mark.shape[2]))], axis=3)

    q = (q.astype(jnp.float32) * jnp.float32(size**-0.5)).astype(q.dtype)
    if row is None:
        mask = packed_mask(prompt, rows, length, padded)
    else:
        mask = tape_mask(prompt, total - prompt, length, padded)
        q, k = (marked(x, mark) for x, mark in zip((q, k), marks(row, rows), strict=True))
    kernel = make_splash_mha(
        MultiHeadMask([mask]),  # of all heads
        block_sizes=BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = jnp.pad(real.astype(jnp.int32), ((0, 0), (0, padded - total)))
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=SegmentIds(ids, ids)))(
        laid_out(q), laid_out(k), laid_out(v), segments
    )
    return out.swapaxes(1, 2)[:, :total, :, :size]
