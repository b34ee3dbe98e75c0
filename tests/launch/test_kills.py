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


def main_of(environment: dict[str, str]) -> int | None:
    """The run itself, which retry.sh's command line names, too."""
    begins = f"{sys.executable} -mjvr1.train"
    return next((pid for pid, line in running(environment).items() if line.startswith(begins)), None)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_ten_kills_leave_nothing(demo, stage, tmp_path):
    arguments = demo.arguments(stage, tmp_path, data__workers=2)
    command = [str(RETRY), "--times", "100", "--wait", "0", "--", sys.executable, f"-mjvr1.train_{stage}", *arguments]
    environment = marked() | {"PYTHONPATH": demo.environment["PYTHONPATH"]}
    main, seen = None, set[Path]()
    retry = subprocess.Popen(command, env=environment)
    try:
        for kill in range(1, KILLS + 1):
            last = main
            assert soon(lambda last=last: main_of(environment) not in (None, last), 60)
            assert soon(lambda: len(in_use(running(environment))) > 100, 120)  # its workers are at work
            main, files = main_of(environment), in_use(running(environment))
            print(f"{stage}: kill {kill}: {len(running(environment))} processes, {len(files)} files in {SHARED}")
            assert main is not None
            os.kill(main, signal.SIGKILL)
            seen |= files
        retry.terminate()
        retry.wait(120)
    finally:
        retry.kill()
    left = [file for file in seen if file.exists()]
    print(f"{stage}: after {KILLS} kills: {len(running(environment))} processes, {len(left)} files in {SHARED}")
    assert len(seen) > KILLS * 100
    assert not running(environment)
    assert not left
