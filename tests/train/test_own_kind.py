"""A problem kind of a user's own in the mains, as a user names it: trained on, validated, evaluated, annotated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import TINY, scalars

KINDS = "own_kind:SHADE"  # tests/train is on the path of a demo's runs


@pytest.fixture(scope="module")
def questions(demo) -> Path:
    """Clips of the demo with a question of that kind."""
    known = json.loads((demo.root / "valid.json").read_text())
    clips = [r for r in known if r["data_type"] == "video"][:6]
    asked = {"problem": "which?", "problem_type": "shade", "options": []}
    rows = [r | asked | {"solution": f"<answer>{'red' if i else 'light red'}</answer>"} for i, r in enumerate(clips)]
    path = demo.root / "shades.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def run(demo, questions, tmp_path_factory) -> tuple[Path, str]:
    """A step of T-GRPO on them, read by a worker process, and validation; in the shapes of the demo's other runs."""
    workdir = tmp_path_factory.mktemp("own") / "run"
    changes = {
        "data__train": questions.name, "data__valid": questions.name, "data__kinds": KINDS,
        "data__suffixes": True, "data__workers": 1, "data__max_doubtful": 0.5, "train__steps": 1,
        "train__validate_every": 1, "train__pictures_every": 0,
    }  # fmt: skip
    stdout, stderr = (process := demo.main("rl", workdir, **changes)).communicate()
    assert process.returncode == 0, stderr
    return workdir, stdout


def test_it_is_trained_on_and_its_solutions_are_checked(run):
    workdir, stdout = run
    assert "6 records, 6 kept, 0 dropped" in stdout
    assert "  solution         1  is not one word (record 0); write it as" in stdout
    assert [step for step, _ in scalars(workdir)["accuracy/shade"]] == [1]


def test_a_workdir_evaluates_with_the_kinds_it_was_trained_with(demo, run, tmp_path):
    workdir, _ = run
    arguments = [f"--model={workdir}", "--suite=shades.json", f"--data={demo.root}", f"--out={tmp_path}", "--workers=1"]
    demo.done(["-mjvr1.evaluate"], arguments)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["answered"] == 6
    assert report["settings"]["kinds"] == [KINDS]
    own = report["benchmarks"]["shades"]
    assert own["problem_types"]["shade"]["answered"] == own["shade: first letter"]["robust"]["n"] == 6
    assert "its shade questions: first letter" in (tmp_path / "report.md").read_text()


def test_any_model_annotates_with_kinds_of_the_command_line(demo, questions, tmp_path):
    arguments = [
        f"--model={demo.model}", TINY, f"--data={questions}", f"--root={demo.root}", f"--out={tmp_path / 'own.json'}",
        "--workers=0", "--samples=4", "--temperature=0.7", "--batch=4", "--max-tokens=24",
    ]  # fmt: skip
    said = demo.done(["-mjvr1.annotate"], [*arguments, f"--kinds={KINDS}"])
    assert "of 6 questions annotated with" in said
    assert "0 could not be asked" in said


def test_a_workdir_is_asked_with_its_kinds(demo, questions, run):
    workdir, _ = run
    clip = demo.root / json.loads(questions.read_text())[0]["path"]
    said = demo.done(["-mjvr1.ask"], [f"--model={workdir}", f"--video={clip}", "which?", "--type=shade"])
    assert said.endswith("\n")
