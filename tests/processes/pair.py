"""A process of a run that does next to nothing, by what it is told: python pair.py PROCESS COORDINATOR DEED [VALUE]

Says on stdout when the deed is done. The deeds are those of ends.py.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax

from jvr1.errors import UserError
from jvr1.processes.guard import run_distributed
from jvr1.processes.peers import Peers, gather

own, where, deed = int(sys.argv[1]), sys.argv[2], sys.argv[3]
value = sys.argv[4] if len(sys.argv) > 4 else "same"
LIMITS = {"silent": 10, "silent first": 10, "stops for a while": 10, "never comes": 3, "same number": 3}
"""Of --peer_limit."""
jax.config.update("jax_cpu_collectives_implementation", "gloo")


def now() -> None:
    print(f"deed at {time.time()}", flush=True)


def signal_own(number: int, later: float = 0.0) -> None:
    """Wherever the main thread is by then."""

    def send() -> None:
        now()
        os.kill(os.getpid(), number)

    if later:
        threading.Timer(later, send).start()
    else:
        send()


def of_first() -> None:
    """What process 0 does."""
    if deed == "mistake of the first":
        now()
        raise UserError("no space")
    if deed == "killed first":
        signal_own(signal.SIGKILL)
    if deed == "silent first":
        signal_own(signal.SIGSTOP)


def of_second() -> None:
    """What process 1 does."""
    if deed in ("mistake", "crash", "aborted"):
        now()
    if deed == "mistake":
        raise UserError("checkpoint 8 could not be written: No space left on device")
    if deed == "crash":
        raise ValueError("a fault of the code")
    if deed == "aborted":
        os.abort()
    if deed == "killed":
        signal_own(signal.SIGKILL)
    if deed == "silent":
        signal_own(signal.SIGSTOP)
    if deed == "stops for a while":
        subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
        signal_own(signal.SIGSTOP)
    if deed.startswith("notice"):
        signal_own(signal.SIGTERM, later=0.5)
    if deed == "notice in Python":
        time.sleep(60)


def main(command: object) -> int:
    gather(own)
    if deed == "told to stop":
        now()
        time.sleep(3 * own)  # as one that is slower with what comes after the last save
        return 75
    (of_second if own else of_first)()
    if deed not in ("done", "differs"):
        gather(own)  # of a process that comes no more
        if own and deed.startswith("notice"):
            gather(own)
    return 0


count = int(value) if deed == "count" else 2
number = 1 if deed == "same number" else own
peers = Peers(where, count, number, limit=LIMITS.get(deed, 100))
if deed == "notice while joining":
    signal_own(signal.SIGTERM, later=2)
if deed in ("never comes", "same number"):
    now()
run_distributed(main, lambda: SimpleNamespace(peers=peers, told={"seed": value, "rl.group": 8}))
