"""Solutions that cannot be scored are counted by kind before a run."""

from dataclasses import dataclass, field

import pytest

from jvr1.rl.golds import doubt, doubts


@dataclass(frozen=True)
class One:
    problem_type: str
    solution: str
    options: tuple[str, ...] = ("A. red", "B. blue")
    further: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("kind", "solution", "what"),
    [
        ("multiple choice", "<answer>A</answer>", None),
        ("multiple choice", "<answer>(B) blue</answer>", None),
        ("multiple choice", "<answer>C</answer>", "names a letter that is no option"),
        ("multiple choice", "<answer>A, D</answer>", "names a letter that is no option"),
        ("multiple choice", "<answer>green</answer>", "names no option"),
        ("multiple choice", "<answer>red</answer>", None),
        ("multiple choice", "A", "stands without <answer> tags"),
        ("free-form", "a dog", "stands without <answer> tags"),
        ("free-form", "<answer>a dog", "has an empty answer"),
        ("free-form", "<answer> </answer>", "has an empty answer"),
        ("free-form", "<answer>nan</answer>", "is no value"),
        ("OCR", "<answer>None</answer>", "is no value"),
        ("free-form", "<answer>a dog</answer>", None),
        ("numerical", "<answer>5 km</answer>", None),
        ("numerical", "<answer>1e999</answer>", "is not one number"),
        ("numerical", "<answer>5-7</answer>", "is not one number"),
        ("regression", "<answer>five</answer>", "is not one number"),
        ("regression", "<answer>inf</answer>", "is no value"),
    ],
)
def test_what_is_doubtful(kind, solution, what):
    assert doubt(One(kind, solution)) == what


def test_options_with_other_letters_or_none():
    assert doubt(One("multiple choice", "<answer>E</answer>", ("E. red", "F. blue"))) is None
    assert doubt(One("multiple choice", "<answer>B</answer>", ("red", "blue"))) is None
    assert doubt(One("multiple choice", "<answer>C</answer>", ("red", "blue"))) == "names a letter that is no option"


def test_counted_by_kind_with_the_first_of_each():
    records = [
        One("OCR", "<answer>x</answer>"),
        One("OCR", "x"),
        One("numerical", "<answer>x</answer>"),
        One("OCR", "y"),
    ]
    assert doubts(records).splitlines() == [
        "  solution       2  stands without <answer> tags (such as record 1)",
        "  solution       1  is not one number (such as record 2)",
    ]
    assert doubts(records[:1]) == ""
