"""Token log-probabilities from hidden states without the full logits, and the supervised loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jvr1.model.layers import BATCH, batch_ways, constrain_head
from jvr1.model.parameters import MESH_AXES
from jvr1.rollout.sampling import cut_mass

Truncation = tuple[float | int, int]
"""top-p and top-k."""


class TokenScores(NamedTuple):
    """Of each target token under softmax(logits / temperature): its log-probability, the entropy of the softmax; and
    where it is asked for the mass that top-p and top-k cut off."""

    logprobs: Float[Array, "B G C"]
    entropy: Float[Array, "B G C"]
    cut: Float[Array, "B G C"] | None = None


def token_scores(
    head: Float[Array, "D V"],
    hidden: Float[Array, "B G C D"],
    targets: Int[Array, "B G C"],
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    truncation: Truncation | None = None,
) -> TokenScores:
    """Scores of targets from the hidden states that predict them, `chunk` of the C axis at a time.

    head: in whatever dtype it is kept; products are of the dtype of `hidden`, logits in fp32. The logits of a chunk
    [B,G,chunk,V] are made, used and made again in the backward pass; nothing of size V a token is kept. One function
    for SFT, policy and reference. On a mesh each device scores its own rows: the head is gathered once, and its
    gradient summed over devices once, not for each chunk. truncation: top-p and top-k, whose cut is measured, without
    gradient.
    """
    length = hidden.shape[2]
    size = min(chunk, length)
    pad = -length % size
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, pad)))
    score = partial(_scores, temperature, size, truncation)
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else batch_ways(mesh)
    if ways == 1 or hidden.shape[0] % ways:
        scores = score(constrain_head(head.astype(hidden.dtype)), hidden, targets)
    else:
        scores = _on_each_device(score, mesh)(head.astype(hidden.dtype), hidden, targets)
    return TokenScores(*(x[:, :, :length] for x in scores))


def _on_each_device(score: Callable[..., Any], mesh: AbstractMesh) -> Callable[..., Any]:
    """`score` on each device's rows, with a head that is gathered over the batch axes; `tensor`, which splits words,
    stays XLA's."""
    axis = MESH_AXES["width"]

    def local(head: Array, hidden: Array, targets: Array) -> tuple[Array, ...]:
        if head.shape[0] < hidden.shape[-1]:
            head = jax.lax.all_gather(head, axis, axis=0, tiled=True)
        return score(head, hidden, targets)

    def split(head: Array, hidden: Array, targets: Array) -> tuple[Array, ...]:
        width = axis if head.shape[0] % mesh.shape.get(axis, 1) == 0 else None
        f: Any = jax.shard_map(
            local,
            in_specs=(PartitionSpec(width, None), PartitionSpec(BATCH), PartitionSpec(BATCH)),
            out_specs=PartitionSpec(BATCH),
            axis_names=set(BATCH),
            check_vma=False,
        )
        return f(head, hidden, targets)

    return split


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scores(
    temperature: float, size: int, truncation: Truncation | None, head: Array, hidden: Array, targets: Array
) -> tuple[Array, ...]:
    """Log-probabilities, entropies and with `truncation` cut mass [B,G,C], C a multiple of `size`."""

    def body(carry: None, part: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
        every = _log_softmax(temperature, head, part[0])
        # a product, not a sum of products: XLA on CPUs takes 50 times as long for that
        mean = jnp.einsum("...v,...v->...", jnp.exp(every), every, precision=jax.lax.Precision.HIGHEST)
        cut = () if truncation is None else (cut_mass(every, *truncation),)
        return carry, (jnp.take_along_axis(every, part[1][..., None], axis=-1)[..., 0], -mean, *cut)

    _, scores = jax.lax.scan(body, None, (_chunks(hidden, size), _chunks(targets, size)))
    return tuple(_whole(x) for x in scores)


def _log_softmax(temperature: float, head: Float[Array, "D V"], hidden: Float[Array, "*X D"]) -> Float[Array, "*X V"]:
    logits = jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits / jnp.float32(temperature), axis=-1)


def _chunks(x: Array, size: int) -> Array:
    """[B,G,C,..] -> [C/size,B,G,size,..]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)


def _whole(x: Array) -> Array:
    """What `_chunks` cut."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _scores_forward(
    temperature: float, size: int, truncation: Truncation | None, head: Array, hidden: Array, targets: Array
) -> tuple[Any, Any]:
    scores = _scores(temperature, size, truncation, head, hidden, targets)
    return scores, (head, hidden, targets, scores[1])


def _scores_backward(
    temperature: float, size: int, truncation: Truncation | None, kept: tuple[Array, ...], given: tuple[Array, ...]
) -> Any:
    """With p the softmax and H its entropy: d logprob / d logits = 1[target] - p, d H / d logits = -p (log p + H); the
    head's gradient is added up in fp32."""
    head, *rows = kept

    def body(total: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, targets, entropy, d_logprobs, d_entropy = part
        every = _log_softmax(temperature, head, hidden)
        p = jnp.exp(every)
        target = jax.nn.one_hot(targets, every.shape[-1], dtype=jnp.bool_)
        of_logprobs = d_logprobs[..., None] * (target.astype(jnp.float32) - p)
        d = (of_logprobs - d_entropy[..., None] * p * (every + entropy[..., None])) / jnp.float32(temperature)
        d = d.astype(hidden.dtype)
        total = total + jnp.einsum("bgcd,bgcv->dv", hidden, d, preferred_element_type=jnp.float32)
        return total, jnp.einsum("...v,dv->...d", d, head)

    parts = tuple(_chunks(x, size) for x in (*rows, *given[:2]))
    total, d_hidden = jax.lax.scan(body, jnp.zeros(head.shape, jnp.float32), parts)
    return total.astype(head.dtype), _whole(d_hidden), None


_scores.defvjp(_scores_forward, _scores_backward)


def supervised_loss(
    logprobs: Float[Array, "B G C"], mask: Float[Array, "B G C"], denominator: Float[Array, ""]
) -> Float[Array, ""]:
    """- sum of the target tokens' log-probabilities / `denominator`, the target tokens of the whole optimizer step; 0
    where there are none."""
    return -jnp.sum(logprobs * mask) / jnp.maximum(denominator, 1.0)
