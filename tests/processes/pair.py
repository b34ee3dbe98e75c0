"""A process of a run that does next to nothing, by what it is told: python pair.py PROCESS COORDINATOR DEED [VALUE]"""

import os
import sys
import time
from types import SimpleNamespace

import jax

from jvr1.distributed import Peers, gather
from jvr1.errors import UserError
from jvr1.train.guard import run_distributed

own, where, deed = int(sys.argv[1]), sys.argv[2], sys.argv[3]
value = sys.argv[4] if len(sys.argv) > 4 else "same"
jax.config.update("jax_cpu_collectives_implementation", "gloo")


def main(command) -> int:
    gather(own)
    if deed == "mistake" and own == 1:
        raise UserError("checkpoint 8 could not be written: No space left on device")
    if deed == "mistake of the first" and own == 0:
        raise UserError("no space")
    if deed == "crash" and own == 1:
        raise ValueError("a fault of the code")
    if deed == "told to stop":
        time.sleep(3 * own)  # as one that is slower with what comes after the last save
        return 75
    if deed == "killed" and own == 1:
        os.kill(os.getpid(), 9)
    if deed not in ("done", "differs"):
        gather(own)  # of a process that comes no more
    return 0


count = int(value) if deed == "count" else 2
peers = Peers(where, count, own)
run_distributed(main, lambda: SimpleNamespace(peers=peers, told={"seed": value, "rl.group": 8}))
