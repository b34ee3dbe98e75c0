"""One run at a time in a workdir: who holds it says so in a file there, and that it lives by changing it.

No lock of the operating system: shared file systems and buckets have none that all hosts see. Clocks are not compared,
as those of hosts differ: a holder on another host lives when its file changes while one looks on.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath

from jvr1.data.cache import is_remote
from jvr1.errors import UserError
from jvr1.opening.staging import write_file
from jvr1.processes.guard import at_end
from jvr1.processes.peers import gather

HOLDER_FILE = "holder.json"
BEAT_SECONDS = 10.0
"""How often a holder changes its file."""
SILENT_SECONDS = 45.0
"""How long a file must stay as it is before its holder counts as dead, where its process cannot be looked at."""
SETTLE_SECONDS = 1.0
"""How long a bucket or a shared file system may take to show another's claim of the same moment."""


@dataclass(frozen=True)
class Claim:
    """What the file says. machine: host name, boot and process namespace, within which a process number means one
    process; born: when that process started, in the kernel's ticks, for numbers come again."""

    id: str
    host: str
    machine: str
    pid: int
    born: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Holder:
    """A held workdir. `lost`: why it is no longer held, or None: another run took it while this process stood still."""

    def __init__(self, folder: epath.Path, claim: Claim, fresh: bool):
        self.folder, self.claim = folder, claim
        self.lost: str | None = None
        self._fresh = fresh
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        beat = 0
        while not self._done.wait(BEAT_SECONDS):
            beat += 1
            found = read_holder(self.folder)
            if found is not None and found.id != self.claim.id:
                self.lost = f"{found} took over the workdir {self.folder}, as this one had been silent; this run ends"
                return
            try:
                _write(self.folder, Claim(**asdict(self.claim) | {"beat": beat}))
            except OSError:
                continue  # a full disk, a network away: the run itself will say so

    def release(self) -> None:
        """Leaves the workdir to others; one that was made for the run and has nothing in it goes too."""
        self._done.set()
        self._thread.join()
        try:
            if self.lost is None:
                (self.folder / HOLDER_FILE).unlink(missing_ok=True)
                if self._fresh and not is_remote(str(self.folder)) and not any(self.folder.iterdir()):
                    self.folder.rmdir()
        except OSError:
            pass  # whoever comes next finds a dead holder
        _HELD.pop(str(self.folder), None)


_HELD: dict[str, Holder] = {}
"""Of this process."""


def hold(workdir: epath.Path) -> None:
    """Takes a workdir for this run until `release_all`. All processes call it; process 0 holds it for them.

    Raises UserError on all when another run holds it and lives. A holder that died is followed at once on the same
    machine, else when its file did not change for SILENT_SECONDS.
    """
    problem = None
    if jax.process_index() == 0:
        try:
            _take(workdir)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"workdir {workdir} cannot be written: {error.strerror or error}"
    problem = gather(problem)[0]
    if problem is not None:
        raise UserError(problem)


def lost(workdir: epath.Path) -> str | None:
    """Why this run no longer holds its workdir; None: it does."""
    holder = _HELD.get(str(workdir))
    return None if holder is None else holder.lost


def release_all() -> None:
    """Leaves what this process holds; to be called however a run ends."""
    for holder in list(_HELD.values()):
        holder.release()


def _take(workdir: epath.Path) -> None:
    if str(workdir) in _HELD:
        return
    fresh = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    mine = Claim(uuid.uuid4().hex, platform.node(), _machine(), os.getpid(), _born(os.getpid()) or "", 0)
    there, found = read_holder(workdir), (workdir / HOLDER_FILE).exists()
    if found:
        if _lives(workdir, there):
            there = there or read_holder(workdir)
            raise UserError(f"{workdir} is held by another run, {there}; wait for its end, or use another workdir")
        print(f"{there or 'another run'} held {workdir} and is gone: taken over", file=sys.stderr)
        _write(workdir, mine)
    elif is_remote(str(workdir)):
        _write(workdir, mine)
    else:
        _create(workdir, mine)
    if is_remote(str(workdir)) or found:
        time.sleep(SETTLE_SECONDS)
    now = read_holder(workdir)
    if now is None or now.id != mine.id:
        raise UserError(f"{workdir} was taken by another run at the same moment, {now}; use another workdir")
    atexit.register(release_all)
    at_end(release_all)
    _HELD[str(workdir)] = Holder(workdir, mine, fresh)


def _create(workdir: epath.Path, claim: Claim) -> None:
    """Writes the file where there is none; who comes second in the same moment finds the other's."""
    staged = workdir / f".{HOLDER_FILE}.{claim.id}"
    staged.write_text(json.dumps(asdict(claim)))
    try:
        os.link(staged, workdir / HOLDER_FILE)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(staged, workdir / HOLDER_FILE)
        time.sleep(SETTLE_SECONDS)
    finally:
        staged.unlink(missing_ok=True)


def _write(workdir: epath.Path, claim: Claim) -> None:
    write_file(workdir / HOLDER_FILE, json.dumps(asdict(claim)).encode())


def read_holder(workdir: epath.Path) -> Claim | None:
    """Who holds a workdir; None: nobody, or the file is damaged: a holder that lives will write it again."""
    try:
        return Claim(**json.loads((workdir / HOLDER_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _lives(workdir: epath.Path, claim: Claim | None) -> bool:
    """Whether who wrote a claim (None: one that cannot be read) still runs."""
    if claim is not None and claim.machine == _machine():
        return _born(claim.pid) == claim.born
    print(
        f"{workdir} is held by {claim or 'a run'}: watching up to {SILENT_SECONDS:g} s for a sign of life",
        file=sys.stderr,
    )
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT_SECONDS / 4))
        if read_holder(workdir) != claim:
            return (workdir / HOLDER_FILE).exists()
    return False


def _machine() -> str:
    """Where a process number means one process: this boot of this host, and there one namespace of processes."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When a process started, in ticks since boot; None: there is no such process, or it has ended and was not waited
    for."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else str(fields[19])
