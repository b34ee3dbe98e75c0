"""Attention: dense over one sequence, over a shared prefix in decoding, and over prompts and their completions.

The last goes through one of the backends: blocks of queries by XLA anywhere, the splash kernel on TPUs, cuDNN's flash
kernel on GPUs. All compute the same: a softmax in fp32, normalised once over all keys of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jvr1.errors import UserError
from jvr1.model import blockwise, cudnn, flash_decoding, splash
from jvr1.model.blockwise import MASKED, contract, scale
from jvr1.model.flash_decoding import Part
from jvr1.model.layers import BATCH, batch_ways
from jvr1.model.tape import Tape, unwind, wind

CHOICES = ("auto", "xla", "splash", "cudnn")
"""What `model.attention` may be."""
Backend = Literal["xla", "splash", "interpreted", "cudnn"]
"""What computes; interpreted: the splash kernel by XLA, slow, for tests without a TPU."""


def choose(name: str, platform: str, dtype: DTypeLike, head_size: int) -> Backend:
    """The backend of a model's text layers on the platform it is compiled for: tpu, gpu or cpu.

    `platform` is that of the mesh. It need not be this machine's: a CPU machine can compile programs for TPUs. auto
    takes the platform's kernel if that supports the dtype and the head size, else XLA. Raises UserError when a kernel
    is asked for by name on another platform, or with a dtype or head size it does not support.
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


def attend(
    q: Float[Array, "b t N H"],
    k: Float[Array, "b s K H"],
    v: Float[Array, "b s K H"],
    mask: Bool[Array, "b s"],
) -> Float[Array, "b t N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys where `mask` is true, whatever the query; softmax in fp32. Query head n
    reads key head n // (N/K)."""
    b, t, heads, size = q.shape
    grouped = q.reshape(b, t, k.shape[2], heads // k.shape[2], size)
    logits = contract("btkgh,bskh->bktgs", grouped, k) * scale(size)
    weights = jax.nn.softmax(_masked(logits, mask[:, None, None, None]), axis=-1)
    return jnp.einsum("bktgs,bskh->btkgh", weights.astype(v.dtype), v).reshape(q.shape)


def attend_shared(
    q: Float[Array, "B R N H"],
    prefix: Sequence[tuple[Float[Array, "B K H P"], Float[Array, "B K P H"]]],
    prefix_mask: Bool[Array, "B S P"],
    own: tuple[Float[Array, "B R K H C"], Float[Array, "B R K C H"]],
    own_mask: Bool[Array, "B R C"],
    rows: Sequence[int],
    backend: Backend = "xla",
) -> Float[Array, "B R N H"]:
    """Attention, in decoding, of rows' newest tokens over [their stream's prefix | their own keys], normalised jointly.

    The first `rows[0]` of the R rows belong to stream 0, the next `rows[1]` to stream 1, and so on. All rows of a
    stream read the same prefix: it is one operand of one product, and is not copied for each row. prefix: of each
    stream; of one array they would be copied out of it. On GPUs and TPUs, where XLA writes all scores to memory, a
    kernel computes it if it takes these lengths.
    """
    b, r, _, size = q.shape
    form: flash_decoding.Accelerator = "gpu" if backend == "cudnn" else "tpu"
    if backend != "xla" and _kernel_takes(form, [own[0], *(k for k, _ in prefix)]):
        parts = partial(flash_decoding.attend_parts, form=form, interpret=backend == "interpreted")
        return _shared_by_kernel(parts, q, prefix, prefix_mask, own, own_mask, rows)
    grouped = q.reshape(b, r, own[0].shape[2], -1, size)
    streams = [slice(sum(rows[:s]), sum(rows[: s + 1])) for s in range(len(rows))]
    to_prefix = [
        _masked(
            contract("brkgh,bkhp->bkrgp", grouped[:, of], prefix[s][0]) * scale(size),
            prefix_mask[:, s, None, None, None],
        )
        for s, of in enumerate(streams)
    ]
    to_own = _masked(contract("brkgh,brkhc->brkgc", grouped, own[0]) * scale(size), own_mask[:, :, None, None])
    top = jnp.maximum(_by_row(jnp.max, to_prefix), jnp.max(to_own, axis=-1, keepdims=True))
    weights = [jnp.exp(x - top[:, of].swapaxes(1, 2)) for x, of in zip(to_prefix, streams, strict=True)]
    own_weights = jnp.exp(to_own - top)
    total = _by_row(jnp.sum, weights) + jnp.sum(own_weights, axis=-1, keepdims=True)
    # the einsum keeps heads before rows, and the axes are swapped afterwards: XLA for CPUs has no bfloat16 product that
    # swaps them itself
    mixed = [contract("bkrgp,bkph->bkrgh", x.astype(v.dtype), v) for (_, v), x in zip(prefix, weights, strict=True)]
    own_mixed = contract("brkgc,brkch->brkgh", own_weights.astype(own[1].dtype), own[1])
    of_prefix = jnp.concatenate([x.swapaxes(1, 2) for x in mixed], axis=1)
    return ((of_prefix + own_mixed) / total).astype(q.dtype).reshape(q.shape)


def _kernel_takes(form: flash_decoding.Accelerator, keys: Sequence[Float[Array, "... K H _"]]) -> bool:
    """Whether `flash_decoding` takes the lengths, and a device has whole heads of keys."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return all(flash_decoding.takes(form, x.shape[-1], x.shape[-2]) and x.shape[-3] % tensor == 0 for x in keys)


def _shared_by_kernel(
    parts: Callable[..., Part],
    q: Array,
    prefix: Any,
    prefix_mask: Array,
    own: Any,
    own_mask: Array,
    rows: Sequence[int],
) -> Array:
    """`attend_shared` by `flash_decoding`, on each device's prompts and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    local = partial(_flash_shared, parts, rows)
    if mesh.empty or mesh.size == 1:
        return local(q, prefix, prefix_mask, own, own_mask)
    batch = None if q.shape[0] % batch_ways(mesh) else BATCH
    of_prompt, of_rows = PartitionSpec(batch, "tensor"), PartitionSpec(batch, None, "tensor")
    split: Any = jax.shard_map(
        local,
        in_specs=(of_rows, of_prompt, PartitionSpec(batch), of_rows, PartitionSpec(batch)),
        out_specs=of_rows,
        check_vma=False,  # as in `_each_device`
    )
    return split(q, prefix, prefix_mask, own, own_mask)


def _flash_shared(
    parts: Callable[..., Part],
    rows: Sequence[int],
    q: Array,
    prefix: Any,
    prefix_mask: Array,
    own: Any,
    own_mask: Array,
) -> Array:
    b, r, heads, size = q.shape
    kv_heads = own[0].shape[2]
    grouped = q.reshape(b, r, kv_heads, heads // kv_heads, size)
    flat = [x.reshape(-1, *x.shape[3:]) for x in (grouped, *own)]
    of_own = parts(*flat, own_mask.reshape(b * r, -1))
    mixed = []
    for s, count in enumerate(rows):
        of = slice(sum(rows[:s]), sum(rows[:s]) + count)
        k, v = (x.reshape(-1, *x.shape[2:]) for x in prefix[s])
        queries = grouped[:, of].swapaxes(1, 2).reshape(b * kv_heads, -1, size)
        found = parts(queries, k, v, prefix_mask[:, s])
        by_row = Part(*(x.reshape(len(x), b, kv_heads, count, -1, x.shape[-1]).swapaxes(2, 3) for x in found))
        here = Part(*(x.reshape(len(x), *grouped.shape[:-1], -1)[:, :, of] for x in of_own))
        mixed.append(flash_decoding.normalised([by_row, here]))
    return jnp.concatenate(mixed, axis=1).astype(q.dtype).reshape(q.shape)


def _by_row(reduce: Callable[..., Array], of_streams: Sequence[Float[Array, "B K _ g P"]]) -> Float[Array, "B R K g 1"]:
    return jnp.concatenate([reduce(x, axis=-1, keepdims=True).swapaxes(1, 2) for x in of_streams], axis=1)


def _masked(logits: Float[Array, "*X s"], mask: Bool[Array, "*#X s"]) -> Float[Array, "*X s"]:
    return jnp.where(mask, logits, jnp.float32(MASKED))


def attend_prompt(prompt: QKV, mask: Bool[Array, "B P"], backend: Backend) -> Float[Array, "B P N H"]:
    """Causal attention within prompts [B,P]; queries at padding are finite and mean nothing. Padding: with cuDNN on the
    right, otherwise on either side."""
    if backend == "cudnn" and mask.shape[1] % 2 == 0:
        return _each_device(cudnn.attend_causal, prompt, [])
    return attend_group(prompt, mask, 0, 0, backend)


def attend_group(
    packed: QKV, mask: Bool[Array, "B P"], rows: int, length: int, backend: Backend
) -> Float[Array, "B T N H"]:
    """Attention of prompts and their completions, T = P + G*C tokens [prompt | G = `rows` completions of `length`]: the
    prompt causally, a completion over [prompt | itself]."""
    b, p = mask.shape
    if backend in ("splash", "interpreted"):

        def attended(q: Array, k: Array, v: Array, real: Array) -> Array:
            return splash.attend_packed(q, k, v, real, p, rows, length, interpret=backend == "interpreted")

        return _each_device(attended, packed, [_with_completions(mask, rows * length)])
    if backend == "xla" or p % 2 or length % 2:
        return _each_device(partial(blockwise.attend_packed, rows=rows, length=length), packed, [mask])
    prompt = QKV(*(x[:, :p] for x in packed))
    own = QKV(*(x[:, p:].reshape(b, rows, length, *x.shape[2:]) for x in packed))

    def prefixed(q: Array, k: Array, v: Array, own_k: Array, own_v: Array, mask: Array) -> Array:
        return cudnn.attend_prefixed(q, (k, v), mask, (own_k, own_v))

    of_prompt = attend_prompt(prompt, mask, backend)
    of_own = _each_device(prefixed, (own.q, prompt.k, prompt.v, own.k, own.v), [mask])
    return jnp.concatenate([of_prompt, of_own.reshape(b, rows * length, *of_own.shape[3:])], axis=1)


def attend_tape(
    packed: QKV, mask: Bool[Array, "B P"], tape: Tape, length: int, backend: Backend
) -> Float[Array, "B T N H"]:
    """As `attend_group`, of prompts and completions of at most `length` tokens on tapes, T = P + S tokens
    [prompt | tape].

    cuDNN's kernel takes the completions off the tape, each padded to `length`, and what it gives is put on it again:
    the kernel knows no mask by completion that it would not read whole.
    """
    p, rows = mask.shape[1], tape.length.shape[1]
    if backend in ("splash", "interpreted"):

        def attended(q: Array, k: Array, v: Array, real: Array, row: Array) -> Array:
            return splash.attend_packed(q, k, v, real, p, rows, length, row, interpret=backend == "interpreted")

        return _each_device(attended, packed, [_with_completions(mask, tape.row.shape[1]), tape.row])
    if backend == "xla" or p % 2 or length % 2:

        def in_blocks(q: Array, k: Array, v: Array, mask: Array, row: Array) -> Array:
            return blockwise.attend_packed(q, k, v, mask, rows, length, row)

        return _each_device(in_blocks, packed, [mask, tape.row])
    prompt, own = (QKV(*(x[:, of] for x in packed)) for of in (slice(p), slice(p, None)))

    def prefixed(q: Array, k: Array, v: Array, own_k: Array, own_v: Array, mask: Array, *tape: Array) -> Array:
        laid = Tape(*tape)
        q, own_k, own_v = (unwind(x, laid, length) for x in (q, own_k, own_v))
        return wind(cudnn.attend_prefixed(q, (k, v), mask, (own_k, own_v)), laid)

    of_tape = _each_device(prefixed, (own.q, prompt.k, prompt.v, own.k, own.v), [mask, *tape])
    return jnp.concatenate([attend_prompt(prompt, mask, backend), of_tape], axis=1)


def _with_completions(mask: Bool[Array, "B P"], tokens: int) -> Bool[Array, "B T"]:
    return jnp.pad(mask, ((0, 0), (0, tokens)), constant_values=True)


def _each_device(
    f: Callable[..., Array], heads: Sequence[Array], of_rows: Sequence[Array]
) -> Float[Array, "B ... N H"]:
    """Runs f(*heads, *of_rows) separately on each device, on that device's rows and heads (`shard_map`).

    heads: arrays [B,...,heads,H]; of_rows: arrays [B,z]. Left to itself XLA would gather all arguments of a kernel on
    every device, because it cannot look into one. It would also gather where `tensor` splits the query heads more ways
    than there are key heads.

    Rows are split over the batch axes of the mesh in force, if they divide; query heads over `tensor`. Key and value
    heads are split over `tensor` too, if they divide. If not, there are fewer of them than devices: then every device
    has all of them, and takes the one that its own query heads read (`_head_read`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(t == AxisType.Manual for t in mesh.axis_types):
        return f(*heads, *of_rows)
    rows = None if heads[0].shape[0] % batch_ways(mesh) else BATCH
    tensor = mesh.shape.get("tensor", 1)

    def spec(x: Array) -> PartitionSpec:
        return PartitionSpec(rows, *(None,) * (x.ndim - 3), None if x.shape[-2] % tensor else "tensor", None)

    def local(*args: Array) -> Array:
        own = zip(args[: len(heads)], heads, strict=True)
        read = [_head_read(x, tensor) if whole.shape[-2] % tensor else x for x, whole in own]
        return f(*read, *args[len(heads) :])

    split: Any = jax.shard_map(
        local,
        in_specs=(*map(spec, heads), *(PartitionSpec(rows, None) for _ in of_rows)),
        out_specs=spec(heads[0]),
        check_vma=False,  # a kernel does not say over which mesh axes its output differs
    )
    return split(*heads, *of_rows)


def _head_read(x: Float[Array, "... K H"], tensor: int) -> Float[Array, "... 1 H"]:
    """Of K key (or value) heads the one that this device's query heads read. `tensor` is a multiple of K, so the query
    heads of one device all share one key head."""
    number = jax.lax.axis_index("tensor") * x.shape[-2] // tensor
    return jax.lax.dynamic_slice_in_dim(x, number, 1, axis=x.ndim - 2)
