"""What towers and decoders are made of: linear maps, norms, MLPs, stacked layers, sharding constraints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jvr1.model.parameters import MESH_AXES
from jvr1.model.rounded import Rounded

BATCH = ("data", "fsdp")
"""Mesh axes over which the batch axis of every activation is split."""


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """How many ways a mesh splits a batch."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


class Linear(nnx.Module):
    """y = x . kernel + bias: contracts the last `len(inputs)` axes of x, appends the axes `outputs`.

    `jvr1.model.lora` gives some an adapter: y + (x . lora_a) . lora_b * lora_scale, with lora_a [*inputs, rank] and
    lora_b [rank, *outputs]. The product of the two is never formed. For generation a kernel may be `Rounded`.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias: bool,
        std: float,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (*inputs, *outputs)
        self.contracted = len(inputs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, param_dtype) * jnp.asarray(std, param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel.get_value()
        if isinstance(kernel, Rounded):
            y = kernel.product(x, self.contracted)
        else:
            y = jnp.tensordot(x, kernel.astype(x.dtype), axes=self.contracted)
        if self.lora_a is not None and self.lora_b is not None:
            low = jnp.tensordot(x, self.lora_a[...].astype(x.dtype), axes=self.contracted)
            y = y + jnp.tensordot(low, self.lora_b[...].astype(x.dtype), axes=1) * self.lora_scale
        if self.bias is None:
            return y
        bias = self.bias[...].astype(x.dtype)
        return y + jnp.broadcast_to(bias, y.shape)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, the mean square in fp32 (HF `Qwen2RMSNorm`)."""

    def __init__(self, size: int, *, eps: float, param_dtype: DTypeLike):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype)
        return wide.astype(x.dtype) * jnp.broadcast_to(scale, x.shape)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias, in fp32 (torch `LayerNorm`)."""

    def __init__(self, size: int, *, eps: float, param_dtype: DTypeLike):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((size,), param_dtype))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale, bias = (jnp.broadcast_to(p[...].astype(jnp.float32), x.shape) for p in (self.scale, self.bias))
        return (wide * scale + bias).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, size: int, hidden: int, *, bias: bool, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear((inputs,), (outputs,), bias=bias, std=std, param_dtype=param_dtype, rngs=rngs)

        self.gate = linear(size, hidden)
        self.up = linear(size, hidden)
        self.down = linear(hidden, size)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class PlainMLP(nnx.Module):
    """down(act(up(x))), with biases. act: a function of a module, for models are compared by it."""

    def __init__(
        self,
        size: int,
        hidden: int,
        act: Callable[[Array], Array],
        *,
        std: float,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {"bias": True, "std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.act = act
        self.up = Linear((size,), (hidden,), **kw)
        self.down = Linear((hidden,), (size,), **kw)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.down(self.act(self.up(x)))


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one module whose parameters have a leading layer axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_all(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return make_all(rngs)


REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass keeps of a layer: everything, the outputs of its weight products, or only its input."""


def scan_layers(
    layers: nnx.Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: str,
) -> tuple[Any, Any]:
    """Runs `body(layer, carry, x) -> (carry, y)` through stacked layers: compiled once, whatever the depth.

    Layers whose parameters lie apart (`lies_apart`) run one after the other, each a part of the program of its own; xs
    may then be lists, too, and the ys are.
    """
    graphdef, params = nnx.split(layers)
    if lies_apart(params):
        every, ys = (nnx.to_pure_dict(params), xs), []
        for number in range(len(jax.tree.leaves(params, is_leaf=_is_apart)[0])):
            own, x = _at(number, every)
            carry, y = body(nnx.merge(graphdef, own), carry, x)
            ys.append(y)
        return carry, jax.tree.map(lambda *y: list(y), *ys)

    def step(carry: Any, item: tuple[Any, Any]) -> tuple[Any, Any]:
        layer_params, x = item
        return body(nnx.merge(graphdef, layer_params), carry, x)

    if remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (params, xs))


def scan_kinds(
    layers: nnx.Module, kinds: Sequence[Any], body: Callable[[Any, Any, Any], Any], carry: Any, *, remat: str
) -> Any:
    """Runs `body(kind, layer, carry) -> carry` through stacked layers of several kinds, kinds[i] that of layer i.

    Neighbours of a kind are one scan; where the kinds repeat, so is the whole. A `cond` within one scan would write, in
    its backward pass, zeros for the branch that was not taken.
    """
    period = next(n for n in range(1, len(kinds) + 1) if list(kinds[:n]) * (len(kinds) // n) == list(kinds))
    ends = [*(i for i in range(1, period) if kinds[i] != kinds[i - 1]), period]
    graphdef, state = nnx.split(layers)
    params = nnx.to_pure_dict(state)

    def run(carry: Any, params: Any, kind: Any) -> Any:
        own = nnx.merge(graphdef, params)
        return scan_layers(own, lambda layer, x, _: (body(kind, layer, x), None), carry, remat=remat)[0]

    def once(carry: Any, params: Any) -> tuple[Any, None]:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            carry = run(carry, _at(slice(start, end), params), kinds[start])
        return carry, None

    if period == len(kinds):
        return once(carry, params)[0]
    groups = jax.tree.map(lambda x: x.reshape(-1, period, *x.shape[1:]), params)
    return jax.lax.scan(once, carry, groups)[0]


def scan_stops(
    layers: nnx.Module, stops: Sequence[int], body: Callable[[Any, Any], Any], carry: Any, *, remat: str
) -> list[Any]:
    """Runs `body(layer, carry) -> carry` through stacked layers; the carries after those with these numbers, which
    ascend, and after the last."""
    graphdef, state = nnx.split(layers)
    params = nnx.to_pure_dict(state)
    last = len(jax.tree.leaves(params, is_leaf=_is_apart)[0]) - 1
    start, found = 0, []
    for stop in sorted({*stops, last}):
        own = nnx.merge(graphdef, _at(slice(start, stop + 1), params))
        carry, _ = scan_layers(own, lambda layer, x, _: (body(layer, x), None), carry, remat=remat)
        start = stop + 1
        found.append(carry)
    return [*found, carry] if last in stops else found


def _at(place: int | slice, tree: Any) -> Any:
    """Of each list or array what stands there."""
    return jax.tree.map(lambda x: x[place], tree, is_leaf=_is_apart)


def _is_apart(x: Any) -> bool:
    return isinstance(x, list)


def lies_apart(params: Any) -> bool:
    """Whether the parameters of layers are lists of arrays, one a layer, and not stacked."""
    return any(map(_is_apart, jax.tree.leaves(params, is_leaf=_is_apart)))


def constrain(x: Array, *spec: Any) -> Array:
    """Constrains x to a PartitionSpec on the mesh in force (`jax.set_mesh`); without one, returns x.

    Without this GSPMD may replicate activations; the step then wants many times the memory.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(t == jax.sharding.AxisType.Manual for t in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_rows(table: Float[Array, "V D"]) -> Float[Array, "V D"]:
    """Splits a table's rows, words, over the mesh in force where it divides, and nothing else of it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table
    return constrain(table, _over_vocab(mesh, table.shape[0]), None)


def constrain_batch(x: Array) -> Array:
    """Splits the leading axis over the batch axes of the mesh in force where it divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % batch_ways(mesh):
        return x
    return constrain(x, BATCH, *(None,) * (x.ndim - 1))


def constrain_logits(logits: Array) -> Array:
    """Splits logits [B,...,V] as the head is made, and then their rows over all devices, so that each draws from its
    own, whole; where rows do not divide so, over the batch axes alone.

    Logits asked for whole at once would make XLA gather the head instead.
    """
    mesh, axis = jax.sharding.get_abstract_mesh(), MESH_AXES["vocab"]
    ways = batch_ways(mesh)
    if mesh.empty or logits.shape[0] % ways:
        return logits
    between = (None,) * (logits.ndim - 2)
    made = constrain(logits, BATCH, *between, _over_vocab(mesh, logits.shape[-1]))
    if logits.shape[0] % (ways * mesh.shape.get(axis, 1)):
        return made
    return constrain(made, (*BATCH, axis), *between, None)


def _over_vocab(mesh: AbstractMesh, size: int) -> str | None:
    axis = MESH_AXES["vocab"]
    return axis if size % mesh.shape.get(axis, 1) == 0 else None


def constrain_head(kernel: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """Keeps the head split as its parameter is (`parameters.MESH_AXES`), and so its gradient.

    Without this each chunk of logits adds a whole gradient on every device, and an all-reduce of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    ways = [(axis, mesh.shape.get(axis, 1)) for axis in (MESH_AXES["width"], MESH_AXES["vocab"])]
    spec = [a if n > 1 and size % n == 0 else None for (a, n), size in zip(ways, kernel.shape, strict=True)]
    return constrain(kernel, *spec)
