"""Questions of other benchmarks as they publish them: a small record of each -> our question, its gold, its score."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from jvr1.errors import UserError
from jvr1.eval.breakdown import HOLMES_TYPES, LVBENCH_TYPES
from jvr1.eval.forms import MLVU_TASKS, PUBLISHED_FORMS, TVBENCH_PARTS, TVBENCH_TASKS
from jvr1.eval.report import AskedSuite, build
from jvr1.eval.suites import BENCHMARKS, open_suites
from jvr1.questions.asking import Asking
from jvr1.questions.replies import Question, reply

HOLMES = {
    "video ID": "RSm", "Question ID": 3, "Question Type": "TCI", "Question": "Why does he leave?",
    "Options": {"A": "fear", "B": "hunger"}, "Answer": "B", "Explanation": "..",
}  # fmt: skip
LVBENCH = {
    "key": "Cm73ma6Ibcs", "type": "cartoon", "video_info": {"duration_minutes": 66}, "qa": [
        {"uid": "55", "question": "What year appears in the opening caption?\n(A) 1636\n(B) 1366\n(C) 1363",
         "answer": "C", "question_type": ["key information retrieval"], "time_reference": "00:15-00:19"},
        {"uid": "56", "question": "Who sings?\n(A) a bird\n(B) a man", "answer": "A",
         "question_type": ["entity recognition", "reasoning"], "time_reference": "00:15-00:19"},
    ],
}  # fmt: skip
LONG = {
    "video_id": "86C", "question": "What is on stage?", "question_wo_referring_query": "What?",
    "candidates": ["a dog", "a cat"], "correct_choice": 1, "position": [10], "topic_category": "KG",
    "question_category": "S2E", "level": "L1-Perception", "id": "86C_0", "video_path": "86C.mp4",
    "subtitle_path": "86C_en.json", "duration_group": 600, "starting_timestamp_for_subtitles": 0,
    "duration": 190.16, "view_count": 7,
}  # fmt: skip
MLVU = {
    "video": "movie101_66.mp4", "duration": 246, "question": "What color is the main male character?",
    "candidates": ["Yellow", "Red", "Green"], "answer": "Green", "question_type": "plotQA",
}  # fmt: skip
MATH = {
    "question_id": "q7", "videoID": "v_7", "question": "How large is the angle?", "options": ["A. 30", "B. 45"],
    "answer": "B", "category": "Geometry Angle", "length": "short",
}  # fmt: skip
TV = {"video": "6IL0C.mp4", "question": "When?", "candidates": ["At the end", "At the start"], "answer": "At the start"}


def published(root, name: str) -> None:
    """One question of each form, in the files and folders of the published data."""
    contents: dict[str, dict[str, object]] = {
        "videoholmes": {"Benchmark/test_Video-Holmes.json": [HOLMES], "Benchmark/videos/RSm.mp4": ""},
        "lvbench": {"LVBench/video_info.meta.jsonl": LVBENCH, "LVBench/videos/Cm73ma6Ibcs.mp4": ""},
        "longvideobench": {"LongVideoBench/lvb_val.json": [LONG]},
        "mlvu": {f"MLVU/json/{task}.json": [MLVU] for task in MLVU_TASKS},
        "videomathqa": {"videomathqa_mcq_test.jsonl": MATH, "videos/v_7.MKV": ""},
        "charades": {"charades_sta_test.txt": "3MSZA 24.3 30.4##person turn a light on.\n"},
        "tvbench": {
            f"json/{task}.json": [TV | {"start": 1.5, "end": 9.0}] for task in TVBENCH_TASKS
        },
    }  # fmt: skip
    for file, content in contents[name].items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


WANTED = {
    "videoholmes": ("Why does he leave?\n", ("A. fear", "B. hunger"), "B", "Benchmark/videos/RSm.mp4", "TCI", 1),
    "lvbench": (
        "What year appears in the opening caption?\n", ("A. 1636", "B. 1366", "C. 1363"), "C",
        "LVBench/videos/Cm73ma6Ibcs.mp4", "key information retrieval", 2,
    ),
    "longvideobench": (
        "What is on stage?\n", ("A. a dog", "B. a cat"), "B", "LongVideoBench/videos/86C.mp4", "S2E", 1,
    ),
    "mlvu": (
        "What color is the main male character?\n", ("A. Yellow", "B. Red", "C. Green"), "C",
        "MLVU/video/1_plotQA/movie101_66.mp4", "plotQA", 7,
    ),
    "videomathqa": ("How large is the angle?\n", ("A. 30", "B. 45"), "B", "videos/v_7.MKV", "Geometry Angle", 1),
    "charades": (
        "When does the following happen in the video: person turn a light on.\n", (), "[24.3, 30.4]",
        "Charades_v1_480/3MSZA.mp4", "", 1,
    ),
    "tvbench": (
        "When?\n", ("A. At the end", "B. At the start"), "B", "video/action_antonym/6IL0C.mp4", "action_antonym", 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED_FORMS))
def test_a_published_record_is_our_question(tmp_path, name):
    published(tmp_path, name)
    (suite,) = open_suites([name], str(tmp_path))
    problem, options, gold, path, task, count = WANTED[name]
    record = suite.records[0]
    assert (record.problem, record.options, record.solution) == (problem, options, f"<answer>{gold}</answer>")
    assert (record.path, record.task, record.data_type) == (path, task, "video")
    assert (suite.size, len(suite.faults), suite.title) == (count, 0, BENCHMARKS[name].title)
    assert (tmp_path / suite.file).exists()
    assert len({r.problem_id for r in suite.records.values()}) == count


def numbers(root, name: str, answer: str) -> dict:
    """The report's, where every question gets this answer."""
    (suite,) = open_suites([name], str(root))
    asked = {}
    for i, r in suite.records.items():
        text = f"<think>so</think><answer>{answer}</answer>"
        one = reply("ordered", 0, text, 9, True, r.solution, r.problem_type, r.options)
        asked[i] = Question(r, None, (one,), i)
    settings = {"model": "m", "primary_mode": "robust"}
    return build([AskedSuite(suite, asked)], Asking(), settings, "robust", 16)["benchmarks"][name]


@pytest.mark.parametrize("name", [name for name in PUBLISHED_FORMS if name != "charades"])
def test_right_and_wrong_letters_score(tmp_path, name):
    published(tmp_path, name)
    gold = WANTED[name][2]
    share = {"lvbench": 0.5}.get(name, 1.0)  # the second of LVBench's has another letter
    for mode in ("robust", "eval-reference"):
        assert numbers(tmp_path, name, gold)["accuracy"][mode]["value"] == share
        assert numbers(tmp_path, name, "D")["accuracy"][mode]["value"] == 0.0


def test_charades_is_measured_as_it_is_published(tmp_path):
    """mIoU and the share of IoU of at least 0.3, 0.5, 0.7, as lmms-eval's eval_tvg has it: 24.3 to 30.4 and an answer
    of 24.3 to 28.0 have 3.7 / 6.1 in common."""
    published(tmp_path, "charades")
    found = numbers(tmp_path, "charades", "24.3 - 28.0 seconds")
    named = {key.rpartition(": ")[2]: found[key]["robust"]["value"] for key in found if "temporal grounding" in key}
    assert named == {"mIoU": pytest.approx(3.7 / 6.1), "R@0.3": 1.0, "R@0.5": 1.0, "R@0.7": 0.0}


def test_a_question_of_several_types_counts_in_each(tmp_path):
    published(tmp_path, "lvbench")
    groups = numbers(tmp_path, "lvbench", "A")["breakdown"]["groups"]
    assert {name: g["accuracy"]["robust"]["value"] for name, g in groups.items()} == {
        "entity recognition": 1.0, "key information retrieval": 0.0, "reasoning": 1.0,
    }  # fmt: skip
    assert set(groups) <= set(LVBENCH_TYPES)


@pytest.mark.parametrize(
    ("name", "group"), [("videoholmes", "TCI"), ("longvideobench", "600"), ("videomathqa", "short")]
)
def test_the_benchmark_s_own_groups(tmp_path, name, group):
    published(tmp_path, name)
    assert list(numbers(tmp_path, name, "A")["breakdown"]["groups"]) == [group]
    assert len(HOLMES_TYPES) == 7


@pytest.mark.parametrize("name", ["mlvu", "tvbench"])
def test_the_mean_over_tasks_is_there(tmp_path, name):
    published(tmp_path, name)
    found = numbers(tmp_path, name, WANTED[name][2])
    assert found["mean_over_tasks"]["robust"]["value"] == 1.0
    assert len(found["tasks"]) == WANTED[name][5]


def test_two_tasks_are_about_a_part_of_their_video(tmp_path):
    """What other tasks' files say of a start and an end is not used, as in TVBench's own code."""
    published(tmp_path, "tvbench")
    (suite,) = open_suites(["tvbench"], str(tmp_path))
    parts = {r.task: (r.start, r.end) for r in suite.records.values()}
    assert {task for task, part in parts.items() if part == (1.5, 9.0)} == {"action_localization", "action_sequence"}
    assert {part for task, part in parts.items() if task not in TVBENCH_PARTS} == {(None, None)}


def test_a_question_that_is_none_is_a_fault(tmp_path):
    (tmp_path / "lvb_val.json").write_text(json.dumps([LONG, {k: v for k, v in LONG.items() if k != "correct_choice"}]))
    (suite,) = open_suites(["longvideobench"], str(tmp_path))
    (fault,) = suite.faults
    assert "is not of LongVideoBench's published form: KeyError 'correct_choice'" in fault.message.replace('"', "")
    assert list(suite.records) == [0]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("mlvu", {}, "MLVU: there is no json/1_plotQA.json in any of"),
        ("mlvu", {"json/2_needle.json": "[]"}, "has no json/1_plotQA.json, which is part of MLVU"),
        ("videoholmes", {"test_Video-Holmes.json": "{}"}, "is not the list of questions that Video-Holmes publishes"),
        ("videoholmes", {"test_Video-Holmes.json": "[{"}, "test_Video-Holmes.json cannot be read"),
        ("videoholmes", {"test_Video-Holmes.json": "[]"}, "test_Video-Holmes.json holds no questions"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, name, files, message):
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=r"\w") as error:
        open_suites([name], str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_is_read_as_it_is_published(tmp_path):
    table = pyarrow.Table.from_pylist([MATH | {"steps": None}])
    pyarrow.parquet.write_table(table, tmp_path / "videomathqa_mcq_test.parquet")
    (suite,) = open_suites(["videomathqa"], str(tmp_path))
    (record,) = suite.records.values()
    assert (record.problem_id, record.options, record.aspect) == ("q7", ("A. 30", "B. 45"), "short")
