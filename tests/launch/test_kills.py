"""Ten kills under retry.sh, with data workers: processes and shared memory as before the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes_left import SHARED, in_use, marked, running, soon
from stand_ins import RETRY

KILLS = 10


def main_of(environment: dict[str, str]) -> int:
    """The run itself, which retry.sh's command line names, too."""
    return next(pid for pid, line in running(environment).items() if line.startswith(f"{sys.executable} -mjvr1.train"))


@pytest.mark.nightly
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_ten_kills_leave_nothing(demo, stage, tmp_path):
    arguments = demo.arguments(stage, tmp_path, data__workers=2, train__steps=10_000, train__save_every=2)
    command = [str(RETRY), "--times", "100", "--wait", "0", "--", sys.executable, f"-mjvr1.train_{stage}", *arguments]
    environment, seen = marked() | {"PYTHONPATH": demo.environment["PYTHONPATH"]}, set[Path]()
    retry = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])
    try:
        for kill in range(1, KILLS + 1):
            step = newest(tmp_path)
            assert soon(lambda step=step: newest(tmp_path) > step, 120)  # it runs, and its workers are full
            processes, files = running(environment), in_use(running(environment))
            seen |= files
            print(f"{stage}: kill {kill}: {len(processes)} processes, {len(files)} files in {SHARED}")
            os.kill(main_of(environment), signal.SIGKILL)
            if kill == KILLS:
                os.kill(retry.pid, signal.SIGTERM)
        retry.wait(60)
    finally:
        retry.kill()
    assert len(seen) > KILLS * 100
    left = [file for file in seen if file.exists()]
    print(f"{stage}: after {KILLS} kills: {len(running(environment))} processes, {len(left)} files in {SHARED}")
    assert not running(environment)
    assert not left


def newest(workdir: Path) -> int:
    return max((int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()), default=0)
