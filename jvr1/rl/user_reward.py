"""A user's own reward, 'module:function' in the config, run in a process of its own.

The one part of `rl/` with side effects. The function may raise, loop for ever (in C too), print, exit or crash: the
worker is killed and replaced, the cause counted, and the row scores a stated value. The worker imports this module
and the user's, not jax. A call costs one line each way over a pipe, about 50 microseconds.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

from jvr1.errors import UserError
from jvr1.lifeline import end_with_parent

_START_SECONDS = 120.0  # imports of the user's module included


def load_reward(spec: str) -> Callable[..., float]:
    """The function that 'module:function' names. Errors: UserError that says which part does not exist."""
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UserError(f"reward.user is {spec!r}, not of the form module:function, e.g. my_rewards:brevity")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except BaseException as error:
        raise UserError(f"reward.user {spec!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"reward.user {spec!r} is a {type(found).__name__}, not a function")
    return found


CAUSES = ("exception", "timeout", "value", "died")


class UserReward:
    """Calls `function(completion, gold, problem_type) -> float` (three strings) in the worker. Not thread-safe.

    A call that raises, takes more than `timeout` seconds, returns no finite number or ends the process scores
    `on_failure`. `failures` counts them by cause (`CAUSES`), `last_failure` says the latest.
    Use as a context manager, or `close()` it.
    """

    def __init__(self, spec: str, *, timeout: float = 2.0, on_failure: float = 0.0):
        self.spec, self.timeout, self.on_failure = spec, timeout, on_failure
        self.failures: collections.Counter[str] = collections.Counter()
        self.last_failure = ""
        self._reported: collections.Counter[str] = collections.Counter()
        self._worker: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._start()

    def __call__(self, completion: str, gold: str, problem_type: str) -> float:
        """The function's value, or `on_failure`; returns within about `timeout`, a restart aside."""
        try:
            if self._worker is None:
                self._start()
            reply = self._exchange(json.dumps([completion, gold, problem_type]), self.timeout)
        except TimeoutError:
            return self._fail("timeout", f"no value after {self.timeout} s")
        except (OSError, ValueError, UserError) as error:
            return self._fail("died", str(error))
        if "value" in reply:
            return reply["value"]
        self.failures[reply["cause"]] += 1
        self.last_failure = reply["error"]
        return self.on_failure

    def new_failures(self) -> dict[str, int]:
        """Failures since this was last asked, by every cause."""
        new = {cause: self.failures[cause] - self._reported[cause] for cause in CAUSES}
        self._reported = self.failures.copy()
        return new

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

    def _fail(self, cause: str, message: str) -> float:
        self.close()
        self.failures[cause] += 1
        self.last_failure = message
        return self.on_failure

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._worker is not None
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        return self._worker.stdin, self._worker.stdout

    def _start(self) -> None:
        # a plain interpreter: multiprocessing's spawn would import the run's main module, and jax with it
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        theirs, self._lifeline = os.pipe()
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "jvr1.rl.user_reward", self.spec, str(self.timeout), str(theirs)],
            pass_fds=(theirs,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._pipes()[0].fileno(), False)
        try:
            reply = self._exchange("", _START_SECONDS)
        except (OSError, ValueError) as error:
            self.close()
            raise UserError(f"reward.user {self.spec!r}: its process did not start ({error})") from error
        if "error" in reply:
            self.close()
            raise UserError(reply["error"])

    def _exchange(self, request: str, timeout: float) -> dict:
        """Sends a line (none if empty) and reads one. TimeoutError: too late; OSError: the worker ended."""
        send, reply = (request + "\n").encode() if request else b"", b""
        inlet, outlet = (pipe.fileno() for pipe in self._pipes())
        deadline = time.monotonic() + timeout
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(outlet, select.POLLIN)
            if send:
                poll.register(inlet, select.POLLOUT)
            ready = dict(poll.poll(max(left, 0.0) * 1000))
            if not ready:
                raise TimeoutError("no reply in time")
            if inlet in ready:
                send = send[os.write(inlet, send) :]
            if outlet in ready:
                chunk = os.read(outlet, 1 << 16)
                if not chunk:
                    raise OSError("the reward's process ended")
                reply += chunk
        return json.loads(reply)


# --- the worker's side ------------------------------------------------------------------------------------------------


def _evaluate(function: Callable[..., float], row: list[str]) -> dict:
    try:
        value = function(*row)
        number = float(value)
    except BaseException as error:
        return {"cause": "exception", "error": f"{type(error).__name__}: {error}"[:500]}
    if not math.isfinite(number):
        return {"cause": "value", "error": f"the reward returned {value!r}"[:500]}
    return {"value": number}


def _serve(spec: str, timeout: float, lifeline: int) -> None:
    """Answers lines until stdin ends. The function sees an empty stdin, and what it prints goes to stderr."""
    end_with_parent(lifeline, group=True)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)

    def send(reply: dict) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    try:
        function = load_reward(spec)
    except UserError as error:
        send({"error": str(error)})
        return
    send({})
    for line in requests:
        # should the run be killed where `end_with_parent` does nothing, nobody else ends a function that never returns
        signal.setitimer(signal.ITIMER_REAL, timeout + 10)
        reply = _evaluate(function, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(reply)


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
