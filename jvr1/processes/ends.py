"""How the processes of a run end together: told by the first that fails, by silence, or by an abort of native code."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jvr1.processes.peers import number, processes, store, where

LEAVE_SECONDS = 30
"""How long process 0 stays for the others to leave first: their native code aborts when it ends before them."""
TELL_SECONDS = 2.0
"""How long a word to the others may take."""
GRACE_SECONDS = 2.0
"""How long a process that hears of another's end may take to end by itself."""
HEAR_SECONDS = 0.5
"""Between two looks for another's end, at most."""
FIRST_SAID, THEN_SAID = 10.0, 30.0
"""After how many seconds a process says whom it waits for at the start, and how often then."""

_JOINED = threading.Event()
"""Set where there are others and the store can be used: before, its client aborts."""


def tell_end(code: int, why: str) -> None:
    """Tells the others that this process ends by a fault; the first one's word stands."""
    if _JOINED.is_set():
        # somebody may have been faster: its word stands
        _within(TELL_SECONDS, lambda: store().key_value_set("jvr1/end", json.dumps([number(), code, why])))


def _within(seconds: float, call: Callable[[], Any]) -> None:
    """Calls it, and waits no longer than that: calls to the store of a silent process 0 do not end."""

    def quietly() -> None:
        with contextlib.suppress(Exception):  # process 0 may be gone
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


def told_end() -> tuple[int, int, str] | None:
    """Process, code and reason of another's end, if one told. Raises RuntimeError where process 0 is gone."""
    try:
        process, code, why = json.loads(store().key_value_try_get("jvr1/end"))
    except RuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
    return None if process == number() else (process, code, why)


def leave_in_order(limit: float = LEAVE_SECONDS) -> None:
    """Process 0 returns when the others have called this too, or after `limit` seconds."""
    if not _JOINED.is_set():
        return
    keys = store()
    if number():
        _within(min(limit, TELL_SECONDS), lambda: keys.key_value_set(f"jvr1/left/{number()}", ""))
        return
    until = time.monotonic() + limit
    with contextlib.suppress(Exception):  # one that is gone never calls
        for other in range(1, processes()):
            left = max(until - time.monotonic(), 0.001)
            keys.blocking_key_value_get(f"jvr1/left/{other}", int(left * 1000) or 1)
        time.sleep(0.2)  # between their word and their end


@contextmanager
def joining(limit: float, give_up: Callable[[str], Any]) -> Iterator[None]:
    """While inside, where native code waits for the other processes: says so now and then, and after `limit` seconds
    calls give_up(why) in a thread."""
    joined = threading.Event()

    def wait() -> None:
        begun = time.monotonic()
        pause = min(FIRST_SAID, limit / 2)
        while not joined.wait(min(pause, max(begun + limit - time.monotonic(), 0.1))):
            waited, pause = time.monotonic() - begun, THEN_SAID
            if processes() == 1:
                continue
            others = f"process {1 - number()}" if processes() == 2 else f"the other {processes() - 1}"
            line = f"process {number()} of {processes()} waits for {others} at {where()}, {waited:.0f} s now"
            if waited >= limit:
                give_up(f"{line}; not longer than --peer_limit. Is each started, with a --process of its own?")
                return
            print(line, file=sys.stderr, flush=True)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
        if processes() > 1:
            _JOINED.set()
    finally:
        joined.set()


class Watch:
    """Looks after the other processes, in threads: the main one may wait in a collective that nothing interrupts.

    follow(process, code, why): another has told of its end, and this one is still here GRACE_SECONDS later.
    lost(why): another has been silent for `limit` seconds; process 0 hears all, the others process 0.
    """

    def __init__(self, follow: Callable[[int, int, str], Any], lost: Callable[[str], Any], limit: float):
        self._follow, self._lost, self._limit = follow, lost, limit
        self._every = min(HEAR_SECONDS, limit / 20)  # a beat each fourth time: several within the limit
        self._heard: dict[int, float] = {}
        self._beats: dict[str, str] = {}

    def start(self) -> None:
        if processes() == 1:
            return
        whom = range(1, processes()) if number() == 0 else (0,)
        self._heard = dict.fromkeys(whom, time.monotonic())
        for work in (self._listen, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        turn, told = 0, None
        while told is None:
            time.sleep(self._every)
            try:
                told = told_end()
                if turn % 4 == 0:
                    self._beat(turn)
                turn += 1
            except RuntimeError:
                continue  # process 0 is gone, or slow to answer
            except AttributeError:
                return  # this process is leaving: JAX's client is gone already
        time.sleep(GRACE_SECONDS)
        self._follow(*told)

    def _beat(self, turn: int) -> None:
        store().key_value_set(f"jvr1/beat/{number()}", str(turn), allow_overwrite=True)
        if number():
            self._heard[0] = time.monotonic()  # it answered
            return
        beats = dict(store().key_value_dir_get("jvr1/beat/"))
        for process in self._heard:
            key = f"jvr1/beat/{process}"
            if beats.get(key) != self._beats.get(key):
                self._heard[process] = time.monotonic()
        self._beats = beats

    def _judge(self) -> None:
        pause = self._limit / 20
        while True:
            before = time.monotonic()
            time.sleep(pause)
            now = time.monotonic()
            if now - before > pause + self._limit / 4:  # this process itself was stopped
                self._heard = dict.fromkeys(self._heard, now)
            process, last = min(self._heard.items(), key=lambda item: item[1])
            if now - last > self._limit:
                self._lost(f"process {process} has been silent for {now - last:.0f} s, over --peer_limit")
                return


_HANDLERS: list[Any] = []  # C holds their addresses


def on_abort(act: Callable[[], Any]) -> None:
    """Calls `act` before native code aborts this process, as the client of the run's store does from a thread of its
    own when process 0 is gone; where it returns, the process is aborted."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: act())
    _HANDLERS.append(handler)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    install(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
