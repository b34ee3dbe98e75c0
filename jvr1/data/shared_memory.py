"""Shared memory, in which worker processes hand rows over: names that say whose it is, what killed runs left, how much
of it a pipeline may use."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import gc
import math
import mmap
import multiprocessing
import os
import re
import secrets
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from jvr1.errors import SAFE, UserError
from jvr1.lifeline import end_with_parent

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux shows shared memory as files. Elsewhere nothing here does anything, but for workers."""
_OWN = re.compile(r"(?:sem\.)?(jvr1-[0-9a-f]{16})(?:-.+)?")


@functools.cache
def own_name() -> str:
    """What the names of all that this process and its workers put into shared memory begin with, from now on.

    A file of that name is locked as long as the process lives, so that any other can see whether it does, in another
    container too, where process numbers say nothing.
    """
    name = _lock()
    # once the workers are gone, too, multiprocessing's tracker removes what is left, this file with the rest
    resource_tracker.register(f"/{name}", "shared_memory")
    multiprocessing.current_process()._config["semprefix"] = f"/{name}"  # type: ignore[attr-defined]
    atexit.register(_give_up, name, os.getpid())
    return name


def _lock() -> str:
    while True:
        name = f"jvr1-{secrets.token_hex(8)}"
        descriptor = os.open(SHARED_MEMORY / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)  # stays open
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another's `remove_leftovers` came between
            return name
        os.close(descriptor)


def _give_up(name: str, process: int) -> None:
    finish_deletions()
    if os.getpid() == process:  # a fork runs this too
        (SHARED_MEMORY / name).unlink(missing_ok=True)
        resource_tracker.unregister(f"/{name}", "shared_memory")


def remove_leftovers() -> None:
    """Removes what processes that were killed left, where their owner may; says how much it was."""
    if not SHARED_MEMORY.is_dir():
        return
    left = defaultdict(list)
    for file in SHARED_MEMORY.iterdir():
        if (own := _OWN.fullmatch(file.name)) is not None:
            left[own[1]].append(file)
    files = size = 0
    for name, found in left.items():
        with _locked_if_dead(SHARED_MEMORY / name) as dead:
            for file in sorted(found, key=lambda file: file.name == name) if dead else ():
                with contextlib.suppress(OSError):
                    there = file.stat().st_size
                    file.unlink()
                    files, size = files + 1, size + there
    if files:
        print(
            f"removed from {SHARED_MEMORY} what killed runs left: {files} files, {size / 2**20:.1f} MB", file=sys.stderr
        )


@contextlib.contextmanager
def _locked_if_dead(file: Path) -> Iterator[bool]:
    """Whether the owner of a name is gone; its file stays locked meanwhile, which one that just begins waits for."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        yield error.errno == errno.ENOENT
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def prepare_worker(name: str | None, index: int, count: int) -> None:
    """The first thing in a worker process of grain: it ends with its parent, and names its rows after it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with_parent(parent.sentinel)
    if name is None:
        return

    def new(cls: type[SharedMemoryArray], shape: Iterable[int], dtype: Any = float) -> SharedMemoryArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return cls.from_shared_memory(allocate(f"{name}-{secrets.token_hex(8)}", size), shape, dtype)

    type.__setattr__(SharedMemoryArray, "__new__", new)


def allocate(name: str, size: int) -> SharedMemory:
    """Shared memory whose `size` bytes are there: else writing to it would end the process by SIGBUS. Raises UserError
    where there are no more."""
    memory = SharedMemory(name, create=True, size=size)
    try:
        with (SHARED_MEMORY / name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        memory.close()
        memory.unlink()
        raise UserError(
            f"{SHARED_MEMORY} has no room for a data worker's row ({error.strerror}); "
            f"start the container with a larger --shm-size, or set data.workers=0; {SAFE}"
        ) from None
    return memory


def rows_ahead(row: int, workers: int, own: int, wanted: int) -> int:
    """How many rows each worker keeps ready: `wanted`, or as many as fit into half of the free shared memory (training
    and validation are two pipelines), which is then said. row: its bytes; own: rows of this process in a microbatch.

    Raises UserError where not even one row ahead fits into all that is free.
    """
    if (
        not SHARED_MEMORY.is_dir() or not (there := shutil.disk_usage(SHARED_MEMORY)).total
    ):  # a tmpfs without limit shows 0
        return wanted
    free, least = f"{SHARED_MEMORY} has {there.free / 2**20:.0f} MB free", row * rows_held(workers, own, 1)
    enough = f"--shm-size={math.ceil(2 * row * rows_held(workers, own, wanted) / 2**30)}g"
    if least > there.free:
        fewer = next((n for n in range(workers - 1, 0, -1) if row * rows_held(n, own, 1) <= there.free), 0)
        raise UserError(
            f"{free}, and data.workers={workers} needs {least / 2**20:.0f} MB or more; "
            f"start the container with {enough}, or set data.workers={fewer}"
        )
    ahead = next((n for n in range(wanted, 1, -1) if row * rows_held(workers, own, n) <= there.free // 2), 1)
    if ahead < wanted:
        said = f"each of {workers} data workers reads {ahead} rows ahead, not {wanted}"
        print(f"{free}: {said}; {enough} has room for all", file=sys.stderr)
    return ahead


def rows_held(workers: int, own: int, ahead: int) -> int:
    """Rows in shared memory at most: `ahead` of each worker in its queue, as many that a thread of grain has taken from
    there, one on the way to either; a microbatch of `own` that is put together, and the last, which is let go."""
    return workers * 2 * (ahead + 1) + 2 * own


def room(row: Any) -> int:
    """Bytes that the arrays of nested tuples take there, in whole pages; scalars take none. Imports no jax."""
    if isinstance(row, tuple):
        return sum(map(room, row))
    return math.ceil(row.nbytes / mmap.PAGESIZE) * mmap.PAGESIZE if isinstance(row, np.ndarray) else 0


def finish_deletions() -> None:
    """Waits until grain's thread has unlinked the rows that were let go.

    Nothing leaks without it: what the thread has not come to when Python ends is unlinked by multiprocessing's resource
    tracker, which then warns of leaked shared memory.
    """
    gc.collect()  # a generator that was left half way holds its rows in a cycle
    thread = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if thread is not None:
        thread.apply(int)  # it has one thread: what was asked before is done
