"""What processes leave: those that still run, and their files in shared memory."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

SHARED = Path("/dev/shm")
MARK = "JVR1_TEST_MARK"


def marked() -> dict[str, str]:
    """An environment by which `running` finds a process, all that it starts, and nothing else."""
    return os.environ | {MARK: uuid.uuid4().hex}


def running(environment: dict[str, str]) -> dict[int, str]:
    """Process number -> command line of those with the mark that have not ended (a dead one's environment is empty)."""
    mark, found = f"{MARK}={environment[MARK]}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def in_use(processes: dict[int, str]) -> set[Path]:
    """Files of shared memory, by inode: `maps` shows a semaphore by a name it had before."""
    lines = [line for process in processes for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    inodes = {int(line.split()[4]) for line in lines if f" {SHARED}/" in line}
    return {Path(entry.path) for entry in os.scandir(SHARED) if entry.inode() in inodes}


def soon(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
