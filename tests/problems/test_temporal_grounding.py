"""Temporal grounding, from the prompt to the report: IoU against torchvision's boxes, the readings, the numbers."""

from __future__ import annotations

import random
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases_of_kinds import SETTINGS, asked_of, headline, prompt_of
from torchvision.ops import box_iou

from jvr1.data.inspection import gold_doubt
from jvr1.data.records import parse_record
from jvr1.eval.report import build
from jvr1.problems.grounding import temporal_iou, time_spans
from jvr1.questions.asking import Asking
from jvr1.rl import tgrpo
from jvr1.rl.rewards import MODES, score

KIND = "temporal grounding"


def record(number: int, solution: str, **more):
    raw = {
        "problem_id": number, "problem": "When does the man sit down?", "data_type": "video", "problem_type": KIND,
        "solution": solution, "path": "a.mp4", "data_source": "charades", **more,
    }  # fmt: skip
    return parse_record(raw)


def test_iou_equals_that_of_boxes_of_height_one():
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        a, b = (sorted(round(rng.uniform(0, 60), rng.choice([0, 1, 2])) for _ in range(2)) for _ in range(2))
        boxes = [torch.tensor([[start, 0.0, end, 1.0]], dtype=torch.float64) for start, end in (a, b)]
        want = box_iou(*boxes).item() if a[0] < a[1] and b[0] < b[1] else 0.0
        got = temporal_iou(f"[{a[0]}, {a[1]}]", f"{b[0]} to {b[1]}")
        assert got == pytest.approx(want, abs=1e-12)
        assert temporal_iou(f"[{a[0]}, {a[1]}]", f"[{a[0]}, {a[1]}]") == float(a[0] < a[1])
        seen.add(min(1, round(want * 4)))
    assert seen == {0, 1}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *((form, (12.5, 17.0)) for form in ("[12.5, 17.0]", "(12.5,17)", "12.5 - 17", "12.5–17", "[ 12.5 , 17.0 ]")),
        *((form, (12.5, 17.0)) for form in ("From 12.5 to 17 seconds.", "between 12.5s and 17s", "0:12.5 to 00:17")),
        *((form, (12.5, 17.0)) for form in ("［１２.５, １７.０］", "12.5 sec - 17 sec", "<12.5> to <17.0>")),
        *((form, (12.5, 17.0)) for form in ('{"start": 12.5, "end": 17}', "{'start_time': '12.5', 'end_time': '17'}")),
        *((form, (12.5, 17.0)) for form in ("start: 12.5, end: 17.0", "It starts at 12.5 s and ends at 17 s.")),
        *((form, (12.5, 17.0)) for form in ("Start time = 12.5s; end time = 17s", "```json\n[12.5, 17]\n```")),
        *((form, (12.5, 17.0)) for form in ("The given query happens in 12.5 - 17 seconds.", "12.5 ~ 17.0")),
        *((form, (12.5, 17.0)) for form in ("The man sits down from 12.5 to 17.0 of the video", "[[12.5, 17]]")),
        ("1:05 - 1:20", (65.0, 80.0)),
        ("[00:12, 01:05]", (12.0, 65.0)),
        ("1:00:01 to 1:00:03", (3601.0, 3603.0)),
        ("[[1, 2], [5, 8.5]]", [(1.0, 2.0), (5.0, 8.5)]),
        ("1-2 s and 5-8.5 s", [(1.0, 2.0), (5.0, 8.5)]),
        ("from 1 to 2, and from 5 to 8.5", [(1.0, 2.0), (5.0, 8.5)]),
        ("between 1 and 2; between 5 and 8.5", [(1.0, 2.0), (5.0, 8.5)]),
        ('[{"start": 1, "end": 2}, {"start": 5, "end": 8.5}]', [(1.0, 2.0), (5.0, 8.5)]),
        ("(1, 2) (5, 8.5)", [(1.0, 2.0), (5.0, 8.5)]),
        *((form, None) for form in ("1, 2, 5, 8", "not from 1 to 2", "before 1 to 2", "frames 12 to 40")),
        ("[1, 2] [8, 5]", None),
        # nothing, one time, three, the wrong way round, no length, below 0, minutes, clocks that are none
        *((form, None) for form in ("", "at 12.5", "12.5", "[1, 2, 3]", "[17, 12.5]", "[5, 5]", "-5 to 3", "[-5, 3]")),
        *((form, None) for form in ("1 to 2 minutes", "1:75 - 1:80", "nan to inf", "[1e3, 2e3]", "5 to 9 or 7 to 8")),
        ("9" * 5000 + " to " + "9" * 5000, None),
    ],
)  # fmt: skip
def test_readings(text, want):
    assert time_spans(text) == ([] if want is None else want if isinstance(want, list) else [want])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *((form, [(12.0, 40.0)]) for form in ("[12, 40]", "frames 12 to 40", "from frame 12 to frame 40", "12-40")),
        *((form, [(12.0, 40.0)]) for form in ("It is in frames 12 to 40.", "start frame: 12, end frame: 40")),
        *((form, []) for form in ("12 s to 40 s", "0:12 - 0:40", "[40, 12]")),
    ],
)
def test_readings_in_frames(text, want):
    assert time_spans(text, frames=True) == want


def test_several_spans_count_by_what_they_cover_together():
    """Against the share of a fine grid of times."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        sides = []
        for count in rng.integers(1, 4, 2):
            ends = np.sort(rng.integers(0, 40, (count, 2)), axis=1)
            sides.append([(int(a), int(b) + 1) for a, b in ends])
        inside = [{t for a, b in side for t in range(a, b)} for side in sides]
        texts = [", ".join(f"[{a}, {b}]" for a, b in side) for side in sides]
        want = len(inside[0] & inside[1]) / len(inside[0] | inside[1])
        assert temporal_iou(*texts) == pytest.approx(want, abs=1e-12)
        assert temporal_iou(texts[0], texts[0]) == 1


def test_the_record_says_the_unit():
    frames, clock = record(0, "<answer>[12, 40]</answer>", time_unit="frames"), record(0, "x", time_unit="mm:ss")
    assert prompt_of(frames).endswith(" (e.g., [12, 40]) within the <answer> </answer> tags.")
    assert prompt_of(clock).endswith("minutes and seconds (e.g., [00:12, 01:05]) within the <answer> </answer> tags.")
    for answer, want in (("frames 12 to 40", 1.0), ("12 s to 40 s", 0.0)):
        for mode in MODES:
            found = score(f"<answer>{answer}</answer>", frames.solution, KIND, mode, facts=frames.further)
            assert found.accuracy == want
    assert gold_doubt(frames) is None


def test_what_is_right_counts_as_right():
    """An IoU of 0.95 was 0.27 and one of 0.12 was 0.70 where such answers were numbers."""
    near, far = (score(f"<answer>{a}</answer>", "[10, 20]", KIND).accuracy for a in ("[10.5, 20]", "[18.8, 28.6]"))
    assert (near, far) == (pytest.approx(0.95), pytest.approx(1.2 / 18.6))
    rewards = tgrpo.correct(jnp.asarray([near, far], jnp.float32), tgrpo.TGRPOConfig())
    assert rewards.tolist() == [1.0, 0.0]


def test_the_prompt_asks_for_an_interval():
    text = prompt_of(record(0, "<answer>[1, 2]</answer>"))
    assert text.startswith("When does the man sit down?\nPlease think about")
    assert text.endswith(
        " Please provide the start and end time in seconds (e.g., [12.5, 17.0]) within the <answer> </answer> tags."
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_reward_is_the_iou_of_the_answer(mode):
    def given(completion: str, gold: str = "<answer>[10, 20]</answer>") -> float:
        return score(completion, gold, KIND, mode).accuracy

    assert given("<think>from 10 to 20</think>\n<answer>[15, 20]</answer>") == 0.5
    assert given("<think>so</think>\n<answer>10 to 20 s</answer>") == 1
    assert given("<think>so</think>\n<answer>[30, 40]</answer>") == 0
    assert given("<think>so</think>\n<answer></answer>") == given("") == given("<answer>[10, 20]</answer>", "") == 0
    # as everywhere, only Video-R1's evaluation takes an output without tags for an answer
    assert given("[10, 20]") == float(mode == "eval-reference")


def test_solutions_that_are_no_interval_are_counted():
    records = [record(i, f"<answer>{gold}</answer>") for i, gold in enumerate(["[1, 2]", "[2, 1]", "3"])]
    assert [gold_doubt(one) for one in records] == [None, "is no interval", "is no interval"]


def test_its_evaluation_has_mean_iou_and_recalls():
    """IoUs 1, 0.5, 0.3, 0 and, of a question's two samples, 0.8 and 0."""
    answers = [("[0, 10]", "[0, 10]"), ("[0, 5]", "[0, 5]"), ("[7, 10]", "[7, 10]"), ("?", "?"), ("[0, 8]", "")]
    records = [record(i, "<answer>[0, 10]</answer>") for i in range(len(answers))]
    asked = asked_of(records, answers)
    report = build([asked], Asking(samples=2, temperature=1.0), SETTINGS, "robust", None)
    benchmark = report["benchmarks"]["own"]
    want = {"mIoU": (1 + 0.5 + 0.3 + 0.4) / 5, "R@0.3": 3.5 / 5, "R@0.5": 2.5 / 5, "R@0.7": 1.5 / 5}
    for mode in ("robust", "eval-reference"):
        for name, value in want.items():
            found = benchmark[f"{KIND}: {name}"][mode]
            assert found["value"] == pytest.approx(value), (name, mode)
            assert found["n"] == 5
            assert found["low"] < value < found["high"]
    assert benchmark["accuracy"]["robust"]["value"] == pytest.approx(want["mIoU"])
    rows = headline(report)
    assert [row[0] for row in rows[1:5]] == [f"own, its {KIND} questions: {name}" for name in want]
    assert [re.match(r"[\d.]+", row[3])[0] for row in rows[1:5]] == ["44.0", "70.0", "50.0", "30.0"]
