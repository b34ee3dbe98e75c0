"""How the processes of a run end: alike, soon, and with the cause in every log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY, STEPS, free_port

from jvr1.distributed import different


def pair(environment: dict[str, str], deed: str, values=("same", "same")) -> tuple[list[int], list[str]]:
    """Codes and stderr of two processes."""
    where = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/processes/pair.py", str(i), where, deed, values[i]],
            env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture
def environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "values", "codes", "lines"),
    [
        ("done", ("same", "same"), [0, 0], ["", ""]),
        ("differs", ("0", "1"), [2, 2], ["process 1 was started otherwise than process 0: seed: 0 -> 1. All"] * 2),
        ("count", ("2", "3"), [2, 2], ["process 1 was started otherwise than process 0: --processes: 2 -> 3"] * 2),
        (
            "mistake",
            ("same", "same"),
            [2, 2],
            [
                "process 0 of 2 ends: process 1 did (checkpoint 8 could not be written: No space left on device)",
                "checkpoint 8 could not be written: No space left on device",
            ],
        ),
        (
            "mistake of the first",
            ("same", "same"),
            [2, 2],
            ["no space", "process 1 of 2 ends: process 0 did (no space)"],
        ),
        (
            "crash",
            ("same", "same"),
            [75, 1],
            ["process 0 of 2 ends: process 1 did (ValueError: a fault of the code)", "ValueError: a fault of the code"],
        ),
        ("told to stop", ("same", "same"), [75, 75], ["", ""]),
        ("killed", ("same", "same"), [75, -9], ["process 0 of 2 lost a peer", ""]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_all_end_with_the_documented_code_and_the_cause(environment, deed, values, codes, lines):
    got, said = pair(environment, deed, values)
    assert got == codes, said
    for line, text in zip(lines, said, strict=True):
        assert line in text
        assert bool(line) == ("error" in text.lower()), text
        assert "Traceback" not in text or deed == "crash"


def other_rows(demo, folder: Path) -> Path:
    """The demo's data with one question less."""
    folder.mkdir()
    for path in demo.root.iterdir():
        if path.name in ("media", "valid.json"):
            (folder / path.name).symlink_to(path)
    (folder / "sft.json").write_text(json.dumps(json.loads((demo.root / "sft.json").read_text())[1:]))
    return folder


def test_a_training_begun_otherwise_on_one_process_does_not_begin(demo, tmp_path):
    ends = []
    for changes in (
        {"seed": 1, "optimizer__learning_rate": 0.5, "train__steps": 7},
        {"data__root": other_rows(demo, tmp_path / "data")},
    ):
        where = ["--processes=2", f"--coordinator=localhost:{free_port()}"]
        commands = [demo.arguments("sft", tmp_path / "run", **own) for own in ({}, changes)]
        both = [demo.start(["-mjvr1.train_sft"], [*own, *where, f"--process={i}"]) for i, own in enumerate(commands)]
        ends.append([(process.communicate(timeout=120)[1], process.returncode) for process in both])
    settings, data = ends
    assert [code for _, code in [*settings, *data]] == [2] * 4
    assert settings[0] == settings[1]
    assert data[0] == data[1]
    told = ["optimizer.learning_rate: 0.001 -> 0.5", "seed: 0 -> 1", f"train.steps: {STEPS} -> 7"]
    assert settings[0][0] == (
        f"error: process 1 was started otherwise than process 0: {'; '.join(told)}. "
        "All processes need the same command, code and files\n"
    )
    assert data[0][0].startswith("error: process 1 was started otherwise than process 0: sft.json: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_first_differences_are_named():
    first = {"a": 1, "b": [1], "c": None, "d": "x", "e": 1, "f": 1}
    assert different(first, first) == []
    assert different(first, first | {"b": [2]}) == ["b: [1] -> [2]"]
    assert different(first, {"a": 1}) == ["b: [1] -> None", "d: x -> None", "e: 1 -> None", "f: 1 -> None"]
    assert different(first, {n: 0 for n in first})[-1] == "and 2 more"
