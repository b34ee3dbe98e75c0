"""Several processes as one run: how they find each other, agree and share out rows (how they end: jvr1.processes.ends).

Every process calls the functions here at the same points; with one process they cost nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import flags
from jax._src.distributed import global_state  # the run's store of keys; jax.distributed does not show it
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jvr1.data.share import Share, share_among
from jvr1.errors import UserError

PEER_SECONDS = 100.0
"""How long another process may be silent, or late at the start, unless --peer_limit says otherwise."""
THEIRS_LATER = 60
"""Seconds by which JAX's own bounds, at which it aborts, are wider than ours."""
AGREE_SECONDS = 60
"""How long a process that has joined may take to say what it was started with."""
SHOWN = 4
"""Differences between processes that are named."""


@dataclass(frozen=True)
class Peers:
    """What the command line says of the processes; all None: they are to be detected. limit: seconds another may be
    silent, or late at the start."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    limit: float = PEER_SECONDS

    def __post_init__(self) -> None:
        if not self.limit >= 1:
            raise UserError(f"--peer_limit {self.limit:g} must be 1 second or more")
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
    flags.DEFINE_float("peer_limit", PEER_SECONDS, "Seconds another process may be silent.", flag_values=values)


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
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow the SIGTERM that `notice` reads
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.processes,
            peers.process,
            # ours ends the process before; theirs aborts it
            heartbeat_timeout_seconds=int(peers.limit) + THEIRS_LATER,
            initialization_timeout=int(peers.limit) + THEIRS_LATER,
        )
    except ValueError as error:
        if not (alone and "coordinator_address should be defined" in str(error)):
            raise UserError(f"the processes of this run cannot be found: {error}") from None
    except RuntimeError as error:
        raise UserError(f"process {peers.process} cannot join {peers.coordinator}: {_one_line(error)}") from None


def processes() -> int:
    """Of this run; known without touching a device, which waits for the others."""
    return global_state.num_processes or 1


def number() -> int:
    """Of this process, from 0; as `processes`."""
    return global_state.process_id or 0


def store() -> Any:
    """Of keys and values, which process 0 keeps for all."""
    return global_state.client


def where() -> str | None:
    """HOST:PORT of process 0."""
    return global_state.coordinator_address


def agree(topic: str, told: Mapping[str, Any]) -> None:
    """Compares what the processes of a run were started with (name -> JSON value) before they do anything together.

    Raises UserError on all of them when one differs from process 0. topic: each is agreed upon once.
    """
    if processes() == 1:
        return
    keys, key = store(), f"jvr1/told/{topic}"
    own = json.dumps(dict(told) | {"--processes": processes()}, default=str)
    keys.key_value_set(f"{key}/{number()}", own)
    first = json.loads(keys.blocking_key_value_get(f"{key}/0", AGREE_SECONDS * 1000))
    for other in range(1, max(first["--processes"], number() + 1)):
        # a process of a smaller run is not waited for: what this one was told is known
        said = own if other == number() else keys.blocking_key_value_get(f"{key}/{other}", AGREE_SECONDS * 1000)
        if differences := different(first, json.loads(said)):
            raise UserError(
                f"process {other} was started otherwise than process 0: {'; '.join(differences)}. "
                "All processes need the same command, code and files"
            )


def different(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """'name: value of first -> value of other', the first few; what is nowhere is None."""
    names = sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n))
    shown = [f"{name}: {first.get(name)} -> {other.get(name)}" for name in names[:SHOWN]]
    return shown + ([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])


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


def share_of(mesh: Mesh) -> Share:
    """This process's share in batches split over the mesh's data and fsdp axes. Raises UserError."""
    processes = [[device.process_index for device in row] for row in mesh.devices.reshape(-1, mesh.shape["tensor"])]
    return share_among(processes, jax.process_index())


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
