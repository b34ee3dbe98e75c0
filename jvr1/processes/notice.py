"""A notice (SIGTERM) at moments when the main thread may wait in native code, where Python's handlers do not run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def at_notice(leave: Callable[[], Any]) -> Iterator[None]:
    """While inside, SIGTERM makes a thread call leave(), which ends the process; not where another handler is put in
    place of this one's, as a training loop does. For the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while caught := os.read(reading, 1):
            if caught[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is nothing:
                leave()

    def nothing(number: int, frame: Any) -> None:
        """The thread acts, by what Python writes into the pipe from within the signal."""

    def undo_in_child() -> None:
        # a fork's signals would be written into this process's pipe
        if signal.getsignal(signal.SIGTERM) is nothing:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, nothing)
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=undo_in_child)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        os.close(writing)
        thread.join()
        os.close(reading)
