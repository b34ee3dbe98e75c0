"""A hang ends with its stacks; what the runtime raises becomes a line and a code that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from runs import REPOSITORY

from jvr1.errors import UserError
from jvr1.processes import guard


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)


def test_a_hang_is_ended_with_all_stacks():
    code = (
        "import time\n"
        "from jvr1.processes.guard import Watchdog\n"
        "def waits_for_ever():\n"
        "    time.sleep(100)\n"
        "watchdog = Watchdog(0.5)\n"
        "with watchdog.watching():\n"
        "    watchdog.beat('step 7')\n"
        "    waits_for_ever()\n"
    )
    done = run(code)
    assert done.returncode == guard.RESTART
    assert "in waits_for_ever" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: process 0: step 7 has taken")
    assert "train.step_limit=0.5" in last


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.8, 0])
def test_who_beats_in_time_or_sets_no_limit_is_left_alone(limit):
    code = (
        "import time\n"
        "from jvr1.processes.guard import Watchdog\n"
        f"watchdog = Watchdog({limit})\n"
        "with watchdog.watching():\n"
        "    for step in range(4):\n"
        "        watchdog.beat(str(step))\n"
        "        time.sleep(0.3)\n"
        "time.sleep(0.9)\n"  # after it, nobody watches
        "print('done')\n"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "done\n")


def failing(error: str, processes: int = 1) -> str:
    """A main that raises."""
    return (
        "import jax, sys\n"
        "from types import SimpleNamespace\n"
        "from jvr1.processes.peers import Peers\n"
        "from jvr1.processes.guard import run_distributed\n"
        f"def main(command): {error}\n"
        "from jvr1.processes import guard\n"
        f"guard.processes = lambda: {processes}\n"
        "run_distributed(main, lambda: SimpleNamespace(peers=Peers(), told={}))\n"
    )


@pytest.mark.parametrize(
    ("error", "processes", "code", "said"),
    [
        ("return 0", 1, 0, ""),
        ("return 75", 1, 75, ""),
        ("raise ValueError('Gloo AllGather failed: Connection closed by peer')", 2, 75, "error: process 0 of 2 lost a"),
        ("raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9.1G')", 1, 2, "error: out of memory on the device"),
        ("raise KeyError('ours')", 1, 1, "KeyError: 'ours'"),
        ("raise KeyError('ours')", 2, 1, "KeyError: 'ours'"),
    ],
)
def test_exit_codes(error, processes, code, said):
    done = run(failing(error, processes))
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines() or [""]
    assert lines[-1].startswith(said)
    if code in (2, 75):
        assert len([line for line in lines if line]) <= 1


def test_what_is_not_known_is_not_explained(monkeypatch):
    closed = RuntimeError("Connection closed by peer")
    assert guard.explain(closed) is None  # one process has no peers
    monkeypatch.setattr(guard, "processes", lambda: 2)
    assert isinstance(guard.explain(closed), guard.LostPeerError)
    wrapped = UserError("step 4 could not be saved")
    wrapped.__cause__ = closed
    assert isinstance(guard.explain(wrapped), guard.LostPeerError)
    assert guard.explain(UserError("data.max_failed allows 5%")) is None


def test_the_code_of_a_preempted_run_is_the_environment_s(monkeypatch):
    monkeypatch.delenv(guard.STOPPED, raising=False)
    assert guard.stop_code() == 0
    monkeypatch.setenv(guard.STOPPED, "75")
    assert guard.stop_code() == 75
