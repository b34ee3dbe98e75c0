"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys


def end_with_parent(descriptor: int, *, group: bool = False) -> None:
    """Has the kernel kill this process (`group`: its whole process group) when the last writer of a pipe is gone.

    The writer is who started this process, and never writes. PR_SET_PDEATHSIG would follow the thread that
    started this process, and grain's threads come and go; a thread here would wait for native code that holds the
    interpreter. Linux only, elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(0):  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)
