"""The table of problem kinds: a user's own joins it, and all that asks the table knows the kind."""

from __future__ import annotations

import pytest
from cases_of_kinds import SETTINGS, asked_of, headline, prompt_of

from jvr1.data.inspection import gold_doubt
from jvr1.data.records import parse_record
from jvr1.errors import UserError
from jvr1.eval.report import build
from jvr1.problems.kinds import KINDS, load_kinds
from jvr1.questions.asking import Asking
from jvr1.rl.rewards import MODES, score

OWN = "train.own_kind"  # tests/ is on the path


@pytest.fixture(autouse=True)
def table():
    """Whatever a test puts into the table is gone after it."""
    kept = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(kept)


def raw(number: int, solution: str = "<answer>red</answer>", kind: str = "shade") -> dict:
    return {
        "problem_id": number, "problem": "which shade?", "data_type": "text", "problem_type": kind,
        "solution": solution, "data_source": "own",
    }  # fmt: skip


def test_a_kind_of_a_user_s_is_known_everywhere():
    with pytest.raises(UserError, match=r"field 'problem_type' must be one of multiple choice, .*; got 'shade'"):
        parse_record(raw(0))
    (kind,) = load_kinds([f"{OWN}:SHADE"])
    assert load_kinds([f"{OWN}:SHADE"]) == (kind,)
    records = [parse_record(raw(0)), parse_record(raw(1, "<answer>light blue</answer>"))]
    assert prompt_of(records[0]).endswith("</answer> tags. Name the shade in one word.")
    assert [gold_doubt(one) for one in records] == [None, "is not one word"]
    for mode in MODES:
        accuracies = [score(f"<answer>{t}</answer>", records[0].solution, "shade", mode) for t in ("RED", "rose", "")]
        assert [s.accuracy for s in accuracies] == [1.0, 0.5, 0.0]


def test_its_metrics_stand_in_the_report_beside_those_of_other_kinds():
    load_kinds([f"{OWN}:SHADE"])
    records = [parse_record(raw(0)), parse_record(raw(1)), parse_record(raw(2, "<answer>10</answer>", "regression"))]
    report = build([asked_of(records, [("red",), ("rose",), ("10",)])], Asking(), SETTINGS, "robust", None)
    own = report["benchmarks"]["own"]
    assert own["problem_types"]["shade"]["accuracy"]["robust"]["value"] == 0.75
    assert own["shade: first letter"]["robust"] | {"low": 0, "high": 0} == {
        "value": 1.0, "low": 0, "high": 0, "n": 2, "interval": "wilson",
    }  # fmt: skip
    assert own["accuracy_without_regression"]["robust"]["value"] == 0.75
    assert own["mean_relative_accuracy"]["robust"]["n"] == 1
    assert [row[0] for row in headline(report)] == [
        "own", "own, its regression questions: mean relative accuracy", "own, its other questions: accuracy",
        "own, its shade questions: first letter",
    ]  # fmt: skip


def test_a_value_that_is_no_share_is_refused():
    load_kinds([f"{OWN}:BEYOND"])
    with pytest.raises(UserError, match=r"the problem kind 'beyond' scores 'nan' nan; it must be from 0 to 1"):
        score("<answer>nan</answer>", "<answer>1</answer>", "beyond", "robust")
    assert score("<answer>0.25</answer>", "<answer>1</answer>", "beyond", "robust").accuracy == 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shade", "holds 'shade', not of the form module:name"),
        (f"{OWN}:", "not of the form module:name"),
        ("no_such_module:SHADE", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{OWN}:MISSING", "cannot be loaded: AttributeError"),
        (f"{OWN}:NOTHING", "is a str, no Kind of jvr1/problems/kinds.py"),
        (f"{OWN}:BUILT_IN", "is called 'OCR', and there is another kind of that name"),
        (f"{OWN}:OTHER", "is called 'shade', and there is another kind of that name"),
    ],
)
def test_a_mistake_is_one_line(spec, message):
    load_kinds([f"{OWN}:SHADE"])
    before = dict(KINDS)
    with pytest.raises(UserError) as error:
        load_kinds([spec])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert before == KINDS
