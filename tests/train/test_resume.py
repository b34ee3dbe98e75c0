"""Killed at any moment, stopped by a signal, out of disk: the run goes on and gives the same numbers to the bit."""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import time

import pytest
from runs import STEPS, scalars, without_times

from jvr1.train.checkpoint import Checkpoints

SOME = 24
"""Steps of a disturbed run: the first of the undisturbed one, whose learning rate does not depend on the rest."""


def until(step: int, workdir) -> dict:
    """What a second run must repeat to the bit, of the first steps."""
    values = without_times(scalars(workdir))
    kept = {tag: [pair for pair in pairs if pair[0] <= step] for tag, pairs in values.items()}
    return {tag: pairs for tag, pairs in kept.items() if pairs}


def step_times(workdir) -> float:
    """Seconds that `SOME` steps of a finished run take once they are compiled."""
    return SOME * statistics.median(value for _, value in scalars(workdir)["seconds/step"])


def event_files(workdir) -> int:
    return len(list((workdir / "tensorboard").glob("*"))) if (workdir / "tensorboard").exists() else 0


def disturb(process, workdir, seconds: float, number: int) -> tuple[str, str]:
    """Sends a signal `seconds` after the run's loop is made; what it wrote."""
    before = event_files(workdir)
    while event_files(workdir) == before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(number)
    return process.communicate()


def kill(demo, stage, workdir, times):
    draw = random.Random(stage)
    span = step_times(demo.finished(stage).workdir)
    for _ in range(times):
        disturb(demo.main(stage, workdir, train__steps=SOME), workdir, draw.uniform(0, span), signal.SIGKILL)


def finish(process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(("stage", "times"), [("sft", 2), ("rl", 1)])
def test_a_killed_run_repeats_an_undisturbed_one_to_the_bit(demo, stage, times, tmp_path):
    kill(demo, stage, tmp_path, times)
    finish(demo.main(stage, tmp_path, train__steps=SOME))
    want = until(SOME, demo.finished(stage).workdir)
    assert [step for step, _ in want["loss"]] == list(range(1, SOME + 1))
    assert len({value for _, value in want["loss"]}) > SOME / 2  # it does learn something
    assert until(SOME, tmp_path) == want


def test_sigterm_saves_says_so_and_the_run_goes_on_from_there(demo, tmp_path):
    process = demo.main("sft", tmp_path, train__steps=1000)
    while not (tmp_path / "checkpoints" / "7").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    step = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert f"stopped at step {step} of 1000, saved" in out
    assert step >= 7
    out = finish(demo.main("sft", tmp_path, train__steps=step + 3))
    assert f"resumed at step {step} " in out
    some = min(step + 3, STEPS)
    assert until(some, tmp_path) == until(some, demo.finished("sft").workdir)


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_whole(demo, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(demo.finished("sft").workdir, workdir)
    process = demo.main("sft", workdir, largest_file=400, train__steps=STEPS + 1)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert f"step {STEPS + 1} could not be saved: File too large; step {STEPS} is whole" in err
    assert "Traceback" not in err
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step() == STEPS
    checkpoints.close()


def test_a_finished_run_is_left_alone(demo, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(demo.finished("sft").workdir, workdir)
    before = scalars(workdir)
    finish(demo.main("sft", workdir))
    assert scalars(workdir) == before


CHANGES = [
    ("seed", 1, "seed: 0 -> 1"),
    ("batch__micro", 2, "batch.micro: 3 -> 2"),
    ("data__train", "rl.json", "data.train: ['sft.json'] -> ['rl.json']"),
    ("model__source", "other", "model.source: "),
    ("optimizer__name", "muon", "optimizer.name: adamw -> muon"),
]


def test_a_workdir_is_not_mixed_with_another_run(demo, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(demo.finished("sft").workdir, workdir)
    kept = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    changes = {name: value for name, value, _ in CHANGES}
    process = demo.main("sft", workdir, **changes)
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: workdir {workdir} holds a run with other settings (")
    for _, _, said in CHANGES:
        assert said in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == kept


def test_a_changed_objective_is_said_and_other_rows_are_refused(demo, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(demo.finished("sft").workdir, workdir)
    out = finish(demo.main("sft", workdir, train__steps=STEPS + 1, optimizer__learning_rate=1e-4))
    assert "optimizer.learning_rate: 0.001 -> 0.0001" in out
    root = tmp_path / "data"
    root.mkdir()
    for path in demo.root.iterdir():
        if path.name != "index":
            (root / path.name).symlink_to(path)
    (root / "sft.json").unlink()
    (root / "sft.json").write_bytes((demo.root / "sft.json").read_bytes() + b" ")
    process = demo.main("sft", workdir, train__steps=STEPS + 2, data__root=root)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "was trained on other rows" in err.strip().splitlines()[-1]
