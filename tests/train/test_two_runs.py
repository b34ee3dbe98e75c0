"""Two runs in one workdir, as a user starts them: the second is told, the first goes on; a dead one is followed."""

from __future__ import annotations

import signal
import time

from runs import STEPS
from train.test_resume import finish, until


def newest(workdir) -> int:
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def test_the_second_ends_with_2_the_first_is_untouched_and_after_a_kill_the_next_starts(demo, tmp_path):
    workdir = tmp_path / "run"
    first = demo.main("sft", workdir, train__steps=10_000)
    while newest(workdir) < 7 and first.poll() is None:
        time.sleep(0.02)
    second = demo.main("sft", workdir, train__steps=10_000)
    _, err = second.communicate()
    assert second.returncode == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: {workdir} is held by another run, process {first.pid} on ")
    after = newest(workdir) + 14
    while newest(workdir) < after and first.poll() is None:
        time.sleep(0.02)
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    step = newest(workdir)
    third = demo.main("sft", workdir, train__steps=step + 2)
    assert f"resumed at step {step} " in finish(third)
    some = min(step, STEPS)
    assert until(some, workdir) == until(some, demo.finished("sft").workdir)
    assert not (workdir / "holder.json").exists()
