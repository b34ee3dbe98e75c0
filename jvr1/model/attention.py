"""Attention: dense over one sequence, and over a shared prefix joined with each row's own suffix."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""Logit of a masked key. Finite, so that a row without any real key stays finite in value and gradient."""


def _scores(q: Float[Array, "b t N H"], k: Float[Array, "b s K H"]) -> Float[Array, "b t N s"]:
    """Scaled fp32 logits of grouped-query attention: query head n reads key head n // (N/K)."""
    b, t, heads, size = q.shape
    grouped = q.reshape(b, t, k.shape[2], heads // k.shape[2], size)
    logits = jnp.einsum("btkgh,bskh->btkgs", grouped, k, preferred_element_type=jnp.float32)
    return logits.reshape(b, t, heads, k.shape[1]) * jnp.float32(size**-0.5)


def _mix(weights: Float[Array, "b t N s"], v: Float[Array, "b s K H"]) -> Float[Array, "b t N H"]:
    b, t, heads, s = weights.shape
    grouped = weights.astype(v.dtype).reshape(b, t, v.shape[2], heads // v.shape[2], s)
    return jnp.einsum("btkgs,bskh->btkgh", grouped, v).reshape(b, t, heads, v.shape[3])


def _masked(logits: Float[Array, "b t N s"], mask: Bool[Array, "b #t s"]) -> Float[Array, "b t N s"]:
    return jnp.where(mask[:, :, None, :], logits, jnp.float32(MASKED))


def attend(
    q: Float[Array, "b t N H"],
    k: Float[Array, "b s K H"],
    v: Float[Array, "b s K H"],
    mask: Bool[Array, "b #t s"],
) -> Float[Array, "b t N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys where `mask` is true; softmax in fp32."""
    return _mix(jax.nn.softmax(_masked(_scores(q, k), mask), axis=-1), v)


def attend_shared(
    q: Float[Array, "B R C N H"],
    prefix: tuple[Float[Array, "B S P K H"], Float[Array, "B S P K H"]],
    prefix_mask: Bool[Array, "B S P"],
    own: tuple[Float[Array, "B R Cs K H"], Float[Array, "B R Cs K H"]],
    own_mask: Bool[Array, "B R C Cs"],
    rows: Sequence[int],
) -> Float[Array, "B R C N H"]:
    """Attention of completion rows over [prefix of their stream | their own keys], normalised jointly.

    The first `rows[0]` of the R rows belong to stream 0, the next `rows[1]` to stream 1, and so on. Each
    prefix is read once for all its rows and never repeated in memory. The logits of both parts are joined
    before the softmax: merging two softmaxes by their log-sum-exp would lose gradient (see FlashAttention's
    residual in `jax.nn.dot_product_attention`).
    """
    b, r, c, heads, size = q.shape
    starts = [sum(rows[:s]) for s in range(len(rows))]
    to_prefix = [
        _masked(
            _scores(q[:, i : i + n].reshape(b, n * c, heads, size), prefix[0][:, s]), prefix_mask[:, s, None, :]
        ).reshape(b, n, c, heads, -1)
        for s, (i, n) in enumerate(zip(starts, rows, strict=True))
    ]
    own_k, own_v = (x.reshape(b * r, *x.shape[2:]) for x in own)
    to_own = _masked(_scores(q.reshape(b * r, c, heads, size), own_k), own_mask.reshape(b * r, c, -1))
    to_own = to_own.reshape(b, r, c, heads, -1)
    p = prefix_mask.shape[-1]
    weights = jax.nn.softmax(jnp.concatenate([jnp.concatenate(to_prefix, axis=1), to_own], axis=-1), axis=-1)
    from_prefix = [
        _mix(weights[:, i : i + n, ..., :p].reshape(b, n * c, heads, p), prefix[1][:, s]).reshape(b, n, c, heads, size)
        for s, (i, n) in enumerate(zip(starts, rows, strict=True))
    ]
    from_own = _mix(weights[..., p:].reshape(b * r, c, heads, -1), own_v).reshape(b, r, c, heads, size)
    return jnp.concatenate(from_prefix, axis=1) + from_own
