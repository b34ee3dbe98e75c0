"""Several processes as one run: how they find each other, agree and share out rows (how they end: jvr1.processes.ends).

Every process must call `agree`, `gather` and `from_owner` at the same points of the program, or the others wait for it.
With one process they do nothing.
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
"""Seconds that another process may be silent, or late at the start, before this one ends; --peer_limit sets it."""
THEIRS_LATER = 60
"""JAX has limits of its own, and aborts the process when they are reached. They are set this many seconds beyond ours,
so that ours, which end the process with a message and its exit code, come first."""
AGREE_SECONDS = 60
"""Seconds that a process which has joined may take to say with which settings it was started."""
MOST_DIFFERENCES = 4
"""How many differences between two processes a message names."""


@dataclass(frozen=True)
class Peers:
    """What the command line says of a run's processes: the address of process 0, how many there are, and which one this
    is. All three None: to be found out (`connect`). limit: seconds that another process may be silent, or late at the
    start."""

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
    """Joins the other processes of the run. Call it before anything touches a device.

    With the flags of `Peers`, as they say. Without them JAX looks for the processes of a TPU pod or a SLURM step
    (`jax.distributed`; a SLURM task gets one GPU unless JAX_LOCAL_DEVICE_IDS names more), and where it finds none the
    process runs alone. With JAX_PLATFORMS=cpu nothing is looked for: without flags the process runs alone.
    Raises UserError when the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    alone = peers.coordinator is None
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        if alone:
            return
        # With asynchronous dispatch two programs may run at once, and reach their collectives in another order than on
        # the other processes. gloo matches messages by order alone, and would mix the two programs up.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself; `notice` handles it
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.processes,
            peers.process,
            # later than our own limit (THEIRS_LATER)
            heartbeat_timeout_seconds=int(peers.limit) + THEIRS_LATER,
            initialization_timeout=int(peers.limit) + THEIRS_LATER,
        )
    except ValueError as error:
        if not (alone and "coordinator_address should be defined" in str(error)):
            raise UserError(f"the processes of this run cannot be found: {error}") from None
    except RuntimeError as error:
        raise UserError(f"process {peers.process} cannot join {peers.coordinator}: {_one_line(error)}") from None


def processes() -> int:
    """How many processes this run has. Unlike `jax.process_count` it touches no device: that would wait until the
    others have joined."""
    return global_state.num_processes or 1


def number() -> int:
    """The number of this process, from 0; touches no device either."""
    return global_state.process_id or 0


def store() -> Any:
    """The store of keys and values that process 0 keeps for all processes: JAX's client of it, None in a run of one."""
    return global_state.client


def where() -> str | None:
    """HOST:PORT of process 0; None in a run of one process."""
    return global_state.coordinator_address


def agree(topic: str, told: Mapping[str, Any]) -> None:
    """Compares what the processes were told (name -> JSON value) before they compute anything together.

    Raises UserError on all of them when one was told something else than process 0. topic: a name for what is compared;
    it can be used once in a run.
    """
    if processes() == 1:
        return
    keys, key = store(), f"jvr1/told/{topic}"
    own = json.dumps(dict(told) | {"--processes": processes()}, default=str)
    keys.key_value_set(f"{key}/{number()}", own)
    first = json.loads(keys.blocking_key_value_get(f"{key}/0", AGREE_SECONDS * 1000))
    for other in range(1, max(first["--processes"], number() + 1)):
        # this process's own answer is known without the store. It matters where process 0 was started with a smaller
        # --processes: it does not count this one, and must still be shown to differ
        said = own if other == number() else keys.blocking_key_value_get(f"{key}/{other}", AGREE_SECONDS * 1000)
        if differences := different(first, json.loads(said)):
            raise UserError(
                f"process {other} was started otherwise than process 0: {'; '.join(differences)}. "
                "All processes need the same command, code and files"
            )


def different(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The first few differences, as 'name: value of first -> value of other'; None where one has no such name."""
    names = sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n))
    shown = [f"{name}: {first.get(name)} -> {other.get(name)}" for name in names[:MOST_DIFFERENCES]]
    return shown + ([f"and {len(names) - MOST_DIFFERENCES} more"] if len(names) > MOST_DIFFERENCES else [])


def gather(value: Any) -> list[Any]:
    """Returns, on every process, the values of all processes in their order. Values must be JSON; a tuple comes back as
    a list."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    room = 1 << int(sizes.max() - 1).bit_length()  # a power of two: a length is a program to compile, so there are few
    padded = np.zeros(max(room, 256), np.uint8)
    padded[: len(content)] = content
    every = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


def share_of(mesh: Mesh) -> Share:
    """This process's share in batches split over the mesh's data and fsdp axes. Raises UserError."""
    processes = [[device.process_index for device in row] for row in mesh.devices.reshape(-1, mesh.shape["tensor"])]
    return share_among(processes, jax.process_index())


def from_owner(value: Any, share: Share) -> Any:
    """The `value` of the process that owns this process's rows.

    Processes with the same rows must go on with the same numbers, and what they computed may differ: a user's reward
    that timed out on one of them, say. Where no rows are shared, returns `value` as it is; else it must be JSON.
    """
    if not share.shared:
        return value
    every = gather([list(share.parts), share.owner, value])
    return next(v for parts, owner, v in every if owner and parts == list(share.parts))


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
