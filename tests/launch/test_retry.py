"""launch/retry.sh: what is started again, how often, and what a signal does."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest
from stand_ins import RETRY, await_, run, start


def program(folder: Path, *codes: int | str) -> list[str]:
    """A command that ends with the next of `codes` each time, a number or a signal; `runs` has a line for each."""
    steps = " ".join(str(c) for c in codes)
    text = f"""codes=({steps}); n=$(cat {folder}/runs 2>/dev/null | wc -l)
echo "$JVR1_EXIT_ON_PREEMPTION" >>{folder}/runs
case ${{codes[n]}} in [0-9]*) exit "${{codes[n]}}" ;; *) kill -"${{codes[n]}}" $$ ;; esac"""
    return ["bash", "-c", text]


@pytest.mark.parametrize(
    ("codes", "options", "code"),
    [
        ([0], [], 0),
        ([2], [], 2),
        ([75, 0], [], 0),
        ([75, 2, 0], [], 2),
        ([1, 134, 255, 0], [], 0),
        (["KILL", "SEGV", 0], [], 0),
        ([75, 75, 75, 0], ["--times", 2], 1),
        ([1, 0], ["--times", 0], 1),
        ([75, 1, 75, 75, 0], ["--times", 1, "--progress", 0], 0),  # every run is progress
    ],
)
def test_what_is_started_again(codes, options, code, tmp_path):
    done = run(RETRY, "--wait", 0, *options, "--", *program(tmp_path, *codes))
    assert done.returncode == code, done.stderr
    runs = (tmp_path / "runs").read_text().split()
    final = {0, 2}
    most = next((i + 1 for i, c in enumerate(codes) if c in final), len(codes))
    assert len(runs) == (most if code != 1 else options[1] + 1)
    assert set(runs) == {"75"}  # JVR1_EXIT_ON_PREEMPTION
    assert ("giving up" in done.stderr) == (code == 1)


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.parametrize("code", [75, 0, 9])
def test_a_signal_is_passed_on_and_ends_the_restarts(name, code, tmp_path):
    """Once, and the command may take its time and choose its code."""
    text = f"""trap 'echo {name} >>{tmp_path}/got; sleep 0.2; exit {code}' {name}
echo started >>{tmp_path}/runs; while :; do sleep 0.02; done"""
    retry = start(RETRY, "--wait", 0, "--", "bash", "-c", text)
    await_((tmp_path / "runs").exists)
    retry.send_signal(signal.Signals[f"SIG{name}"])
    _, errors = retry.communicate(timeout=30)
    assert retry.returncode == code, errors
    assert (tmp_path / "runs").read_text() == "started\n"
    assert (tmp_path / "got").read_text() == f"{name}\n"


def test_a_command_that_does_not_expect_the_signal_dies_of_it_and_is_to_be_started_again():
    retry = start(RETRY, "--wait", 0, "--", "bash", "-c", "echo up >&2; exec sleep 60")
    assert retry.stderr.readline() == "up\n"
    retry.terminate()
    retry.communicate(timeout=30)
    assert retry.returncode == 75


def test_told_to_stop_between_two_runs(tmp_path):
    retry = start(RETRY, "--wait", 60, "--", *program(tmp_path, 75, 0))
    assert retry.stderr.readline() == "retry.sh: exit code 75, restart 1 of 10 in 60 s\n"
    retry.terminate()
    retry.communicate(timeout=30)
    assert retry.returncode == 75
    assert (tmp_path / "runs").read_text() == "75\n"


def test_what_a_crash_leaves_running_is_ended(tmp_path):
    """Workers of a dead run would keep its memory; the next run must not start beside them."""
    text = f"""if [[ -e {tmp_path}/left ]]; then exit 0; fi
sleep 60 >/dev/null 2>&1 & echo $! >{tmp_path}/left; exit 1"""
    assert run(RETRY, "--wait", 0, "--", "bash", "-c", text).returncode == 0
    state = Path("/proc") / (tmp_path / "left").read_text().strip() / "stat"
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_retry_dry_run(tmp_path):
    done = run(RETRY, "--dry-run", "--", "touch", tmp_path / "made", "two words")
    assert shlex.split(done.stdout) == ["JVR1_EXIT_ON_PREEMPTION=75", "touch", str(tmp_path / "made"), "two words"]
    assert not (tmp_path / "made").exists()
