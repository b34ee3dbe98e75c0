"""One run in a workdir: the second is told who is there; a dead holder is followed; clocks play no part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest
from etils import epath
from runs import REPOSITORY

from jvr1.errors import UserError
from jvr1.opening import holder

HOLDS = """
import sys, time
from etils import epath
from jvr1.opening import holder
holder.BEAT_SECONDS = 0.05
holder.hold(epath.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Not made yet. Waiting takes no long."""
    monkeypatch.setattr(holder, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(holder, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.02)
    yield epath.Path(tmp_path / "run")
    holder.release_all()


def claim(**changes) -> holder.Claim:
    """Of a process on another machine."""
    return replace(holder.Claim("theirs", "node7", "node7 boot", 4711, "123", 0), **changes)


def put(workdir, one: holder.Claim) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    holder._write(workdir, one)


def mine(workdir) -> bool:
    there = holder.read_holder(workdir)
    return there is not None and there.pid == os.getpid()


def test_the_second_process_is_refused_and_the_first_untouched_until_it_is_killed(workdir, capsys):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLDS, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"{workdir} is held by another run, process {first.pid} on .*; wait for"):
            holder.hold(workdir)
        before = holder.read_holder(workdir)
        assert before is not None
        assert before.pid == first.pid
        while holder.read_holder(workdir) == before:  # it goes on living
            time.sleep(0.01)
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
    holder.hold(workdir)
    assert mine(workdir)
    assert f"process {first.pid} on" in capsys.readouterr().err


def test_it_is_given_back_and_may_be_taken_twice_by_one_process(workdir):
    holder.hold(workdir)
    holder.hold(workdir)
    assert mine(workdir)
    holder.release_all()
    assert not workdir.exists()  # it was made for the run, and nothing is in it
    workdir.mkdir()
    holder.hold(workdir)
    (workdir / "config.json").write_text("{}")
    holder.release_all()
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_a_holder_elsewhere_that_moves_lives_whatever_its_clock(workdir, capsys):
    put(workdir, claim())
    done = threading.Event()

    def beat() -> None:
        n = 0
        while not done.wait(0.05):
            n += 1
            holder._write(workdir, claim(beat=n))
            os.utime(workdir / holder.HOLDER_FILE, (0, 0))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="held by another run, process 4711 on node7"):
            holder.hold(workdir)
    finally:
        done.set()
        thread.join()
    assert "watching up to" in capsys.readouterr().err


@pytest.mark.parametrize("stamp", [0, 4e9])
def test_a_holder_elsewhere_that_is_silent_is_followed_whatever_its_clock(workdir, stamp):
    put(workdir, claim())
    os.utime(workdir / holder.HOLDER_FILE, (stamp, stamp))
    holder.hold(workdir)
    assert mine(workdir)


def test_a_process_number_that_came_again_is_another_process(workdir):
    there = claim(machine=holder._machine(), pid=os.getppid(), born="1")
    put(workdir, there)
    holder.hold(workdir)
    assert mine(workdir)
    holder.release_all()
    put(workdir, replace(there, born=holder._born(os.getppid()) or ""))
    with pytest.raises(UserError, match="held by another run"):
        holder.hold(workdir)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 1}', "\x00" * 40])
def test_a_damaged_file_of_nobody_is_written_anew(workdir, content):
    workdir.mkdir()
    (workdir / holder.HOLDER_FILE).write_text(content)
    holder.hold(workdir)
    assert mine(workdir)


def test_who_was_taken_for_dead_notices_and_leaves_the_other_alone(workdir):
    holder.hold(workdir)
    assert holder.lost(workdir) is None
    put(workdir, claim())
    while holder.lost(workdir) is None:
        time.sleep(0.01)
    assert "process 4711 on node7 took over" in str(holder.lost(workdir))
    holder.release_all()
    assert holder.read_holder(workdir) == claim()


def test_of_two_in_the_same_moment_one_has_it(workdir):
    workdir.mkdir()
    one, two = (claim(id=name) for name in ("one", "two"))
    for each in (one, two):
        holder._create(workdir, each)
    assert holder.read_holder(workdir) == one
    assert [p.name for p in workdir.iterdir()] == [holder.HOLDER_FILE]


def test_in_a_bucket_the_last_to_write_has_it(workdir, monkeypatch):
    """Objects cannot be made only where there are none: one looks again."""
    monkeypatch.setattr(holder, "is_remote", lambda _: True)
    other, write = claim(id="other"), holder._write

    def both(folder, one):
        write(folder, one)
        (folder / holder.HOLDER_FILE).write_text(json.dumps(asdict(other)))

    monkeypatch.setattr(holder, "_write", both)
    with pytest.raises(UserError, match="taken by another run at the same moment, process 4711"):
        holder.hold(workdir)
    (workdir / holder.HOLDER_FILE).unlink()
    monkeypatch.setattr(holder, "_write", write)
    holder.hold(workdir)
    assert mine(workdir)
