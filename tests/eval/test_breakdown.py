"""What the benchmarks report their scores by: from records as Video-R1's files have them to the report and its page."""

from __future__ import annotations

import json
import re

import pytest

from jvr1.data.records import parse_record
from jvr1.eval.breakdown import DISCIPLINES, MVBENCH_FOLDERS, MVBENCH_TASKS
from jvr1.eval.page import html
from jvr1.eval.report import AskedSuite, build, markdown, tables
from jvr1.eval.suites import BENCHMARKS, open_suites
from jvr1.questions.asking import Asking
from jvr1.questions.replies import Question, reply

BREAKDOWNS = {name: b.breakdown for name, b in BENCHMARKS.items() if b.breakdown is not None and b.file}
SETTINGS = {"model": "m", "primary_mode": "robust"}


def raw(number: int, path: str, **fields) -> dict:
    return {
        "problem_id": number, "problem": "which?", "data_type": "video", "problem_type": "multiple choice",
        "options": ["A. one", "B. two"], "solution": "<answer>A</answer>", "path": path,
    } | fields  # fmt: skip


def mmmu(number: int, **fields) -> dict:
    path = "./Evaluation/VideoMMMU/validation_Art_Theory_4.mp4"
    return raw(number, path, original_question_type="multiple-choice", data_source="https://youtu.be/x", **fields)


def mvbench(number: int, folder: str, **fields) -> dict:
    return raw(number, f"./Evaluation/MVBench/{folder}/v/a.mp4", original_question_type="", **fields)


@pytest.mark.parametrize(
    ("suite", "record", "want"),
    [
        ("videomme", raw(1, "a.mp4", duration="medium", original_question_type="Counting Problem"), "medium"),
        ("videomme", raw(1, "a.mp4", duration="Long"), "long"),
        ("videomme", raw(1, "a.mp4", duration="93 s"), ""),
        ("videomme", raw(1, "a.mp4", duration=93.5), ""),
        ("videomme", raw(1, "a.mp4"), ""),
        ("tempcompass", raw(1, "a.mp4", dim="attribute_change"), "attribute_change"),
        ("tempcompass", raw(1, "a.mp4", dim="Attribute change"), "attribute_change"),
        ("tempcompass", raw(1, "a.mp4", dim="event order"), "order"),
        ("tempcompass", raw(1, "a.mp4", dim="colour"), ""),
        # Video-R1's file: 1 to 300, to 600, to 900
        ("videommmu", mmmu(1), "adaptation"),
        ("videommmu", mmmu(300), "adaptation"),
        ("videommmu", mmmu(301), "comprehension"),
        ("videommmu", mmmu(600), "comprehension"),
        ("videommmu", mmmu(601), "perception"),
        ("videommmu", mmmu(900), "perception"),
        ("videommmu", mmmu(901), ""),
        ("videommmu", mmmu(0), ""),
        ("videommmu", mmmu(7) | {"path": "own.mp4"}, ""),
        ("videommmu", mmmu(7) | {"problem_id": "7"}, ""),
        ("videommmu", mmmu(1, track="Perception"), "perception"),
        ("videommmu", raw(5000, "own.mp4", question_type="Comprehension"), "comprehension"),
        ("mvbench", mvbench(1, "ssv2_video"), "action_antonym"),
        ("mvbench", mvbench(200, "ssv2_video"), "action_antonym"),
        ("mvbench", mvbench(839, "star/Charades_v1_480"), "action_sequence"),
        ("mvbench", mvbench(1924, "Moments_in_Time_Raw"), "fine_grained_action"),
        ("mvbench", mvbench(3376, "perception"), "object_shuffle"),
        ("mvbench", mvbench(3990, "FunQA_test/test"), "unexpected_action"),
        ("mvbench", mvbench(1, "perception"), ""),  # numbered otherwise than the published file
        ("mvbench", mvbench(4001, "FunQA_test"), ""),
        ("mvbench", mvbench(4001, "own") | {"task_type": "Object Shuffle"}, "object_shuffle"),
        ("mmvu", raw(1, "./Evaluation/MMVU/videos/Chemistry/0.mp4"), "Science"),
        ("mmvu", raw(1, "./Evaluation/MMVU/videos/Law/3.mp4"), "Humanities & Social Sciences"),
        ("mmvu", raw(1, "Chemistry.mp4"), ""),
    ],
)
def test_the_group_of_a_record(suite, record, want):
    breakdown = BREAKDOWNS[suite]
    assert breakdown.group(parse_record(record)) == want
    assert want in (*breakdown.groups, "")


def test_the_groups_are_as_many_as_the_benchmarks_have():
    sizes = {"videomme": 3, "tempcompass": 5, "videommmu": 3, "mvbench": 20, "mmvu": 4}
    assert {name: len(breakdown.groups) for name, breakdown in BREAKDOWNS.items()} == sizes
    assert list(MVBENCH_TASKS) == sorted(MVBENCH_FOLDERS)  # the order of the numbers
    assert sum(len(subjects) for subjects in DISCIPLINES.values()) == 27


def asked(root, suite: str, records: list[dict], answers: list[str | None]) -> AskedSuite:
    """Written as the suite's file and read, then answered; None: could not be asked."""
    (root / f"eval_{suite}.json").write_text(json.dumps(records))
    (opened,) = open_suites([suite], str(root))
    questions = {}
    for (i, record), answer in zip(opened.records.items(), answers, strict=True):
        replies = tuple(
            reply(variant, 0, f"<think>so</think><answer>{text}</answer>", 9, True, record.solution,
                  record.problem_type, record.options)
            for variant, text in (("ordered", answer or ""), ("shuffled", "B"))
        )  # fmt: skip
        questions[i] = Question(record, "missing: x" if answer is None else None, replies if answer else (), i)
    return AskedSuite(opened, questions)


@pytest.fixture
def report_and_asked(tmp_path):
    videomme = [raw(i, "a.mp4", duration=d) for i, d in enumerate(["long", "short", "long", "short", "medium", ""])]
    tempcompass = [raw(i, "a.mp4", dim=d) for i, d in enumerate(["speed", "order", "speed"])]
    mmvu = [raw(i, "videos/x.mp4") for i in range(2)]
    found = [
        asked(tmp_path, "videomme", videomme, ["A", "one", "B", "A", None, "A"]),
        asked(tmp_path, "tempcompass", tempcompass, ["A", "B", "A"]),
        asked(tmp_path, "mmvu", mmvu, ["A", "A"]),
    ]
    return build(found, Asking(("ordered", "shuffled")), SETTINGS, "robust", None), found


def test_the_report_has_the_numbers_of_each_group(report_and_asked):
    report, _ = report_and_asked
    videomme = report["benchmarks"]["videomme"]["breakdown"]
    assert videomme["by"] == "duration"
    numbers = {
        name: (g["questions"], g["answered"], *(g["accuracy"][m]["value"] for m in ("eval-reference", "robust")))
        for name, g in videomme["groups"].items()
    }
    assert numbers == {
        "short": (2, 2, 0.5, 1.0), "medium": (1, 0, None, None), "long": (2, 2, 0.5, 0.5), "not said": (1, 1, 1.0, 1.0),
    }  # fmt: skip
    assert list(numbers) == ["short", "medium", "long", "not said"]
    groups = report["benchmarks"]["tempcompass"]["breakdown"]["groups"]
    assert list(groups) == ["speed", "order"]  # those that there are, in the benchmark's order
    assert groups["speed"]["variants"]["shuffled"]["gap"]["robust"]["value"] == 1
    assert "breakdown" not in report["benchmarks"]["mmvu"]  # no path says a subject
    json.dumps(report)


def test_the_tables_show_the_groups(report_and_asked):
    report, found = report_and_asked
    made = {table.title: table for table in tables(report)}
    rows = [[cell.text for cell in row] for row in made["As the benchmarks break it down"].rows]
    assert [row[:3] for row in rows] == [
        ["VideoMME (wo sub)", "duration: short", "2 of 2"],
        ["VideoMME (wo sub)", "duration: medium", "0 of 1"],
        ["VideoMME (wo sub)", "duration: long", "2 of 2"],
        ["VideoMME (wo sub)", "duration: not said", "1 of 1"],
        ["TempCompass", "dimension: speed", "2 of 2"],
        ["TempCompass", "dimension: order", "1 of 1"],
    ]
    assert rows[4][4].startswith("100.0 [")
    reliance = [[cell.text for cell in row] for row in made["Temporal reliance"].rows]
    assert ["TempCompass", "dimension: speed", "2"] in [row[:3] for row in reliance]
    assert "| TempCompass | dimension: order | 1 of 1 | 0.0 [" in markdown(report)
    page = html(report, found, lambda record: [], 0)
    assert re.search(r"<h2>As the benchmarks break it down</h2>.*?duration: long.*?dimension: speed", page, re.S)


def test_where_nothing_says_a_group_there_is_no_table(tmp_path):
    one = asked(tmp_path, "mmvu", [raw(0, "videos/x.mp4")], ["A"])
    report = build([one], Asking(), SETTINGS, "robust", None)
    assert "As the benchmarks break it down" not in [table.title for table in tables(report)]
