"""What a run says at its start and with each step, in its piped output: true numbers, in lines of their own."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from runs import OF_STAGE, SETTINGS, STEPS

from jvr1 import __version__
from jvr1.starting import aligned, amount


@pytest.fixture(scope="module")
def run(demo):
    return demo.finished("rl")


@pytest.fixture(scope="module")
def told(run) -> dict[str, list[str]]:
    """Label -> its lines, of the block that the run begins with."""
    lines = run.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("run   "))
    found: dict[str, list[str]] = {}
    label = ""
    for line in lines[start:]:
        label = line[:12].strip() or label
        if label not in LABELS:
            break
        found.setdefault(label, []).append(line[12:])
    return found


LABELS = (
    "run", "devices", "mesh", "model", "parameters", "rows", "buckets", "steps", "memory", "workdir", "to see"
)  # fmt: skip


def test_every_line_is_there_in_order(told):
    assert tuple(told) == LABELS
    assert told["run"] == [f"train-rl, jvr1 {__version__}"]
    assert told["devices"] == ["1 x cpu"]


def test_rows_are_those_of_the_file(told, demo):
    records = json.loads((demo.root / "rl.json").read_text())
    kinds = Counter(r["data_type"] for r in records if r["data_type"] != "text")  # there is no bucket for texts
    (line,) = told["rows"]
    assert line.startswith(f"{sum(kinds.values())} of {len(records)} kept: ")
    assert all(f"{count} {kind}" in line for kind, count in kinds.items())
    rows = [int(line.split(": ")[1].split()[0]) for line in told["buckets"]]
    assert sum(rows) == sum(kinds.values())
    assert len(rows) == len(OF_STAGE["rl"]["data.buckets"])
    micro, per_step = SETTINGS["batch.micro"], SETTINGS["batch.per_step"]
    epoch = math.ceil(sum(math.ceil(n / micro) for n in rows) / per_step)
    (steps,) = told["steps"]
    assert steps == (
        f"{STEPS} of {micro * per_step} prompts ({per_step} x {micro}), {OF_STAGE['rl']['rl.group']} + "
        f"{OF_STAGE['rl']['rl.shuffled']} shuffled completions each; an epoch is {epoch} steps"
    )


def test_where_things_are(told, run, demo):
    assert told["workdir"] == [f"{run.workdir}, new"]
    assert told["to see"] == [f"tensorboard --logdir {run.workdir / 'tensorboard'}", f"jvr1 report {run.workdir}"]
    assert f"Qwen2.5-VL from {demo.model}" in told["model"][0]


def test_a_line_a_step_and_a_question_now_and_then(run):
    lines = run.out.splitlines()
    steps = [line for line in lines if line.startswith("step ") and f"/{STEPS}  " in line]
    assert [int(line.split("/")[0].split()[1]) for line in steps] == list(range(1, STEPS + 1))
    for name in ("reward", "accuracy", "KL", "length", "gradient", "left"):
        assert f"  {name} " in steps[-1]
    asked = [line for line in lines if " asks: " in line]
    assert [int(line.split()[1]) for line in asked] == [1, 11, 21, 31, 41]
    after = lines[lines.index(asked[0]) + 1]
    assert after.startswith("  reward ")
    assert ", advantage " in after


def test_amounts_are_short():
    assert [amount(n) for n in (943, 943_000, 8_290_000_000)] == ["943", "943 k", "8.29 B"]


def test_labels_stand_in_a_column():
    assert aligned(iter([("a", "x"), ("long", "y"), ("", "z")])) == ["a     x", "long  y", "      z"]


def test_a_supervised_run_counts_its_memory_too(demo):
    (line,) = [line for line in demo.finished("sft").out.splitlines() if line.startswith("memory")]
    assert "GiB a device at the peak, by count: gradients of video-F4" in line
