"""The evaluation's command line: the same numbers as validation in training, files, refusals."""

from __future__ import annotations

import json

import pytest
from runs import STEPS, scalars


def evaluate(demo, out, *arguments: str):
    base = ["--suite=valid.json", f"--data={demo.root}", f"--out={out}"]
    process = demo.start(["-mjvr1.evaluate"], [*base, *arguments])
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def test_a_workdir_evaluates_as_its_own_validation_did(demo, tmp_path):
    workdir = demo.finished("rl").workdir
    code, stdout, stderr = evaluate(demo, tmp_path / "out", f"--model={workdir}")
    assert code == 0, stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").open()]
    logged = scalars(workdir)
    for task, summary in report["tasks"].items():
        for name in ("ordered", "shuffled", "format", "length", "questions"):
            if summary[name] is not None:
                assert dict(logged[f"valid/{task}/{name}"])[STEPS] == pytest.approx(summary[name], rel=1e-6)
    questions = json.loads((demo.root / "valid.json").read_text())
    assert {a["problem_id"] for a in answers} == {q["problem_id"] for q in questions}
    videos = {q["problem_id"] for q in questions if q["data_type"] == "video"}
    assert {a["problem_id"] for a in answers if a["variant"] == "shuffled"} == videos
    assert len(answers) == len(questions) + len(videos)
    assert "| order |" in stdout
    assert report["settings"]["batch"]["micro"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=MODEL"], "is no workdir, so it does not say how questions are put; name a --config"),
        (["--model=WORKDIR", "--suite=none.json"], "none.json"),
        (["--model=WORKDIR", "--out=FILE/out"], "is a file"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(demo, tmp_path, arguments, message):
    (tmp_path / "file").write_text("mine")
    places = {"MODEL": demo.model, "WORKDIR": demo.finished("rl").workdir, "FILE": tmp_path / "file"}
    for name, place in places.items():
        arguments = [a.replace(name, str(place)) for a in arguments]
    code, _, stderr = evaluate(demo, tmp_path / "out", *arguments)
    assert code == 2
    assert message in stderr.strip().splitlines()[-1]
    assert stderr.startswith("error: ")
    assert not (tmp_path / "out" / "report.json").exists()
