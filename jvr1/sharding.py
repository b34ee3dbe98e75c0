"""Where things live: the mesh, the PartitionSpec of a parameter by its logical axes, batches onto devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.families import known
from jvr1.model.layers import BATCH
from jvr1.model.parameters import MESH_AXES, is_stacked

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the AXES, as `mesh_sizes` says. Raises UserError."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(shape, len(devices))
    # by itself JAX refuses sizes such as 8 x 2 on a slice of 4 x 4: a mesh axis may take part of one of the slice's
    placed = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(shape: Mapping[str, int], devices: int) -> list[int]:
    """Of the AXES over a number of devices. At most one size may be -1: whatever the devices leave.

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    unknown = set(shape) - set(AXES)
    if unknown:
        raise UserError(f"mesh axis {sorted(unknown)[0]!r} is unknown; the axes are {', '.join(AXES)}")
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"{_named(shape)}: sizes must be positive, at most one of them -1")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise UserError(f"{_named(shape)}: does not fit {devices} devices; the sizes must multiply to that")
    return sizes


def _named(shape: Mapping[str, int]) -> str:
    return ", ".join(f"mesh.{axis}={shape.get(axis, 1)}" for axis in AXES)


MOST_DECODE = 4
"""The most ways that weights are split for decoding by themselves: no host has fewer chips that has several."""


def decode_ways(mesh: Mesh | AbstractMesh, config: ModelConfig, platform: str) -> int:
    """Ways the weights are split for decoding where no setting says it. On CPUs as on the mesh. On GPUs and TPUs a step
    takes as long as its bytes are read, and few rows share what is read: as many ways as key and value heads allow, up
    to MOST_DECODE, within a process."""
    if platform == "cpu":
        return mesh.shape["tensor"]
    devices = mesh.size
    local = len(mesh.local_devices) if isinstance(mesh, Mesh) and mesh.local_devices else devices
    fit = [
        t
        for t in valid_tensor_sizes(config)
        if t <= MOST_DECODE and config.text.kv_heads % t == 0 and devices % t == 0 and local % t == 0
    ]
    return max(mesh.shape["tensor"], *fit)


def decode_sizes(devices: int, tensor: int) -> tuple[int, ...]:
    """Of the axes, for generation: `tensor`, and copies of that."""
    sizes = {"data": devices // tensor, "tensor": tensor}
    return tuple(sizes.get(axis, 1) for axis in AXES)


def decode_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The devices of `mesh`, in its order, as they generate: split over tensor, replicated otherwise.

    tensor 0: that of `mesh`. Sampling on weights split over fsdp would gather the model for every token. Raises
    UserError for a size that does not divide the devices of a process.
    """
    tensor = tensor or mesh.shape["tensor"]
    local = len(mesh.local_devices)
    if mesh.devices.size % tensor or (local % tensor and tensor % local):
        raise UserError(
            f"mesh.decode_tensor={tensor} cannot split {mesh.devices.size} devices, {local} a process; use a divisor"
        )
    return Mesh(mesh.devices.reshape(decode_sizes(mesh.size, tensor)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def valid_tensor_sizes(config: ModelConfig) -> list[int]:
    """Sizes the tensor axis may have: they divide query heads and MLP; key/value heads divide or are replicated."""
    text = config.text
    return [
        t
        for t in range(1, text.heads + 1)
        if text.heads % t == 0 and text.intermediate % t == 0 and (text.kv_heads % t == 0 or t % text.kv_heads == 0)
    ]


def check_mesh(mesh: Mesh | AbstractMesh, config: ModelConfig) -> None:
    """Raises UserError, listing the valid sizes, when the model cannot be split over the mesh's tensor axis."""
    valid = valid_tensor_sizes(config)
    size = mesh.shape["tensor"]
    if size not in valid:
        raise UserError(
            f"mesh.tensor={size} cannot split {config.text.heads} query heads, {config.text.kv_heads} key/value "
            f"heads and an MLP of {config.text.intermediate}; valid sizes are {', '.join(map(str, valid))}"
        )


def path_name(path: tuple[Any, ...]) -> str:
    """'text/layers/q/kernel' of a pytree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Mapping[str, str] = MESH_AXES
) -> P:
    """The PartitionSpec of one parameter, from its logical axes.

    An axis whose size the mesh axis does not divide stays whole; a parameter that this leaves without `fsdp` gets it on
    its largest divisible axis; on the layer axis, over which the layers are scanned, only where no other divides (the
    3420 biases of the vision tower on 8 devices).
    """
    wanted = [rules.get(axis) for axis in known(path).axes]
    wanted += [None] * (len(shape) - len(wanted))
    axes = [a if a is not None and size % mesh.shape[a] == 0 else None for a, size in zip(wanted, shape, strict=True)]
    if "fsdp" not in axes and mesh.shape["fsdp"] > 1:
        free = [
            (not (i == 0 and is_stacked(path)), size, -i)
            for i, (a, size) in enumerate(zip(axes, shape, strict=True))
            if a is None and size % mesh.shape["fsdp"] == 0
        ]
        if free:
            axes[-max(free)[2]] = "fsdp"
    return P(*axes)


def param_shardings(params: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, str] = MESH_AXES) -> Any:
    """NamedShardings of a tree of parameters (arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, partition_spec(path_name(path), x.shape, mesh, rules)), params
    )


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Leading axis over the mesh's batch axes."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch (numpy, leading axis the rows) -> one global array a leaf, split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def take_local(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose leading axis is split as `put_batch` splits it; all of a replicated one."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
