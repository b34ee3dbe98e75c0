"""Attention of a prompt and of its completions by cuDNN's flash kernels, for GPUs, as `jax.nn` offers them.

They take bf16 and fp16 only, heads of a multiple of 8 up to 128 values, and masks of even lengths. A mask is a bias
there, whose gradient is written, too: the prompt's own attention does without.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LARGEST_HEAD = 128
"""Of every GPU that has the kernel; from Hopper on 256."""


def attend_causal(
    q: Float[Array, "B P N H"], k: Float[Array, "B P K H"], v: Float[Array, "B P K H"]
) -> Float[Array, "B P N H"]:
    """A prompt's own attention, padded on the right, where no real token sees it. Queries at padding are finite,
    without meaning."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def attend_prefixed(
    q: Float[Array, "B G C N H"],
    prefix: tuple[Float[Array, "B P K H"], Float[Array, "B P K H"]],
    real: Bool[Array, "B P"],
    own: tuple[Float[Array, "B G C K H"], Float[Array, "B G C K H"]],
) -> Float[Array, "B G C N H"]:
    """G completions over [prefix | own], as B*G sequences: the kernel would compute all pairs of completions if they
    were packed into one. The prefix's keys are repeated, a layer's at a time; its scores never exist.
    """
    b, g, c = q.shape[:3]
    p = real.shape[1]

    def joined(prefix: Array, own: Array) -> Array:
        repeated = jnp.broadcast_to(prefix[:, None], (b, g, *prefix.shape[1:]))
        return jnp.concatenate([repeated, own], axis=2).reshape(b * g, p + c, *own.shape[3:])

    k, v = (joined(*pair) for pair in zip(prefix, own, strict=True))
    prefix_mask = jnp.broadcast_to(real[:, None, None, None], (b, g, 1, c, p))
    own_mask = jnp.broadcast_to(jnp.tril(jnp.ones((c, c), bool)), (b, g, 1, c, c))
    mask = jnp.concatenate([prefix_mask, own_mask], axis=-1).reshape(b * g, 1, c, p + c)
    flat = q.reshape(b * g, *q.shape[2:])
    return jax.nn.dot_product_attention(flat, k, v, mask=mask, implementation="cudnn").reshape(q.shape)
