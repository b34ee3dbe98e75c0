"""Several processes as one run: how they find each other, agree, and end.

Every process calls the functions here at the same points; with one process they cost nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jvr1.errors import UserError

HEARTBEAT_SECONDS = 60
"""How long a process may be silent before the others end. A lost connection is noticed at once."""


@dataclass(frozen=True)
class Peers:
    """What the command line says of the processes; all None: they are to be detected."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self):
        given = [x is not None for x in (self.coordinator, self.processes, self.process)]
        if any(given) and not all(given):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I go together")
        if not all(given):
            return
        if ":" not in str(self.coordinator):
            raise UserError(f"--coordinator {self.coordinator} names no port; write HOST:PORT")
        if not 0 <= int(self.process or 0) < int(self.processes or 0):
            raise UserError(f"--process {self.process} must lie between 0 and --processes {self.processes} less one")


def define_flags(values: flags.FlagValues) -> None:
    """The flags that `Peers` is made from."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several.", flag_values=values)
    flags.DEFINE_integer("processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process", None, "Number of this process, from 0.", flag_values=values)


def connect(peers: Peers) -> None:
    """Joins the processes of a run; call it before anything touches a device.

    Without flags, processes of a TPU pod or a SLURM step are found as `jax.distributed` finds them (it gives a SLURM
    task one GPU unless JAX_LOCAL_DEVICE_IDS names more); a process by itself stays so, and on JAX_PLATFORMS=cpu only
    flags count. Raises UserError when the peers cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    alone = peers.coordinator is None
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        if alone:
            return
        # two programs under way at once may meet the peers' in another order, and gloo cannot tell them apart
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.processes,
            peers.process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if not (alone and "coordinator_address should be defined" in str(error)):
            raise UserError(f"the processes of this run cannot be found: {error}") from None
    except RuntimeError as error:
        raise UserError(f"process {peers.process} cannot join {peers.coordinator}: {_one_line(error)}") from None


def gather(value: Any) -> list[Any]:
    """What each process gave, in their order, on all of them. Values must be JSON; a list instead of a tuple comes
    back."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    room = 1 << int(sizes.max() - 1).bit_length()  # few lengths: each is a program
    padded = np.zeros(max(room, 256), np.uint8)
    padded[: len(content)] = content
    every = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a process feeds: `parts` of `ways` equal ones.

    owner: whether it is the first process with these parts. Where the tensor axis crosses processes several feed the
    same rows; the owner alone counts them.
    """

    parts: tuple[int, ...] = (0,)
    ways: int = 1
    owner: bool = True
    shared: bool = False

    def places(self, batch: int) -> list[int]:
        """Row numbers within a batch, in order. Raises UserError when the batch cannot be split."""
        if batch % self.ways:
            raise UserError(f"{batch} rows a microbatch cannot be split {self.ways} ways; use a multiple")
        size = batch // self.ways
        return [part * size + i for part in self.parts for i in range(size)]


ALONE = Share()
"""All rows: one process, one part."""


def share_of(mesh: Mesh) -> Share:
    """This process's share in batches split over the mesh's data and fsdp axes. Raises UserError."""
    processes = [[device.process_index for device in row] for row in mesh.devices.reshape(-1, mesh.shape["tensor"])]
    return share_among(processes, jax.process_index())


def share_among(processes: Sequence[Sequence[int]], process: int) -> Share:
    """The share of `process`, where `processes` are those of the devices that hold each part of a batch."""
    holders = [sorted(set(row)) for row in processes]
    parts = tuple(i for i, holding in enumerate(holders) if process in holding)
    with_them = [holders[i] for i in parts]
    if any(holding != with_them[0] for holding in with_them) and any(len(holding) > 1 for holding in with_them):
        raise UserError(
            "the mesh's tensor axis crosses processes unevenly; use a size that divides, or is a multiple of, the "
            "devices of a process"
        )
    owner = all(holding[0] == process for holding in with_them)
    return Share(parts, len(holders), owner, any(len(holding) > 1 for holding in with_them))


def from_owner(value: Any, share: Share) -> Any:
    """`value` of the process that owns this one's rows: what they computed may differ, as after a timeout.

    Only where rows are shared; the value is JSON then.
    """
    if not share.shared:
        return value
    every = gather([list(share.parts), share.owner, value])
    return next(v for parts, owner, v in every if owner and parts == list(share.parts))


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
