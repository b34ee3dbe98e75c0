"""Attention: dense over one sequence, over a prompt and its completions, and over a shared prefix in decoding.

A prompt and its completions go through one of the backends: XLA anywhere, the splash kernel on TPUs, cuDNN's flash
kernel on GPUs. All compute the same: a softmax in fp32, normalised once over all keys of a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jvr1.errors import UserError
from jvr1.model import cudnn, splash
from jvr1.model.layers import BATCH

CHOICES = ("auto", "xla", "splash", "cudnn")
"""What `model.attention` may be."""
Backend = Literal["xla", "splash", "interpreted", "cudnn"]
"""What computes; interpreted: the splash kernel by XLA, slow, for tests without a TPU."""

MASKED = -1e30
"""Logit of a masked key. Finite, so that a row without any real key stays finite in value and gradient."""


def choose(name: str, platform: str, dtype: DTypeLike, head_size: int) -> Backend:
    """The backend of a model's text layers on the platform it is compiled for: tpu, gpu or cpu.

    `platform` is the mesh's, not this machine's: programs for TPUs are compiled on CPU machines, too. auto: the
    platform's kernel where it takes the dtype and the head size, else XLA. Raises UserError for a kernel of another
    platform, or one that does not take them.
    """
    takes_cudnn = jnp.dtype(dtype).itemsize == 2 and head_size % 8 == 0 and head_size <= cudnn.LARGEST_HEAD
    if name == "auto" and platform == "tpu" and head_size % splash.LANES == 0:
        return "splash"
    if name == "auto" and platform == "gpu" and takes_cudnn:
        return "cudnn"
    if name in ("auto", "xla"):
        return "xla"
    if name == "splash" and platform in ("tpu", "cpu"):
        return "splash" if platform == "tpu" else "interpreted"
    if name == "cudnn" and platform == "gpu" and takes_cudnn:
        return "cudnn"
    needs = {"splash": "a TPU", "cudnn": f"a GPU, bfloat16 and heads of 8, 16 .. {cudnn.LARGEST_HEAD} values"}
    if name not in needs:
        raise UserError(f"model.attention is {name!r}; use one of {', '.join(CHOICES)}")
    given = f"here are {platform}, {jnp.dtype(dtype).name} and heads of {head_size}"
    raise UserError(f"model.attention='{name}' needs {needs[name]}; {given}: use auto")


class QKV(NamedTuple):
    """Rotated queries and keys, and values, of some tokens."""

    q: Float[Array, "*X N H"]
    k: Float[Array, "*X K H"]
    v: Float[Array, "*X K H"]


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


def attend_prompt(prompt: QKV, mask: Bool[Array, "B P"], backend: Backend) -> Float[Array, "B P N H"]:
    """Causal attention within prompts [B,P]; queries at padding are finite and mean nothing."""
    length = mask.shape[1]
    if backend == "xla" or (backend == "cudnn" and length % 2):
        return attend(*prompt, causal_mask(mask))
    if backend == "cudnn":
        return _each_device(cudnn.attend_causal, prompt, mask)

    def packed(q: Array, k: Array, v: Array, mask: Array) -> Array:
        return splash.attend_packed(q, k, v, mask, length, 0, 0, interpret=backend == "interpreted")

    return _each_device(packed, prompt, mask)


def attend_group(
    packed: QKV, mask: Bool[Array, "B P"], rows: int, length: int, backend: Backend
) -> Float[Array, "B T N H"]:
    """Attention of prompts and their completions, T = P + G*C tokens [prompt | G = `rows` completions of `length`]: the
    prompt causally, a completion over [prompt | itself]."""
    b, p = mask.shape
    if backend in ("splash", "interpreted"):

        def attended(q: Array, k: Array, v: Array, real: Array) -> Array:
            return splash.attend_packed(q, k, v, real, p, rows, length, interpret=backend == "interpreted")

        return _each_device(attended, packed, jnp.pad(mask, ((0, 0), (0, rows * length)), constant_values=True))
    prompt = QKV(*(x[:, :p] for x in packed))
    own = QKV(*(x[:, p:].reshape(b, rows, length, *x.shape[2:]) for x in packed))
    if backend == "xla" or p % 2 or length % 2:
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (b, rows, length, length))
        prefix = (prompt.k[:, None], prompt.v[:, None])
        of_prompt = attend_prompt(prompt, mask, "xla")
        of_own = attend_shared(own.q, prefix, mask[:, None], (own.k, own.v), causal, (rows,))
    else:

        def prefixed(q: Array, k: Array, v: Array, own_k: Array, own_v: Array, mask: Array) -> Array:
            return cudnn.attend_prefixed(q, (k, v), mask, (own_k, own_v))

        of_prompt = attend_prompt(prompt, mask, backend)
        of_own = _each_device(prefixed, (own.q, prompt.k, prompt.v, own.k, own.v), mask)
    return jnp.concatenate([of_prompt, of_own.reshape(b, rows * length, *of_own.shape[3:])], axis=1)


def _each_device(
    f: Callable[..., Array], heads: Sequence[Array], mask: Bool[Array, "B T"]
) -> Float[Array, "B ... N H"]:
    """f(*heads, mask) on each device's rows and heads, of arrays [B,...,heads,H] and a mask [B,T].

    XLA cannot split a kernel and would gather its arguments. Rows are split over the batch axes of the mesh in force
    where they divide, heads over `tensor`. Key/value heads that `tensor` exceeds lie whole on every device, which takes
    the one that its queries read.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(t == AxisType.Manual for t in mesh.axis_types):
        return f(*heads, mask)
    rows = None if mask.shape[0] % math.prod(mesh.shape.get(axis, 1) for axis in BATCH) else BATCH
    tensor = mesh.shape.get("tensor", 1)

    def spec(x: Array) -> PartitionSpec:
        return PartitionSpec(rows, *(None,) * (x.ndim - 3), None if x.shape[-2] % tensor else "tensor", None)

    def local(*args: Array) -> Array:
        *own, mask = args
        read = [_head_read(x, tensor) if whole.shape[-2] % tensor else x for x, whole in zip(own, heads, strict=True)]
        return f(*read, mask)

    split: Any = jax.shard_map(
        local,
        in_specs=(*map(spec, heads), PartitionSpec(rows, None)),
        out_specs=spec(heads[0]),
        check_vma=False,  # a kernel does not say over what its output varies
    )
    return split(*heads, mask)


def _head_read(x: Float[Array, "... K H"], tensor: int) -> Float[Array, "... 1 H"]:
    """Of K key/value heads, that of this device's query heads, a `tensor`-th of all; tensor is a multiple of K."""
    number = jax.lax.axis_index("tensor") * x.shape[-2] // tensor
    return jax.lax.dynamic_slice_in_dim(x, number, 1, axis=x.ndim - 2)


def causal_mask(mask: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where a query may see a key: the key is real and not later."""
    length = mask.shape[1]
    return mask[:, None, :] & jnp.tril(jnp.ones((1, length, length), bool))
