"""The process in which a user's reward runs: python -m jvr1.rl.reward_worker SPEC TIMEOUT CONCURRENCY LIFELINE

It imports the user's module once. A line on stdin holds calls, each a list of rows; on stdout come a line when a call
begins and one when it ends. Coroutines share an event loop here; plain functions of one row are called in forks of
this process, so that one that hangs or crashes costs only its own row; what takes all rows at once, and anything with
a concurrency of 1, is called here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from jvr1.errors import UserError
from jvr1.lifeline import end_with_parent
from jvr1.rl.reward_rows import RewardForm, failure, reward_form, row_from_json

Send = Callable[[dict[str, Any]], None]


def load_reward(spec: str) -> Callable[..., Any]:
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


def main(spec: str, timeout: float, concurrency: int, lifeline: int) -> None:
    """Answers lines until stdin ends. The function sees an empty stdin, and what it prints goes to stderr."""
    end_with_parent(lifeline, group=True)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    try:
        form = reward_form(load_reward(spec), spec)
    except UserError as error:
        send({"error": str(error)})
        return
    forks = concurrency > 1 and not form.whole and not form.waits
    send({"whole": form.whole, "grace": 5.0 if forks else 0.5 if form.waits else 0.0})
    if form.waits:
        _serve_waiting(form, timeout, concurrency, requests, send)
    elif forks:
        _Forks(form, timeout, concurrency, (requests.fileno(), replies.fileno())).serve(requests, send)
    else:
        for line in requests:
            for i, rows in enumerate(json.loads(line)):
                send({"begun": i})
                send({"call": i, "rows": _outcomes(form, rows, timeout)})


def _outcomes(form: RewardForm, rows: list[dict], timeout: float) -> list[dict[str, Any]]:
    # should the run be killed where `end_with_parent` does nothing, nobody else ends a function that never returns
    signal.setitimer(signal.ITIMER_REAL, timeout + 10)
    try:
        return form.read(form.call([row_from_json(row) for row in rows]), len(rows))
    except BaseException as error:
        return _raised(error, len(rows))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raised(error: BaseException, count: int) -> list[dict[str, Any]]:
    try:
        said = f"{type(error).__name__}: {error}"
    except BaseException:  # of a user's own, its text may raise too
        said = type(error).__name__
    return [failure("exception", said)] * count


# --- coroutines -------------------------------------------------------------------------------------------------------


def _serve_waiting(form: RewardForm, timeout: float, concurrency: int, requests: IO[bytes], send: Send) -> None:
    loop = asyncio.new_event_loop()  # one for all calls: a client that the module keeps belongs to its loop
    asyncio.set_event_loop(loop)
    gate = asyncio.Semaphore(concurrency)

    async def one(i: int, rows: list[dict]) -> None:
        async with gate:
            send({"begun": i})
            try:
                async with asyncio.timeout(timeout) as limit:
                    given = await form.call([row_from_json(row) for row in rows])
                found = form.read(given, len(rows))
            except BaseException as error:
                late = isinstance(error, TimeoutError) and limit.expired()
                found = [failure("timeout", _late(timeout))] * len(rows) if late else _raised(error, len(rows))
            send({"call": i, "rows": found})

    async def every(calls: list) -> None:
        await asyncio.gather(*(one(i, rows) for i, rows in enumerate(calls)))

    for line in requests:
        loop.run_until_complete(every(json.loads(line)))


def _late(timeout: float) -> str:
    return f"no value after {timeout:g} s"


# --- forks ------------------------------------------------------------------------------------------------------------


@dataclass
class _Fork:
    """A copy of this process that answers one call at a time. alive: a pipe whose end it does not survive."""

    pid: int
    requests: int
    replies: int
    alive: int
    call: int = -1
    began: float = 0.0
    said: bytes = b""

    def end(self) -> int:
        """Kills it and what it started; its exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for descriptor in (self.requests, self.replies, self.alive):
            os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@dataclass
class _Forks:
    form: RewardForm
    timeout: float
    most: int
    own: tuple[int, ...]
    idle: list[_Fork] = field(default_factory=list)
    busy: dict[int, _Fork] = field(default_factory=dict)

    def serve(self, requests: IO[bytes], send: Send) -> None:
        for line in requests:
            waiting = deque(enumerate(json.loads(line)))
            while waiting or self.busy:
                while waiting and len(self.busy) < self.most:
                    i, rows = waiting.popleft()
                    self._begin(i, rows)
                    send({"begun": i})
                for i, found in self._ended():
                    send({"call": i, "rows": [found]})

    def _begin(self, i: int, rows: list[dict]) -> None:
        line = json.dumps(rows).encode() + b"\n"
        while True:
            fork = self.idle.pop() if self.idle else self._fork()
            try:
                _write(fork.requests, line)
            except BrokenPipeError:  # one that ended after its last answer
                fork.end()
                continue
            fork.call, fork.began, fork.said = i, time.monotonic(), b""
            self.busy[fork.replies] = fork
            return

    def _ended(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Waits for the next answer, end or time limit."""
        poll, now = select.poll(), time.monotonic()
        for descriptor in self.busy:
            poll.register(descriptor, select.POLLIN)
        left = min(fork.began for fork in self.busy.values()) + self.timeout - now
        for descriptor, _ in poll.poll(max(left, 0.0) * 1000 + 1):
            fork, chunk = self.busy[descriptor], os.read(descriptor, 1 << 16)
            fork.said += chunk
            if fork.said.endswith(b"\n"):
                self.idle.append(self.busy.pop(descriptor))
                yield fork.call, json.loads(fork.said)[0]
            elif not chunk:
                code = self.busy.pop(descriptor).end()
                how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                yield fork.call, failure("died", f"the reward's process ended {how}")
        now = time.monotonic()
        for descriptor in [d for d, fork in self.busy.items() if now - fork.began >= self.timeout]:
            fork = self.busy.pop(descriptor)
            fork.end()
            yield fork.call, failure("timeout", _late(self.timeout))

    def _fork(self) -> _Fork:
        (theirs_in, requests), (replies, theirs_out), (theirs_alive, alive) = os.pipe(), os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                others = [d for f in (*self.idle, *self.busy.values()) for d in (f.requests, f.replies, f.alive)]
                for descriptor in (*others, *self.own, requests, replies, alive):
                    os.close(descriptor)
                end_with_parent(theirs_alive, group=True)
                for line in os.fdopen(theirs_in, "rb"):
                    found = _outcomes(self.form, json.loads(line), self.timeout)
                    _write(theirs_out, json.dumps(found).encode() + b"\n")
            finally:
                os._exit(0)
        for descriptor in (theirs_in, theirs_out, theirs_alive):
            os.close(descriptor)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # here too: it may be killed before it has done so itself
        return _Fork(pid, requests, replies, alive)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
