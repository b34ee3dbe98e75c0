"""A user's reward may do anything; the run goes on, and every cause is counted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes_left import marked, running, soon

from jvr1.errors import UserError
from jvr1.rl.user_reward import UserReward


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_values_and_arguments():
    with UserReward("user_rewards:brevity") as reward:
        assert reward("one two", "A", "OCR") == 0.5
        assert reward("\ud800 ünï " * 50_000, "A", "OCR") == 1e-5
        assert not reward.failures
    with UserReward("user_rewards:echo_gold") as reward:
        assert reward("", "0.25", "OCR") == 0.25
    with UserReward("math:dist") as reward:
        assert reward("a", "b", "c") == 0
        assert reward.failures == {"exception": 1}


def test_worker_does_not_import_jax():
    with UserReward("user_rewards:loads_jax") as reward:
        assert reward("", "", "") == 0.0
    code = "import sys, jvr1.rl.user_reward, jvr1.rl.rewards; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("completion", "cause", "message"),
    [
        ("raise", "exception", "KeyError"),
        ("exit", "exception", "SystemExit"),
        ("text", "exception", "ValueError"),
        ("long", "exception", "xxx"),
        ("nan", "value", "nan"),
        ("die", "died", "ended"),
        ("segfault", "died", "ended"),
        ("loop", "timeout", "0.3 s"),
        ("loop in C", "timeout", "0.3 s"),
        ("sleep", "timeout", "0.3 s"),
    ],
)
def test_failures_are_counted_and_survived(completion, cause, message):
    timeout = 0.3 if cause == "timeout" else 60.0  # what else happens must not depend on this machine's load
    with UserReward("user_rewards:misbehave", timeout=timeout, on_failure=-0.5) as reward:
        for n in (1, 2):
            assert reward(completion, "", "") == -0.5
            assert reward.failures == {cause: n}
            assert message in reward.last_failure
            assert len(reward.last_failure) <= 500
        reward.timeout = 60.0
        assert reward("fine", "", "") == 1.0
        assert reward("read", "", "") == 0.0
        assert reward.failures == {cause: 2}


def test_close_ends_the_process():
    reward = UserReward("user_rewards:brevity")
    worker = reward._worker
    reward.close()
    reward.close()
    assert worker.poll() is not None
    assert reward("again", "", "") == 1.0  # a closed one starts anew
    reward.close()


BUSY = """
import sys
from jvr1.rl.user_reward import UserReward

reward = UserReward("user_rewards:misbehave", timeout=600.0)
print("ready", flush=True)
reward(sys.argv[1], "", "")
"""


@pytest.mark.parametrize(("work", "processes"), [("loop in C", 2), ("wait for a process", 3)])
def test_the_process_and_what_it_started_end_with_the_run(work, processes):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = marked() | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", BUSY, work], env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout.readline() == b"ready\n"
        assert soon(lambda: len(running(environment)) == processes)
        run.kill()
    assert soon(lambda: not running(environment), 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_rewards", "module:function"),
        (":brevity", "module:function"),
        ("no_such_module:brevity", "ModuleNotFoundError"),
        ("user_rewards:shortness", "no attribute 'shortness'"),
        ("user_rewards:NOT_A_FUNCTION", "is a int, not a function"),
    ],
)
def test_unusable_spec(spec, message):
    with pytest.raises(UserError, match=message):
        UserReward(spec)


def test_a_step_counts_its_own_failures():
    """Every cause is named each time, so that processes of a run add up the same names."""
    with UserReward("user_rewards:misbehave", on_failure=0.0) as reward:
        reward("raise", "", "")
        reward("nan", "", "")
        assert reward.new_failures() == {"exception": 1, "timeout": 0, "value": 1, "died": 0}
        reward("raise", "", "")
        assert reward.new_failures() == {"exception": 1, "timeout": 0, "value": 0, "died": 0}
        assert reward.new_failures() == {"exception": 0, "timeout": 0, "value": 0, "died": 0}
        assert reward.failures == {"exception": 2, "value": 1}
