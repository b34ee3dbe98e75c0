"""A user's own reward, 'module:function' in the config, run in a process of its own (`rl.reward_worker`).

The one part of `rl/` with side effects. The function may raise, loop for ever (in C too), print, exit or crash: what
hung is killed and replaced, and its row has a failure instead of a value. The worker imports the user's module, not
jax.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from jvr1.errors import UserError
from jvr1.rl.reward_rows import RewardRow, failure, row_to_json

_START_SECONDS = 120.0  # imports of the user's module included
_IDLE_SECONDS = 10.0  # that a worker with nothing begun may be silent


@dataclass(frozen=True)
class Outcome:
    """What a reward gave a row: values by name (None: no opinion), or the cause (`reward_rows.CAUSES`) and message of
    its failure."""

    values: Mapping[str, float | None] = field(default_factory=dict)
    cause: str = ""
    error: str = ""


@dataclass
class _Round:
    """A line of calls under way: when each began, what those that ended gave, and why the rest will not."""

    count: int
    quiet: float = field(default_factory=time.monotonic)
    began: dict[int, float] = field(default_factory=dict)
    ended: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.ended) == self.count

    def note(self, line: bytes) -> None:
        reply = json.loads(line)
        if "begun" in reply:
            self.began[reply["begun"]] = time.monotonic()
        else:
            self.ended[reply["call"]] = reply["rows"]
        self.quiet = time.monotonic()

    def deadline(self, limit: float | int) -> float:
        begun = [at for i, at in self.began.items() if i not in self.ended]
        return min(begun) + limit if begun else self.quiet + _IDLE_SECONDS


class UserReward:
    """Calls the function of `spec` for rows, up to `concurrency` at a time, each call for at most `timeout` seconds.

    Not thread-safe. Use as a context manager, or `close()` it. Errors: UserError where it cannot be loaded.
    """

    def __init__(self, spec: str, *, timeout: float | int = 2.0, concurrency: int = 32):
        self.spec, self.timeout, self.concurrency = spec, timeout, concurrency
        self._worker: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._whole, self._grace = False, 0.0
        self._start()

    def __call__(self, rows: Sequence[RewardRow]) -> list[Outcome]:
        """One a row, in their order. Never raises for what the function does."""
        sent = [row_to_json(row) for row in rows]
        calls = [[*range(len(rows))]] if self._whole and rows else [[i] for i in range(len(rows))]
        found: list[Any] = [None] * len(rows)
        while calls:
            fresh = self._worker is None
            made = self._round([[sent[i] for i in call] for call in calls])
            if made.why and not made.began and not fresh:
                continue  # it had ended while it had nothing to do
            if made.why and not made.began:
                made.began = dict.fromkeys(range(len(calls)), 0.0)
            for at in made.began:
                for i, one in zip(calls[at], made.ended.get(at) or [made.why] * len(calls[at]), strict=True):
                    found[i] = one
            calls = [call for at, call in enumerate(calls) if at not in made.began]
        return [Outcome(**one) for one in found]

    def close(self) -> None:
        """Ends the worker and whatever it started in its process group."""
        if self._worker is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        self._worker.wait()
        os.close(self._lifeline)
        for pipe in self._pipes():
            pipe.close()
        self._worker = None

    def __enter__(self) -> UserReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _round(self, calls: list[list[dict]]) -> _Round:
        """Has calls answered until all are, or the worker had to be ended: then `why` says for those that had begun."""
        made = _Round(len(calls))
        try:
            if self._worker is None:
                self._start()
            limit, made.quiet = self.timeout + self._grace, time.monotonic()
            for line in self._lines(json.dumps(calls), lambda: made.deadline(limit)):
                made.note(line)
                if made.done:
                    return made
        except TimeoutError:
            made.why = failure("timeout", f"no value after {self.timeout:g} s")
        except (OSError, ValueError, UserError) as error:
            made.why = failure("died", str(error))
        self.close()
        return made

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._worker is not None
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        return self._worker.stdin, self._worker.stdout

    def _start(self) -> None:
        # a plain interpreter: multiprocessing's spawn would import the run's main module, and jax with it
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        theirs, self._lifeline = os.pipe()
        told = [self.spec, str(self.timeout), str(self.concurrency), str(theirs)]
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "jvr1.rl.reward_worker", *told],
            pass_fds=(theirs,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._pipes()[0].fileno(), False)
        deadline = time.monotonic() + _START_SECONDS
        try:
            reply = json.loads(next(self._lines("", lambda: deadline)))
        except (OSError, ValueError) as error:
            self.close()
            raise UserError(f"reward.user {self.spec!r}: its process did not start ({error})") from error
        if "error" in reply:
            self.close()
            raise UserError(reply["error"])
        self._whole, self._grace = reply["whole"], reply["grace"]

    def _lines(self, request: str, deadline: Any) -> Iterator[bytes]:
        """Sends a line (none if empty) and gives what comes back, line by line. TimeoutError: none by `deadline()`;
        OSError: the worker ended."""
        send, said = (request + "\n").encode() if request else b"", b""
        inlet, outlet = (pipe.fileno() for pipe in self._pipes())
        while True:
            poll = select.poll()
            poll.register(outlet, select.POLLIN)
            if send:
                poll.register(inlet, select.POLLOUT)
            ready = dict(poll.poll(max(deadline() - time.monotonic(), 0.0) * 1000))
            if not ready:
                raise TimeoutError("no reply in time")
            if inlet in ready:
                send = send[os.write(inlet, send) :]
            if outlet in ready:
                chunk = os.read(outlet, 1 << 16)
                if not chunk:
                    raise OSError("the reward's process ended")
                *lines, said = (said + chunk).split(b"\n")
                yield from lines
