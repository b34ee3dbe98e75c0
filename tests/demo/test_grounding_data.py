"""The demo's questions of temporal grounding: what is blue when, spans alike, what a time-blind answerer reaches."""

from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from jvr1.data.inspection import gold_doubt
from jvr1.data.records import parse_record
from jvr1.demo.dataset import Settings, Split, items, record, splits
from jvr1.demo.questions import GROUNDING
from jvr1.demo.scenes import PALETTE
from jvr1.problems.grounding import temporal_iou

SPLIT = Split("grounding_sft", GROUNDING, 60, thoughts=True)


def blue_seconds(frames: np.ndarray) -> list[int]:
    """Seconds, two frames each, in which some pixel is blue."""
    shown = (frames == np.asarray(PALETTE["blue"])).all(-1).any((1, 2)).reshape(-1, 2)
    assert (shown[:, 0] == shown[:, 1]).all()
    return np.flatnonzero(shown[:, 0]).tolist()


def test_the_gold_is_when_it_is_blue_and_all_spans_are_alike():
    seen, records = Counter(), []
    for number, item in enumerate(items(SPLIT, 6, 0)):
        question = item.question()
        raw = record(SPLIT, item, question, number, "./a.mp4")
        records.append(parse_record(raw))
        blue = blue_seconds(question.frames)
        assert blue == list(range(blue[0], blue[-1] + 1))
        assert raw["solution"] == f"<answer>{blue[0]} to {blue[-1] + 1}</answer>"
        words = raw["process"].removeprefix("<think>").removesuffix("</think>").split()
        assert [i for i, word in enumerate(words) if word == "blue"] == blue
        seen[blue[0], blue[-1] + 1] += 1
    assert seen == dict.fromkeys(combinations(range(5), 2), 6)
    assert not any(map(gold_doubt, records))


def test_its_ceiling_is_the_best_of_who_sees_no_order():
    every = [f"{a} to {b}" for a, b in combinations(range(5), 2)]
    of_length = defaultdict(list)
    for gold in every:
        of_length[eval(gold.replace("to", "-"))].append(gold)
    best = [max(sum(temporal_iou(guess, gold) for gold in golds) for guess in every) for golds in of_length.values()]
    assert GROUNDING[0].ceiling == pytest.approx(sum(best) / len(every))


def test_its_files_are_made_where_they_are_asked_for():
    named = {split.name: split.size for split in splits(Settings(grounding=512))}
    assert {name: size for name, size in named.items() if "grounding" in name} == {
        "grounding_sft": 512, "grounding_rl": 512, "grounding_valid": 64
    }  # fmt: skip
    assert [s.name for s in splits(Settings())] == [name for name in named if "grounding" not in name]
