"""A function run in a helper process that is killed and replaced when it takes too long or crashes.

Decoders run native code on files from everywhere: what loops there cannot be interrupted from within its process.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from jvr1.data.memory import MEGABYTE, Bound, exceeded
from jvr1.errors import MediaError, UserError
from jvr1.lifeline import end_with_parent

START_TIMEOUT = 120.0
"""Seconds a helper may take to import what it needs."""

RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(4 * MEGABYTE), "MALLOC_TRIM_THRESHOLD_": str(32 * MEGABYTE)}
"""glibc: what frames took goes back to the system when they are gone, and does not count against the next medium."""


class Sandbox:
    """Calls `function` in a process of its own.

    function: picklable by reference (importable), or an instance of such a class; what it imports is what the
    helper loads. timeout: seconds a call may take. memory_mb: megabytes a call may take beside what the helper holds
    when it begins (None: no bound). Arguments and results travel by pickle, arrays out of band.
    The helper starts at the first call and serves until it fails, is closed or is collected. One call at a time:
    threads that share a Sandbox wait for each other. A copy made by pickling or forking starts a helper of its own.
    """

    def __init__(self, function: Callable[..., Any], timeout: float | int, memory_mb: int | None = None) -> None:
        if timeout <= 0:
            raise UserError(f"the time limit of a read must be above 0 s, got {timeout}")
        if memory_mb is not None and memory_mb < 1:
            raise UserError(f"the memory of a read must be at least 1 MB, got {memory_mb}")
        self.function, self.timeout, self.memory_mb = function, timeout, memory_mb
        self._forget()

    def __call__(self, *arguments: Any) -> Any:
        """The function's result. Raises MediaError "timeout", "crashed" or
        "too-large" (more than memory_mb), and MediaError and UserError of the function
        itself; any other exception of the function comes as RuntimeError with the helper's traceback."""
        with self._lock_of_this_process():
            if self._process is None or self._process.poll() is not None:
                self._kill()
                self._start()
            try:
                self._connection.send(arguments)
                status, value = self._receive(self.timeout)
            except TimeoutError:
                self._kill()
                raise MediaError("timeout", f"no result after {self.timeout:g} s") from None
            except (EOFError, OSError):
                code = self._kill()
                raise MediaError("crashed", f"the decoder's process ended with code {code}") from None
        if status == "raised":
            raise value
        if status == "failed":
            raise RuntimeError(f"in the helper process:\n{value}")
        return value

    def close(self) -> None:
        """Ends the helper; a later call starts another."""
        with self._lock_of_this_process():
            self._kill()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            self._kill()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sandbox, (self.function, self.timeout, self.memory_mb)

    def _forget(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def _lock_of_this_process(self) -> threading.Lock:
        if self._owner != os.getpid():  # forked: the helper answers to the parent
            self._forget()
        return self._lock

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        code = f"from jvr1.data.sandbox import serve; serve({theirs.fileno()}, {self.timeout}, {self.memory_mb})"
        environment = {**os.environ, **RETURNING, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=(theirs.fileno(),),
            env=environment,
            stdin=subprocess.PIPE,  # nothing is written: it closes when this process ends
            stderr=subprocess.DEVNULL,  # libav writes there about every odd file
        )
        theirs.close()
        self._connection = ours
        try:
            ours.send(self.function)
            status, value = self._receive(START_TIMEOUT)
        except (EOFError, OSError) as error:
            status, value = "failed", f"{type(error).__name__} {error}, exit code {self._kill()}"
        if status == "failed":
            self._kill()
            raise RuntimeError(f"the helper process for {self.function} did not start: {value}")

    def _receive(self, timeout: float | int) -> tuple[str, Any]:
        if not self._connection.poll(timeout):
            raise TimeoutError
        status, last, body, sizes = self._connection.recv()
        buffers = [bytearray(size) for size in sizes]
        for buffer in buffers:
            self._connection.recv_bytes_into(buffer)
        if last:
            self._kill()
        return status, pickle.loads(body, buffers=buffers)

    def _kill(self) -> int | None:
        """Ends the helper and gives its exit code (None: none ran, or not even SIGKILL ends a wait for a disk)."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        self._connection.close()
        process.kill()
        process.stdin.close()
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None


def serve(descriptor: int, timeout: float | int, memory_mb: int | None) -> None:
    """The helper's loop: the function, then calls, until the other end is closed or stdin is."""
    end_with_parent(sys.stdin.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, it is the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        function = connection.recv()
    except Exception:
        _reply(connection, "failed", traceback.format_exc())
        return
    _reply(connection, "ready", None)
    bound = Bound(memory_mb)
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        # where `end_with_parent` does nothing: ends this process in native code if the parent, which should kill it,
        # is gone
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 5)
        try:
            with bound.held():
                status, value = "done", function(*arguments)
        except (MediaError, UserError) as error:
            status, value = "raised", error
        except MemoryError:
            status, value = "raised", exceeded(None, memory_mb)
        except Exception:
            status, value = "failed", traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(connection, status, value, last=bound.spent())


def _reply(connection: Connection, status: str, value: Any, *, last: bool = False) -> None:
    """last: this process is to be replaced."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    connection.send((status, last, body, [view.nbytes for view in raw]))
    for view in raw:
        connection.send_bytes(view)
