"""Rows in shared memory: gone when a run ends, however it does; never more than there is room for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import VIDEO
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
from processes_left import SHARED, in_use, marked, running, soon

from jvr1.data import shared_memory
from jvr1.data.batch import empty_example
from jvr1.data.shared_memory import allocate, finish_deletions, remove_leftovers, room, rows_ahead, rows_held
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig


@dataclass(frozen=True)
class Driver:
    process: subprocess.Popen
    environment: dict[str, str]
    name: str
    ahead: int
    row: int

    def files(self) -> set[Path]:
        return {file for file in SHARED.iterdir() if self.name in file.name}

    def full(self) -> set[Path]:
        """Its files, once as many rows as may be are read ahead: all that `rows_held` counts but two microbatches."""
        rows = rows_held(2, 4, self.ahead) - 2 * 4
        assert soon(lambda: self.held() == rows * self.row), (self.held(), rows, self.row)
        return self.files()

    def held(self) -> int:
        """Bytes of its rows as the kernel counts them."""
        blocks = 0
        for file in self.files():
            with contextlib.suppress(FileNotFoundError):  # its row is let go at this moment
                blocks += 0 if file.name.startswith("sem.") else file.stat().st_blocks
        return 512 * blocks

    def another(self) -> int:
        """Good rows of the next microbatch."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill_all_at_once(self) -> None:
        """Multiprocessing's tracker too, so that nobody is left to clean up."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in running(self.environment):
                os.kill(process, number)
        self.process.wait()
        assert soon(lambda: not running(self.environment))


@contextlib.contextmanager
def driver(tokenizer: Path, config: ModelConfig, folder: Path) -> Iterator[Driver]:
    here = Path(__file__).parent
    path = os.pathsep.join(str(p) for p in (here.parents[1], here.parent, here))
    environment = marked() | {"PYTHONPATH": path}
    command = [sys.executable, str(here / "pipeline_driver.py"), str(tokenizer), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            name, ahead = process.stdout.readline().split()
            yield Driver(process, environment, name, int(ahead), room(empty_example(VIDEO, config)))
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_run_leaves_no_processes_and_no_files(folder_of_tokenizer, config, tmp_path):
    with driver(folder_of_tokenizer, config, tmp_path) as run:
        files = run.full()
        processes = running(run.environment)
        assert len(processes) == 6, processes  # the run, multiprocessing's tracker, two workers with a helper each
        semaphores = {file for file in files if file.name.startswith("sem.")}
        used = in_use(processes)
        assert used & semaphores
        assert used <= files
        run.process.kill()
        assert soon(lambda: not running(run.environment))
        assert run.files() == set()


@pytest.mark.slow
def test_what_a_dead_run_left_is_removed_and_nothing_of_one_that_lives(folder_of_tokenizer, config, tmp_path, capsys):
    (tmp_path / "dead").mkdir()
    (tmp_path / "live").mkdir()
    starting = (driver(folder_of_tokenizer, config, tmp_path / name) for name in ("dead", "live"))
    with next(starting) as dead, next(starting) as live:
        dead.full()
        dead.kill_all_at_once()
        left, used = dead.files(), live.full()
        assert len(left) > 100
        remove_leftovers()
        assert "what killed runs left" in capsys.readouterr().err
        assert dead.files() == set()
        assert live.files() == used
        assert [live.another() for _ in range(8)] == [4] * 8
        live.process.stdin.close()
        assert live.process.wait(60) == 0
        assert live.process.stderr.read() == ""
        assert live.files() == set()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A stand-in for the folder of shared memory."""
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    return tmp_path


LIVE, DEAD, LOST = (f"jvr1-{letter * 16}" for letter in "abc")


def test_only_what_is_jvr1_s_and_dead_is_removed(folder, capsys):
    kept = {LIVE, f"{LIVE}-0", f"sem.{LIVE}-0", "psm_12345678", "sem.mp-0", "jvr1-mine", f"x{DEAD}-0", f"{DEAD}0"}
    gone = {DEAD, f"{DEAD}-0", f"sem.{DEAD}-0", f"{LOST}-0"}  # the last one's owner has no file
    for name in kept | gone:
        (folder / name).write_bytes(bytes(2**19))
    with (folder / LIVE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers()
        assert {file.name for file in folder.iterdir()} == kept
        assert capsys.readouterr().err == f"removed from {folder} what killed runs left: 4 files, 2.0 MB\n"
        remove_leftovers()
        assert capsys.readouterr().err == ""


def test_what_another_user_owns_stays(folder, monkeypatch):
    (folder / DEAD).touch()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    remove_leftovers()
    assert (folder / DEAD).exists()


def test_a_name_that_seemed_dead_before_it_was_locked_is_given_up(folder, monkeypatch):
    lock, first = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not first:
            first.extend(file.name for file in folder.iterdir())
            remove_leftovers()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    name = shared_memory._lock()
    assert [file.name for file in folder.iterdir()] == [name]
    assert len(first) == 1
    assert first != [name]
    remove_leftovers()
    assert (folder / name).exists()


def test_memory_that_is_not_there_is_said_before_it_is_written_to(monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    name = f"{LOST}-{os.getpid()}"
    with pytest.raises(UserError, match=r"no room for a data worker's row \(No space left on device\); .*--shm-size"):
        allocate(name, 5000)
    assert not (SHARED / name).exists()


def test_memory_is_there_before_it_is_written_to():
    memory = allocate(f"test-{os.getpid()}", 5000)
    taken = os.stat(SHARED / memory.name).st_blocks * 512
    memory.close()
    memory.unlink()
    assert taken == 8192


def test_a_row_takes_whole_pages_an_array():
    assert room((np.zeros(8193, np.uint8), (None, np.ones((1, 2))), np.int32(0), np.bool_(False))) == 4 * 4096


@pytest.mark.parametrize(
    ("free", "ahead", "said"),
    [
        (0, 8, ""),  # a tmpfs without limit
        (96, 8, ""),
        (95, 7, "/shm has 95 MB free: each of 2 data workers reads 7 rows ahead, not 8; --shm-size=1g has room"),
        (39, 1, "reads 1 rows ahead, not 8"),
        (20, 1, "reads 1 rows ahead, not 8"),
        (19, 0, "/shm has 19 MB free, and data.workers=2 needs 20 MB or more; .*=1g, or set data.workers=1"),
        (15, 0, "or set data.workers=0"),
    ],
)
def test_rows_are_read_ahead_as_far_as_there_is_room(free, ahead, said, tmp_path, monkeypatch, capsys):
    """Rows of 1 MB, 6 in a microbatch, two workers: 8 ahead of each are 2 * 2 * 9 + 2 * 6 = 48 rows, one is 20."""
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    usage = types.SimpleNamespace(total=free, free=free * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    if not ahead:
        with pytest.raises(UserError, match=said):
            rows_ahead(2**20, 2, 6, 8)
        return
    assert rows_ahead(2**20, 2, 6, 8) == ahead
    assert re.search(said, capsys.readouterr().err)


def test_rows_that_were_let_go_are_unlinked_when_waited_for():
    SharedMemoryArray.enable_async_del(1)
    made = [SharedMemoryArray((4,), np.int32) for _ in range(5)]
    files = [Path("/dev/shm", array.metadata.name) for array in made]
    for array in made:
        array.unlink_on_del()
    assert all(file.exists() for file in files)
    SharedMemoryArray._del_thread_pool.apply_async(time.sleep, (0.2,))  # the thread is behind, as at the end of a run
    del array
    made.clear()
    assert all(file.exists() for file in files)
    finish_deletions()
    assert not any(file.exists() for file in files)


def test_rows_in_a_cycle_are_let_go_first():
    SharedMemoryArray.enable_async_del(1)
    row = SharedMemoryArray((4,), np.int32)
    file = Path("/dev/shm", row.metadata.name)
    row.unlink_on_del()
    cycle = [row]
    cycle.append(cycle)
    del row, cycle
    assert file.exists()
    finish_deletions()
    assert not file.exists()
