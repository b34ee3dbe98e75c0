"""Attention of a prompt and its completions as one packed sequence: JAX's splash kernel for TPUs (Pallas).

The kernel knows the mask when it is compiled and skips blocks in which nobody sees anybody; attention scores exist a
block at a time, forward and backward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    MultiHeadMask,
    NumpyMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Array, Bool, Float

LANES = 128
"""Sequence, blocks and head size must be multiples of it."""
SPLASH_BLOCK = 512
"""Queries and keys a block: larger ones keep the matrix unit busier, smaller ones skip more."""


def packed_mask(prompt: int, rows: int, length: int, total: int) -> np.ndarray:
    """[total, total], true where a query sees a key: P prompt tokens, G completions of C tokens, and what pads them.

    The prompt is causal; a completion sees the prompt and itself causally. Padding sees the padding before it, so that
    every query sees itself: without any key the kernel divides by 0.
    """
    own = np.minimum(np.maximum(np.arange(total) - prompt, -1) // max(length, 1), rows)  # -1 prompt, 0..G-1, G padding
    same = own[:, None] == own[None]
    prefix = (own[None] == -1) & (own[:, None] < rows)
    return np.tril(same | prefix)


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
    *,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Attention within [prompt | G completions of `length` tokens], T = P + G*C; softmax in fp32.

    real: false at padding, which nobody but padding sees. Heads smaller than 128 are filled up with zeros, which cost
    their share of time and change nothing. interpret: run by XLA on any platform, to test the kernel.
    """
    total, _, size = q.shape[1:]
    block, padded = block_sizes(total)
    fill = -(-size // LANES) * LANES - size

    def laid_out(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, padded - total), (0, 0), (0, fill))).swapaxes(1, 2)

    mask = NumpyMask(packed_mask(prompt, rows, length, padded))
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
    scaled = (q.astype(jnp.float32) * jnp.float32(size**-0.5)).astype(q.dtype)
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=SegmentIds(ids, ids)))(
        laid_out(scaled), laid_out(k), laid_out(v), segments
    )
    return out.swapaxes(1, 2)[:, :total, :, :size]
