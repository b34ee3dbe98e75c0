"""Suites: the published files, other files, tasks, faulty records, refusals."""

from __future__ import annotations

import json

import pytest

from jvr1.errors import UserError
from jvr1.eval.breakdown import by_aspect
from jvr1.eval.report import AskedSuite, build
from jvr1.eval.suites import BENCHMARKS, Benchmark, open_suites
from jvr1.questions.asking import Asking
from jvr1.questions.replies import Question, reply, task_of


def raw(number: int, **changes) -> dict:
    fields = {
        "problem_id": number, "problem": "how many?", "data_type": "video", "problem_type": "regression", "options": [],
        "solution": "<answer>4</answer>", "path": "./Evaluation/a.mp4", "data_source": "VSI-Bench",
    }  # fmt: skip
    return fields | changes


def write(path, *records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


@pytest.mark.parametrize("folder", ["", "Evaluation"])
@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.file])
def test_published_files_are_found_by_name(tmp_path, folder, name):
    write(tmp_path / folder / f"eval_{name}.json", raw(0))
    (suite,) = open_suites([name], str(tmp_path))
    assert (suite.name, suite.size, suite.benchmark) == (name, 1, BENCHMARKS[name])
    assert (tmp_path / suite.file).exists()


def test_the_paper_s_numbers():
    """Video-R1-7B, Table 1 of arXiv 2503.21776: 16, 32, 64 frames."""
    table = {
        "vsibench": (34.6, 35.8, 37.1), "videommmu": (49.8, 52.3, 52.4), "mmvu": (64.2, 63.8, 63.8),
        "mvbench": (62.7, 63.9, 64.8), "tempcompass": (72.6, 73.2, 73.2), "videomme": (57.4, 59.3, 61.4),
    }  # fmt: skip
    assert {name: tuple(b.paper[f] for f in (16, 32, 64)) for name, b in BENCHMARKS.items() if b.paper} == table


def test_tasks_are_what_the_file_names(tmp_path):
    write(
        tmp_path / "own.json",
        raw(0, original_question_type="object_counting"),
        raw(1, question_type="route_planning"),
        raw(2, task=7),  # other files mean other things by it
        raw(3, data_source=None),
    )
    (suite,) = open_suites(["own.json"], str(tmp_path))
    assert [task_of(r) for r in suite.records.values()] == ["object_counting", "route_planning", "VSI-Bench", "all"]
    assert suite.benchmark is None


def test_videos_that_mvbench_has_as_frames_are_videos(tmp_path):
    write(tmp_path / "eval_mvbench.json", raw(1, data_type="frame"), raw(2, data_type="frames"))
    (suite,) = open_suites(["mvbench"], str(tmp_path))
    assert [r.data_type for r in suite.records.values()] == ["video"]
    assert [f.problem_id for f in suite.faults] == [2]


def test_faulty_records_are_listed_and_the_rest_stays(tmp_path):
    write(tmp_path / "own.json", raw(0), raw(1, problem=" "), "text", raw(3, path="/etc/passwd"), raw(4), {})
    (suite,) = open_suites(["own.json"], str(tmp_path))
    assert list(suite.records) == [0, 4]
    assert [(f.index, f.problem_id) for f in suite.faults] == [(1, 1), (2, None), (3, 3), (5, None)]
    assert "'problem' must be a non-empty string" in suite.faults[0].message
    assert suite.size == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["nosuch"],
            "there is no suite 'nosuch'; use vsibench, videommmu, mmvu, mvbench, tempcompass, videomme, "
            "videoholmes, lvbench, longvideobench, mlvu, videomathqa, charades, tvbench, or question files",
        ),
        (["none.json"], "none.json does not exist"),
        (["mmvu"], "eval_mmvu.json does not exist, nor Evaluation/eval_mmvu.json there"),
        (["own.json", "own.json"], "two suites have the name 'own'"),
        (["empty.json"], "empty.json holds no question that can be asked; record 0: field 'problem'"),
    ],
)
def test_what_is_no_suite_is_one_line(tmp_path, names, message):
    write(tmp_path / "own.json", raw(0))
    write(tmp_path / "empty.json", raw(0, problem=""))
    with pytest.raises(UserError, match=r"\w") as error:
        open_suites(names, str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        open_suites(["mmvu"], str(tmp_path / "nowhere"))


def test_a_benchmark_is_one_line(tmp_path, monkeypatch):
    """Its name, file, published numbers and groups: the report has them without another."""
    line = Benchmark("Own", "eval_own.json", {16: 50.0}, breakdown=by_aspect("length", "short", "very_long"))
    monkeypatch.setitem(BENCHMARKS, "own", line)
    write(
        tmp_path / "eval_own.json", raw(0, aspect="Very long"), raw(1, aspect="short"), raw(2, aspect="other"), raw(3)
    )
    (suite,) = open_suites(["own"], str(tmp_path))
    questions = {}
    for i, record in suite.records.items():
        one = reply("ordered", 0, f"<answer>{8 - 4 * (i == 0)}</answer>", 9, True, record.solution, "regression")
        questions[i] = Question(record, None, (one,), i)
    settings = {"model": "m", "primary_mode": "robust"}
    found = build([AskedSuite(suite, questions)], Asking(), settings, "robust", 16)["benchmarks"]["own"]
    groups = {
        name: (g["answered"], g["accuracy"]["robust"]["value"]) for name, g in found["breakdown"]["groups"].items()
    }
    assert found["breakdown"]["by"] == "length"
    assert groups == {"short": (1, 0.0), "very_long": (1, 1.0), "not said": (2, 0.0)}
    assert (found["title"], found["paper"]["value"]) == ("Own", 0.5)
