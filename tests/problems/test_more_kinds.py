"""Boxes, counts and several right options: IoU against torchvision's, readings, scores, prompts and the report."""

from __future__ import annotations

import random

import pytest
import torch
from cases_of_kinds import SETTINGS, asked_of, prompt_of
from torchvision.ops import box_iou

from jvr1.data.inspection import gold_doubt
from jvr1.data.records import parse_record
from jvr1.eval.report import build
from jvr1.problems.grounding import boxes, spatial_iou
from jvr1.questions.asking import Asking
from jvr1.rl.rewards import MODES, score

BOX = (10.0, 20.0, 110.0, 220.0)


def record(kind: str, solution: str, number: int = 0, **more):
    raw = {
        "problem_id": number, "problem": "Which?", "data_type": "image", "problem_type": kind, "path": "a.png",
        "solution": solution, "data_source": "own", **more,
    }  # fmt: skip
    return parse_record(raw)


def accuracy(kind: str, answer: str, gold: str, *, mode: str = "robust", **how) -> float:
    return score(f"<think>so</think><answer>{answer}</answer>", f"<answer>{gold}</answer>", kind, mode, **how).accuracy


def test_iou_equals_torchvision_s():
    rng = random.Random(0)
    seen = set()
    for _ in range(1000):
        a, b = ([*(rng.randrange(0, 20) for _ in range(2)), *(rng.randrange(20, 40) for _ in range(2))] for _ in "ab")
        a = [x + rng.choice([0, 15]) for x in a]
        a[2], a[3] = max(a[2], a[0] + 1), max(a[3], a[1] + 1)
        want = box_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)).item()
        assert spatial_iou(str(a), str(b)) == pytest.approx(want, abs=1e-12)
        seen.add(round(want * 4))
    assert spatial_iou("[1, 2, 3, 4]", "[1.0, 2.0, 3.0, 4.0]") == 1
    assert spatial_iou("[0, 0, 1, 1]", "[1, 0, 2, 1]") == 0
    assert seen >= {0, 1, 2}


def test_several_boxes_count_by_what_they_cover_together():
    assert spatial_iou("[0, 0, 2, 2], [2, 0, 4, 2]", "[0, 0, 4, 2]") == 1
    assert spatial_iou("[0, 0, 2, 2], [1, 0, 3, 2]", "[0, 0, 4, 2]") == 6 / 8
    assert spatial_iou("[0, 0, 2, 2]", "[0, 0, 2, 2], [10, 10, 12, 12]") == 0.5


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *((form, [BOX]) for form in ("[10, 20, 110, 220]", "(10,20,110,220)", "10, 20, 110, 220")),
        ("[10.0,20.0,110,220]", [BOX]),
        *((form, [BOX]) for form in ("(10,20),(110,220)", "<|box_start|>(10,20),(110,220)<|box_end|>")),
        ("[[10,20],[110,220]]", [BOX]),
        *((form, [BOX]) for form in ('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "a 2nd dog"}]\n```',)),
        *((form, [BOX]) for form in ("x1: 10, y1: 20, x2: 110, y2: 220", '{"bbox": [10, 20, 110, 220]}')),
        ("The dog is at [10, 20, 110, 220].", [BOX]),
        ("[[10, 20, 110, 220], [1, 2, 3, 4]]", [BOX, (1.0, 2.0, 3.0, 4.0)]),
        ("[10, 20, 110, 220] and [1, 2, 3, 4]", [BOX, (1.0, 2.0, 3.0, 4.0)]),
        *((form, []) for form in ("", "a dog", "[10, 20, 110]", "[110, 20, 10, 220]", "[10, 20, 10, 220]")),
        ("[1, 2, 3, 4, 5]", []),
        *((form, []) for form in ("[-10, 20, 110, 220]", "[10, 20, 110, 220] or [1, 2, 3, 4]", "not [1, 2, 3, 4]")),
    ],
)  # fmt: skip
def test_readings_of_boxes(text, want):
    assert boxes(text) == want


@pytest.mark.parametrize("mode", MODES)
def test_a_box_scores_its_iou_and_the_record_says_its_unit(mode):
    kind = "spatial grounding"
    assert accuracy(kind, "[0, 0, 10, 10]", "[0, 0, 10, 20]", mode=mode) == 0.5
    assert accuracy(kind, "somewhere", "[0, 0, 10, 20]", mode=mode) == 0
    assert " in pixels (e.g., [10, 20, 110, 220]) within" in prompt_of(record(kind, "x"))
    assert " from 0 to 1000 (e.g., [100, 200," in prompt_of(record(kind, "x", box_unit="thousandths"))
    golds = ["<answer>[1, 2, 3, 4]</answer>", "<answer>[1, 2, 3]</answer>", "<answer>[1, 2, 3, 1004]</answer>"]
    told = [gold_doubt(record(kind, gold, box_unit="thousandths")) for gold in golds]
    assert told == [None, "is no box", "has a box beyond 1000"]


@pytest.mark.parametrize(
    ("answer", "gold", "want"),
    [
        ("4", "4", 1.0), ("3", "4", 0.75), ("6", "4", 0.5), ("9", "4", 0.0), ("four", "4", 1.0),
        ("Three dogs", "4", 0.75),
        ("0", "0", 1.0), ("1", "0", 0.0), ("zero", "0", 1.0), ("2.5", "4", 0.0), ("-4", "4", 0.0), ("3 or 4", "4", 0.0),
        ("3, 4", "4", 0.0), ("many", "4", 0.0), ("1,000", "1000", 1.0),
    ],
)  # fmt: skip
def test_a_count_is_graded(answer, gold, want):
    assert accuracy("counting", answer, gold) == want


@pytest.mark.parametrize(
    ("answer", "gold", "trained", "evaluated"),
    [
        ("A, C", "A, C", 1.0, 1.0), ("AC", "C, A", 1.0, 1.0), ("(A) and (C)", "A,C", 1.0, 1.0), ("A", "A, C", 0.5, 0.0),
        ("A, B", "A, C", 0.0, 0.0), ("A, B, C", "A, C", 0.0, 0.0), ("B", "A, C", 0.0, 0.0), ("none", "A, C", 0.0, 0.0),
        ("B", "B", 1.0, 1.0),
    ],
)  # fmt: skip
def test_several_right_options(answer, gold, trained, evaluated):
    kind, options = "multiple choice, several answers", ("A. red", "B. blue", "C. green")
    for mode in ("robust", "eval-reference"):
        assert accuracy(kind, answer, gold, mode=mode, options=options) == trained
        assert accuracy(kind, answer, gold, mode=mode, options=options, evaluated=True) == evaluated
    shown = prompt_of(record(kind, gold, options=list(options)))
    assert "Options:\nA. red\nB. blue\nC. green\n" in shown
    assert shown.endswith(" all correct options (e.g., A, C) within the <answer> </answer> tags.")


def test_their_numbers_in_an_evaluation():
    records = [
        record("spatial grounding", "<answer>[0, 0, 10, 10]</answer>", 0),
        record("spatial grounding", "<answer>[0, 0, 10, 10]</answer>", 1),
        record("counting", "<answer>4</answer>", 2),
        record("counting", "<answer>4</answer>", 3),
        record("multiple choice, several answers", "<answer>A, C</answer>", 4, options=["A. x", "B. y", "C. z"]),
    ]
    asked = asked_of(records, [("[0, 0, 10, 4]",), ("[0, 0, 10, 8]",), ("4",), ("5",), ("C",)])
    found = build([asked], Asking(), SETTINGS, "robust", None)["benchmarks"]["own"]
    want = {
        "spatial grounding: mIoU": 0.6, "spatial grounding: R@0.3": 1.0, "spatial grounding: R@0.5": 0.5,
        "spatial grounding: R@0.7": 0.5, "counting: exact": 0.5, "counting: off by one at most": 1.0,
        "multiple choice, several answers: share found, none wrong": 0.5,
    }  # fmt: skip
    for mode in ("robust", "eval-reference"):
        assert {name: found[name][mode]["value"] for name in want} == pytest.approx(want)
    assert found["problem_types"]["counting"]["accuracy"]["robust"]["value"] == pytest.approx(0.875)
    assert found["problem_types"]["multiple choice, several answers"]["accuracy"]["robust"]["value"] == 0
