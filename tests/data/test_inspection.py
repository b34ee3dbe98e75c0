"""What is doubtful in question files: each kind found in its record and field, with what to do about it."""

from dataclasses import replace

import pytest

from jvr1.data.batch import make_buckets
from jvr1.data.fitting import in_buckets
from jvr1.data.index_file import IndexEntry
from jvr1.data.inspection import (
    FIXES,
    counted_lines,
    doubtful_rows,
    gold_doubt,
    inspect_entries,
    inspect_faults,
    inspect_records,
)
from jvr1.data.records import parse_record, read_records
from jvr1.model.media import Probe

RAW = {
    "problem_id": 1, "problem": "Which colour?", "data_type": "video", "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>", "path": "a.mp4",
    "process": "<think>red</think>",
}  # fmt: skip


def one(**changes):
    return parse_record(RAW | changes)


@pytest.mark.parametrize(
    ("kind", "solution", "what"),
    [
        ("multiple choice", "<answer>A</answer>", None),
        ("multiple choice", "<answer>(B) blue</answer>", None),
        ("multiple choice", "<answer>C</answer>", "names a letter that is no option"),
        ("multiple choice", "<answer>A, D</answer>", "names a letter that is no option"),
        ("multiple choice", "<answer>A, B</answer>", "names several options"),
        ("multiple choice, several answers", "<answer>A, B</answer>", None),
        ("multiple choice", "<answer>green</answer>", "names no option"),
        ("multiple choice", "<answer>red</answer>", None),
        ("multiple choice", "A", "stands without <answer> tags"),
        ("free-form", "a dog", "stands without <answer> tags"),
        ("free-form", "<answer>a dog", "has no </answer>"),
        ("free-form", "<answer> </answer>", "has an empty answer"),
        ("free-form", "<answer>nan</answer>", "is no value"),
        ("OCR", "<answer>None</answer>", "is no value"),
        ("free-form", "<answer>a dog</answer>", None),
        ("numerical", "<answer>5 km</answer>", None),
        ("numerical", "<answer>twelve</answer>", "is not one number"),
        ("numerical", "<answer>1e999</answer>", "is not one number"),
        ("numerical", "<answer>5-7</answer>", "is not one number"),
        ("regression", "<answer>five</answer>", "is not one number"),
        ("regression", "<answer>inf</answer>", "is no value"),
        ("temporal grounding", "<answer>[7, 2]</answer>", "is no interval"),
        ("spatial grounding", "<answer>[1, 2]</answer>", "is no box"),
    ],
)
def test_solutions(kind, solution, what):
    record = one(problem_type=kind, solution=solution)
    assert gold_doubt(record) == what
    found = [finding for finding in inspect_records({4: record}) if finding.field == "solution"]
    assert [(f.row, f.problem_id, f.what, f.counted) for f in found] == [(4, 1, what, True)] * (what is not None)
    assert all(finding.fix == FIXES[finding.what] for finding in found)


@pytest.mark.parametrize(
    ("changes", "field", "what"),
    [
        ({"options": ["red", "blue"]}, "options", "have no letters"),
        ({"options": ["A. red", "blue"]}, "options", "have no letters"),
        ({"options": ["A. red", "A. blue"]}, "options", "have letters out of order"),
        ({"options": ["A. red", "B. blue", "D. green"]}, "options", "have letters out of order"),
        ({"options": ["A. red", "B. red"]}, "options", "say the same twice"),
        ({"options": []}, "options", "are none, and the question lists none"),
        ({"options": [], "problem": "Which? A. red B. blue"}, "options", None),
        ({"options": ["E. red", "F. blue"], "solution": "<answer>F</answer>"}, "options", None),
        ({"options": ["A", "B"]}, "options", None),
        ({"options": ["(A) red", "(B) blue"]}, "options", None),
        ({"options": ["red"], "problem_type": "OCR", "solution": "<answer>red</answer>"}, "options", None),
        ({"process": "red"}, "process", "stands without <think> tags"),
        ({"process": "<think>red"}, "process", "stands without <think> tags"),
        ({"process": "<think>red</think></think>"}, "process", "stands without <think> tags"),
        ({"process": "<think>red</think><answer>A</answer>"}, "process", "holds an answer"),
        ({"process": " <think>red\n</think>\n"}, "process", None),
    ],
)
def test_options_and_thoughts(changes, field, what):
    found = [finding for finding in inspect_records({0: one(**changes)}) if finding.field == field]
    assert [(f.what, f.fix, f.counted) for f in found] == ([] if what is None else [(what, FIXES[what], True)])


def test_thoughts_count_where_they_are_learned():
    assert inspect_records({0: one(process="red")}, thoughts=False) == []
    found = inspect_records({0: one(), 1: one(problem_id=2, process=None)})
    assert [(f.row, f.field, f.what, f.counted) for f in found] == [
        (1, "process", "is absent, where other records have one", False)
    ]
    assert inspect_records({0: one(process=None), 1: one(problem_id=2, process=None)}) == []


def test_an_id_that_was_there_is_told_and_not_counted():
    found = inspect_records({0: one(), 3: one(problem_id="1"), 5: one()})
    assert [(f.row, f.what, f.detail, f.counted) for f in found] == [
        (5, "is that of an earlier record", "record 0", False)
    ]
    assert "number the records anew" in found[0].fix


VIDEO = Probe(360, 640, 100, 10.0)
BUCKETS = make_buckets([("video", 4, 8, 600, 100)])


def entries(config, *needs):
    """Of videos that need (temporal steps, prompt tokens, completion tokens), in buckets."""
    made = [IndexEntry(row, (VIDEO,), p, "video", None, f, 8, c) for row, (f, p, c) in enumerate(needs)]
    return in_buckets(made, BUCKETS, config)


def test_what_fits_no_bucket_says_how_much_is_needed_and_allowed(config):
    found = inspect_entries([one()] * 4, entries(config, (4, 600, 100), (5, 600, 1), (4, 601, 1), (4, 9, 101)))
    assert [(f.row, f.field, f.what, f.detail) for f in found] == [
        (1, "path", "fits no bucket", "too many temporal steps: 5, where the video bucket has 4"),
        (2, "problem", "fits no bucket", "too many prompt tokens: 601, where the video bucket has 600"),
        (3, "process", "fits no bucket", "too many completion tokens: 101, where the video bucket has 100"),
    ]
    assert all("data.buckets=auto" in f.fix and f.unusable and not f.counted for f in found)
    assert ["data.auto.completion" in f.fix for f in found] == [False, False, True]
    alone = in_buckets([IndexEntry(0, (), 9, "text", None)], BUCKETS, config)
    assert [(f.field, f.detail, f.fix) for f in inspect_entries([one(data_type="text", path=None)], alone)] == [
        ("data_type", "no text bucket", "add a bucket of this kind, or data.buckets=auto")
    ]


@pytest.mark.parametrize(
    ("error", "field", "what", "fix"),
    [
        ("missing: a.mp4 does not exist", "path", "cannot be used", "put the file there"),
        ("not-a-video: a.mp4: Invalid data", "path", "cannot be used", "set data_type to what the file is"),
        ("corrupt: a.mp4: damaged", "path", "cannot be used", "mend the file"),
        ("visual placeholder: the prompt holds 2", "problem", "cannot be used", "take <|image_pad|>"),
        ("empty-interval: no frame between 9 s and the end", "start", "leaves no frame of the video", "are seconds of"),
    ],
)
def test_media(error, field, what, fix):
    (found,) = inspect_entries([one()], [IndexEntry(0, (), 0, None, error)])
    assert (found.field, found.what, found.unusable) == (field, what, True)
    assert fix in found.fix


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"start": 2, "end": 10.4}, []),
        ({"start": 2, "end": 12}, [("end", "is after the video's end", "12, of 10.0 s", False)]),
        ({"solution": "<answer>[2, 10.9]</answer>"}, []),
        ({"solution": "<answer>[2, 12]</answer>"}, [("solution", "lies beyond the clip", "12, of 10.0 s", True)]),
        (
            {"start": 2, "end": 6, "solution": "<answer>[2, 6]</answer>"},
            [("solution", "lies beyond the clip", "6, of 4.0 s", True)],
        ),
        ({"solution": "<answer>[2, 99]</answer>", "time_unit": "frames"}, []),
        (
            {"solution": "<answer>[2, 140]</answer>", "time_unit": "frames"},
            [("solution", "lies beyond the clip", "140, of 100.0 frames", True)],
        ),
    ],
)
def test_seconds_that_are_not_in_the_video(changes, found):
    record = one(problem_type="temporal grounding", options=None, **{"solution": "<answer>[2, 3]</answer>"} | changes)
    told = inspect_entries([record], [IndexEntry(0, (VIDEO,), 9, "video", None)])
    assert [(f.field, f.what, f.detail, f.counted) for f in told] == found


def test_records_of_another_form_are_named_by_field(tmp_path):
    lines = [RAW, RAW | {"path": None}, RAW | {"start": 9, "end": 5}, [], RAW | {"problem_type": "quiz"}]
    (tmp_path / "a.json").write_text(str(lines).replace("None", "null").replace("'", '"'))
    _, faults = read_records(tmp_path / "a.json")
    found = inspect_faults(faults)
    assert [(f.row, f.field) for f in found] == [(1, "path"), (2, "end"), (3, "record"), (4, "problem_type")]
    assert all(f.unusable and "data.fields" in f.fix for f in found)
    assert "must be above 'start', got 5 after 9" in found[1].detail


def test_counted_by_kind_with_the_records_and_the_fix():
    texts = {row: one(problem_id=row, solution="A", process=None) for row in range(9)}
    found = inspect_records(texts | {9: replace(one(problem_id=9, options=["red", "blue"]), process=None)})
    assert list(counted_lines(found)) == [
        "  solution         9  stands without <answer> tags (record 0, 1, 2, 3, 4, 5, 6, 7, ...); write it as "
        '"<answer>B</answer>"',
        '  options          1  have no letters (record 9); write them as ["A. red", "B. blue"]: the prompt asks for a '
        "letter",
    ]
    assert doubtful_rows(found) == set(range(10))
    assert str(found[0]) == "record 0 (problem_id 0), solution: stands without <answer> tags"
    assert found[0].as_json()["fix"] == FIXES["stands without <answer> tags"]
