"""Child processes end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from processes_left import marked, running, soon

CHILD = "from jvr1.lifeline import end_with_parent; end_with_parent(0); print('ready', flush=True); {work}"
WORK = {
    "asleep": "import time; time.sleep(1000)",
    "in native code that holds the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
    "deaf to signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals)); signal.pause()",
}
PARENT = """
import subprocess, sys, threading, time

def start():
    global child
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()

thread = threading.Thread(target=start)  # which ends before its child
thread.start()
thread.join()
time.sleep(0.2)
print(child.poll(), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_child_ends_with_its_parent_but_not_with_the_thread_that_started_it(work):
    environment = marked()
    command = [sys.executable, "-c", PARENT, CHILD.format(work=work)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "None\n"
            assert len(running(environment)) == 2
        finally:
            parent.kill()
    assert soon(lambda: not running(environment), 5)


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    ours, theirs = os.pipe()
    os.close(theirs)
    command = [sys.executable, "-c", CHILD.format(work=WORK["asleep"])]
    done = subprocess.run(command, stdin=ours, stdout=subprocess.PIPE, timeout=60)
    os.close(ours)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
