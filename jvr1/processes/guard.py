"""What a long run must not do: hang, end without a word, or exit with a code that says nothing."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from jvr1.errors import SAFE, SaveError, UserError, chain, run_main, storage_fault
from jvr1.processes.ends import LEAVE_SECONDS, Watch, joining, leave_in_order, on_abort, tell_end, told_end
from jvr1.processes.notice import at_notice
from jvr1.processes.peers import Peers, agree, connect, number, processes

RESTART = 75
"""Exit code (EX_TEMPFAIL of sysexits.h): start the command again, on all hosts. launch/retry.sh does."""
STOPPED = "JVR1_EXIT_ON_PREEMPTION"
"""Environment variable with the exit code of a run that was told to stop and saved; 0 without it."""

LOST_SECONDS = 5
"""How long process 0 stays for the others where one is gone."""

_AGAIN = "What was saved is whole: start all processes again"
_leaving: int | None = None
"""The code this process is about to end with."""

_RELEASES: list[Callable[[], Any]] = []

_LOST = ("gloo", "heartbeat", "connection closed by peer", "connection reset by peer", "coordination service",
         "unavailable:", "deadline_exceeded", "socket closed", "nccl")  # fmt: skip


@runtime_checkable
class CommandLine(Protocol):
    """What a command line says, the run's processes among it."""

    @property
    def peers(self) -> Peers: ...

    @property
    def told(self) -> Mapping[str, Any]:
        """What must be the same in all processes: names and JSON values."""


C = TypeVar("C", bound=CommandLine)


def run_distributed(main: Callable[[C], int], parse: Callable[[], C]) -> None:
    """Reads the command line, joins the processes, runs a `main` and exits, also where another process fails.

    Codes: 0 done, 2 a mistake or out of memory, RESTART a lost peer or a step over its limit. A process that ends by a
    fault tells the others, which end with the same code (RESTART after a crash) within seconds, wherever they are.
    """

    def guarded() -> int:
        command = parse()
        with at_notice(_told_to_stop):
            _join(command)
            try:
                with explaining():
                    return main(command)
            finally:
                _release()

    try:
        run_main(guarded)
    except SystemExit as end:
        unsaved = any(isinstance(error, SaveError) for error in chain(end))
        if end.code and (processes() > 1 or unsaved):  # orbax waits minutes for what will not be written
            if end.__context__ is not None:  # a fault, not a run that was told to stop
                tell_end(int(end.code), str(end.__context__))
            leave(int(end.code))
        raise
    except LostPeerError as error:
        with contextlib.suppress(Exception):  # process 0 may be gone
            if (told := told_end()) is not None:
                _follow(*told)
        print(f"error: {error}", file=sys.stderr)
        tell_end(RESTART, str(error))
        leave(RESTART, LOST_SECONDS)
    except Exception as error:
        if processes() == 1:
            raise
        traceback.print_exc()
        tell_end(RESTART, f"{type(error).__name__}: {_first_line(str(error))}")
        leave(1)


def _join(command: CommandLine) -> None:
    """Joins the other processes of a run, looks after them from now on, and compares with them what each was told."""

    def lost(why: str) -> None:
        print(f"error: process {number()} of {processes()} ends: {why}. {_AGAIN}", file=sys.stderr)
        tell_end(RESTART, why)
        leave(RESTART, LOST_SECONDS)

    def never_came(why: str) -> None:
        print(f"error: {why}", file=sys.stderr)
        leave(RESTART)

    on_abort(_aborted)
    with joining(command.peers.limit, never_came):
        connect(command.peers)
    if processes() > 1:
        Watch(_follow, lost, command.peers.limit).start()
        agree("start", {**command.told, "code of jvr1": version()})


def _told_to_stop() -> None:
    """SIGTERM where nothing is to be saved: before the first step, or where each answer is journalled."""
    code = stop_code(128 + signal.SIGTERM)
    print("told to stop: ends here; the same command goes on from what was saved", file=sys.stderr)
    tell_end(code, "it was told to stop")
    leave(code)


def _aborted() -> None:
    """Native code aborts this process."""
    if processes() == 1:
        return
    if _leaving is None:
        print(
            f"error: process {number()} of {processes()} is aborted, see the lines above: process 0 may be gone. "
            f"{_AGAIN}",
            file=sys.stderr,
            flush=True,
        )
    os._exit(RESTART if _leaving is None else _leaving)


def _follow(process: int, code: int, why: str) -> NoReturn:
    """Ends as another process did."""
    print(f"error: process {number()} of {processes()} ends: process {process} did ({why})", file=sys.stderr)
    leave(code)


def at_end(release: Callable[[], Any]) -> None:
    """Has `release` called wherever the process ends by itself, if only for some seconds."""
    if release not in _RELEASES:
        _RELEASES.append(release)


def _release() -> None:
    for release in _RELEASES:
        release()


def end_all_with(error: UserError) -> NoReturn:
    """Ends all processes with 2 and a mistake that this one met in any thread, where the main one would wait."""
    print(f"error: {error}", file=sys.stderr)
    tell_end(2, str(error))
    leave(2)


def version() -> str:
    """Of the code: a hash of the package's files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def explaining() -> Iterator[None]:
    """Errors of the runtime become what `explain` says of them."""
    try:
        yield
    except Exception as error:
        if (said := explain(error)) is None:
            raise
        raise said from error


class LostPeerError(RuntimeError):
    """Another process of the run is gone."""


def explain(error: BaseException) -> Exception | None:
    """What a user can do about an error of the runtime; None: nothing is known of it."""
    texts = [str(e) for e in chain(error)]
    lost = next((t for t in texts if any(word in t.lower() for word in _LOST)), None)
    if lost is not None and processes() > 1:
        return LostPeerError(
            f"process {number()} of {processes()} lost a peer ({_first_line(lost)}); see its log. {_AGAIN}"
        )
    if isinstance(error, UserError):
        return None  # what is wrong is said
    storage = storage_fault(error)
    if storage is not None:
        return UserError(f"{storage}; {SAFE}")
    full = next((t for t in texts if "RESOURCE_EXHAUSTED" in t), None)
    if full is not None:
        return UserError(
            f"out of memory on the device ({_first_line(full)}); jvr1 plan shows what takes it in training; "
            "change batch.micro, model.remat, mesh.fsdp, model.reference, or in evaluation --batch, --mesh tensor=N"
        )
    return None


def _first_line(text: str) -> str:
    return next((line for line in text.strip().splitlines() if line), "")[:300]


def leave(code: int, limit: float = LEAVE_SECONDS) -> NoReturn:
    """Exits without what Python does at exit: JAX would wait there for peers that may be gone. Process 0 stays until
    the others have left, `limit` seconds at most."""
    global _leaving
    _leaving = code
    releasing = threading.Thread(target=_release, daemon=True)
    releasing.start()
    releasing.join(5)  # a file system that hangs does not keep the process
    sys.stdout.flush()
    sys.stderr.flush()
    leave_in_order(limit)
    os._exit(code)


def stop_code(without: int = 0) -> int:
    """Exit code of a run that was told to stop; `without`: where the environment names none. 0 means that it saved."""
    return int(os.environ.get(STOPPED, without))


class Watchdog:
    """Ends the process with RESTART, all stacks on stderr, when nobody calls `beat` for `limit` seconds; 0: never.

    A collective that waits for a process that will not come cannot be interrupted in any other way.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self._last = time.monotonic()
        self._doing = "start"

    def beat(self, doing: str) -> None:
        """`doing`: what comes now, for the message."""
        self._last, self._doing = time.monotonic(), doing

    @contextmanager
    def watching(self) -> Iterator[None]:
        if not self.limit:
            yield
            return
        done = threading.Event()
        self.beat(self._doing)
        threading.Thread(target=self._watch, args=(done,), daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(min(self.limit / 4, 5.0)):
            silent = time.monotonic() - self._last
            if silent > self.limit:
                faulthandler.dump_traceback(all_threads=True)
                print(
                    f"error: process {number()}: {self._doing} has taken {silent:.0f} s, over "
                    f"train.step_limit={self.limit:g}; the stacks are above. What was saved is whole: start again",
                    file=sys.stderr,
                )
                tell_end(RESTART, f"{self._doing} took over train.step_limit={self.limit:g} s")
                leave(RESTART, LOST_SECONDS)
