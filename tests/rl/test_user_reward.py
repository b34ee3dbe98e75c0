"""A user's reward may do anything; the run goes on, and a row that failed says why."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from processes_left import marked, running, soon

from jvr1.errors import UserError
from jvr1.rl.reward_rows import RewardRow
from jvr1.rl.user_reward import Outcome, UserReward

ROW = RewardRow(
    completion="one two", answer="B", gold="<answer>B</answer>", gold_answer="B", accuracy=0.75, format=1.0, tokens=17,
    ended=True, frames="ordered", step=41, problem_id="x", problem="which?", problem_type="OCR", data_type="image",
    data_source="own", options=("A. red", "B. blue"), path=("a.png", "b.png"), duration=None,
    extra={"weight": 0.5},
)  # fmt: skip


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def rows(*completions: object) -> list[RewardRow]:
    return [replace(ROW, completion=str(completion)) for completion in completions]


def value(reward: UserReward, completion: str = "one two") -> Outcome:
    (one,) = reward(rows(completion))
    return one


def test_values_and_arguments():
    with UserReward("user_rewards:brevity") as reward:
        assert reward(rows("one two", "\ud800 ünï " * 50_000)) == [
            Outcome({"brevity": 0.5}), Outcome({"brevity": 1e-5})
        ]  # fmt: skip
        assert reward([]) == []
    with UserReward("user_rewards:echo_gold") as reward:
        assert reward([replace(ROW, gold="0.25")])[0].values == {"echo_gold": 0.25}
    with UserReward("user_rewards:by_names") as reward:
        assert value(reward).values == {"by_names": 0.5 * 7 + 7}
        assert value(reward)  # asked again, by the same process
        without = reward([replace(ROW, extra={})])[0]
        assert without.cause == "exception"
        assert "takes 'weight', which is no field of a row (completion, answer, gold" in without.error
    with UserReward("user_rewards:everything") as reward:
        assert value(reward).values == {"everything": 20.0}


def test_a_reward_sees_everything():
    want = {
        "answer": 1, "gold": 1, "gold_answer": 1, "tokens": 17, "ended": 1, "shuffled": 0, "step": 41, "duration": None,
        "options": 2, "extra": 0.5, "paths": 1, "accuracy": 0.75, "format": 1,
    }  # fmt: skip
    with UserReward("user_rewards:all_of_it") as reward:
        assert value(reward).values == want


def test_worker_does_not_import_jax():
    with UserReward("user_rewards:loads_jax") as reward:
        assert value(reward).values == {"loads_jax": 0.0}
    code = "import sys, jvr1.rl.user_reward, jvr1.rl.rewards; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FAILING = [
    ("raise", "exception", "KeyError: 'no such thing'"),
    ("exit", "exception", "SystemExit"),
    ("long", "exception", "xxx"),
    ("unprintable", "exception", "Unprintable"),
    ("text", "value", "it gave 'high', a str; a number, None, or such by name are expected"),
    ("digits", "value", "it gave '0.5', a str"),
    ("list", "value", "it gave [1.0], a list"),
    ("named text", "value", "it gave 'high', a str"),
    ("nan", "value", "nan, which is no number"),
    ("huge", "value", "1e+39, which is no number, or too large for fp32"),
    ("die", "died", "ended"),
    ("segfault", "died", "ended"),
    ("loop", "timeout", "no value after 0.5 s"),
    ("loop in C", "timeout", "no value after 0.5 s"),
    ("sleep", "timeout", "no value after 0.5 s"),
]
GOOD = [("fine", {"misbehave": 1.0}), ("none", {"misbehave": None}), ("named", {"a": 0.25, "b": None})]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_failure_costs_its_row_alone(concurrency):
    """All of them among good rows in one call, in forks and, with a concurrency of 1, in the one process there is."""
    cases = [*GOOD, *FAILING, *GOOD]
    with UserReward("user_rewards:misbehave", timeout=0.5, concurrency=concurrency) as reward:
        found = reward(rows(*(case[0] for case in cases)))
        for case, one in zip(cases, found, strict=True):
            if len(case) == 2:
                assert one == Outcome(case[1])
            else:
                assert (one.values, one.cause) == ({}, case[1]), case
                assert case[2] in one.error
                assert len(one.error) <= 500
        assert value(reward, "read").values == {"misbehave": 0.0}  # its stdin is empty


def test_coroutines_share_a_loop_and_fail_alone():
    cases = [
        *(case for case in FAILING if case[0] not in ("die", "segfault", "loop", "loop in C")),
        ("own timeout", "exception", "TimeoutError: the server was slow"),
    ]
    with UserReward("user_rewards:misbehave_waiting", timeout=0.5, concurrency=8) as reward:
        *found, last = reward(rows(*(case[0] for case in cases), "named"))
        for case, one in zip(cases, found, strict=True):
            assert (one.cause, case[2] in one.error) == (case[1], True), (case, one)
        assert last.values == {"a": 0.25, "b": None}
        # what blocks the loop, or ends the process, takes with it what was under way
        assert [one.cause for one in reward(rows("loop", "fine"))] == ["timeout", "timeout"]
        assert value(reward, "die").cause == "died"
        assert value(reward, "fine").values == {"misbehave_waiting": 1.0}


def test_all_rows_at_once():
    with UserReward("user_rewards:misbehave_whole", timeout=0.5) as reward:
        assert [one.values or one.cause for one in reward(rows("fine", "nan", "none"))] == [
            {"misbehave_whole": 1.0}, "value", {"misbehave_whole": None}
        ]  # fmt: skip
        assert [one.cause for one in reward(rows("fine", "raise"))] == ["exception", "exception"]
        assert [one.cause for one in reward(rows("fine", "sleep"))] == ["timeout", "timeout"]
        assert value(reward, "fine").values == {"misbehave_whole": 1.0}
    with UserReward("user_rewards:wrong_count") as reward:
        one = reward(rows("a", "b"))[1]
        assert (one.cause, one.error) == ("value", "it gave 1 values for 2 rows; a list with one for each is expected")


def meeting(folder: Path, count: int) -> list[RewardRow]:
    """Rows whose rewards wait for each other."""
    return [replace(row, extra={"folder": str(folder), "together": count}) for row in rows(*range(count))]


@pytest.mark.parametrize("name", ["meets_others", "meets_others_waiting"])
def test_calls_run_at_the_same_time(name, tmp_path):
    """As many as the concurrency: none ends before all have begun."""
    with UserReward(f"user_rewards:{name}", timeout=600.0, concurrency=32) as reward:
        found = reward(meeting(tmp_path, 32))
        assert [one.values for one in found] == [{name: float(i)} for i in range(32)]


def test_calls_that_hang_cost_the_time_limit_together(tmp_path):
    """Seven of 64: before the first of them is ended, all others have begun, those that hang too."""
    with UserReward("user_rewards:hangs_on_every_tenth", timeout=4.0) as reward:
        found = reward(meeting(tmp_path, 64))
    for i, one in enumerate(found):
        assert (one.cause == "timeout") if i % 10 == 3 else one.values == {"hangs_on_every_tenth": float(i)}
    assert {p.name for p in tmp_path.glob("saw-all-*")} == {f"saw-all-{i}" for i in range(3, 64, 10)}


def test_the_module_is_imported_once_whatever_the_calls():
    with UserReward("user_rewards:when_imported", concurrency=4) as reward:
        values = [one.values for one in reward(rows(*range(12)))]
    assert len({one["imported"] for one in values}) == 1
    assert len({one["process"] for one in values}) == 4


def test_close_ends_the_process():
    reward = UserReward("user_rewards:brevity")
    worker = reward._worker
    reward.close()
    reward.close()
    assert worker.poll() is not None
    assert value(reward, "again").values == {"brevity": 1.0}  # a closed one starts anew
    os.killpg(reward._worker.pid, 9)  # and so does one that ended while it had nothing to do
    reward._worker.wait()
    assert value(reward, "again").values == {"brevity": 1.0}
    reward.close()


BUSY = """
import sys
from dataclasses import replace
from test_user_reward import ROW
from jvr1.rl.user_reward import UserReward

reward = UserReward("user_rewards:misbehave", timeout=600.0, concurrency=int(sys.argv[2]))
print("ready", flush=True)
reward([replace(ROW, completion=sys.argv[1])])
"""


@pytest.mark.parametrize(
    ("work", "concurrency", "processes"),
    [("loop in C", 1, 2), ("wait for a process", 1, 3), ("loop in C", 2, 3), ("wait for a process", 2, 4)],
)
def test_the_process_and_what_it_started_end_with_the_run(work, concurrency, processes):
    path = os.pathsep.join(map(str, [Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[2]]))
    environment = marked() | {"PYTHONPATH": path}
    command = [sys.executable, "-c", BUSY, work, str(concurrency)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as run:
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
        ("user_rewards:by_place", "takes parameters by place; name them: rows, row, or fields of a row"),
        ("math:dist", "takes parameters by place"),
        ("builtins:dict", "does not say its parameters|takes parameters by place"),
    ],
)
def test_unusable_spec(spec, message):
    with pytest.raises(UserError, match=message):
        UserReward(spec)
