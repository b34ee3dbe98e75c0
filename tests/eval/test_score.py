"""Scores and intervals: thousands of outputs against a second implementation, intervals against scipy and by hand."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from jvr1.data.records import parse_record
from jvr1.eval import score
from jvr1.eval.score import benchmark_summary, majority, summarise_group
from jvr1.questions.replies import Question, Reply, accuracies, reply

MC, NUM, REG, FREE, OCR = "multiple choice", "numerical", "regression", "free-form", "OCR"

# --- the reference's evaluation, written from its description (docs/evaluation.md) ------------------------------------


def expected(output: str, solution: str, kind: str) -> float:
    """What is scored is the first pair of answer tags, or the whole output where that is empty or missing; the gold is
    the solution's. OCR and free-form count nothing."""
    between = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
    found = between.search(output)
    given = found.group(1).strip() if found else ""
    given = given if given != "" else output
    gold = between.search(solution).group(1).strip()
    if kind == MC:
        return 1.0 if given.strip() == gold else 0.0
    if kind == NUM:
        if ("." in gold or "," in gold) != ("." in given or "," in given):
            return 0.0
        a, g = as_number(given), as_number(gold)
        return 1.0 if a is not None and g is not None and round(a, 2) == round(g, 2) else 0.0
    if kind == REG:
        a, g = as_number(given), as_number(gold)
        return 0.0 if a is None or g is None else relative_accuracy(a, g)
    return 0.0


def as_number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def relative_accuracy(answer: float, gold: float) -> float:
    """Ten thresholds, counted one by one in torch's fp32."""
    a, g = torch.tensor([answer], dtype=torch.float32), torch.tensor([gold], dtype=torch.float32)
    off = torch.abs(a - g) / (torch.abs(g) + 1e-8)
    thresholds = torch.arange(0.5, 0.975, 0.05, dtype=torch.float32)
    assert len(thresholds) == 10
    passed = [bool((off < 1 - t).item()) for t in thresholds]
    return torch.tensor(passed, dtype=torch.float32).mean().item()


VALUES = [
    *"ABCDE", "a", "A.", "(A)", "A. the red one", "option B", "A or B", "", " ", "\n", "none", "yes", "Ａ", "Б",
    "0", "-0", "1", "2", "10", "42", "-7", "+7", "7.", ".7", "7.0", "7.00", "3.14", "3.141", "3.146", "2.675", "1e3",
    "1e-3", "1e400", "5,000", "5000", "5,000.0", "1,2,3", "3,14", ",", ".", "nan", "NaN", "-nan", "inf", "-inf",
    "infinity", "50%", "50 %", "50 percent", "1/2", "3/4", "½", "1 1/2", "5 m", "5 km", "$5", "about 5", "five", "٣",
    "−5", "１２", "1_000", "0x10", "12:30", "the cat", "café", "猫が魚を食べる", "naïve 🐱", "a<b", "<b>", "\u00a0 5",
    "5\u2009000", "\\boxed{7}", "\\frac{1}{2}", "7 \\%",
]  # fmt: skip
GOLDS = ["A", "B", "C", "7", "5,000", "5000", "0", "3.14", "2.5", "10", "-7", "0.5", "42.0", "red", "nan", "café", "½"]
FORMS = [
    "<think>{t}</think>\n<answer>{a}</answer>",
    "<think>{t}</think><answer> {a}\n</answer>",
    "<think>{t}</think>\n<answer>{a}</answer> and {b}",
    "<answer>{a}</answer>",
    "{a}",
    " {a} ",
    "<think>{t}</think>{a}",
    "<think>{t}</think><answer>{a}",
    "<think>{t}</think>{a}</answer>",
    "<think>{t}</think><answer>{a}</answer><answer>{b}</answer>",
    "<think><answer>{b}</answer></think><answer>{a}</answer>",
    "<answer><answer>{a}</answer></answer>",
    "<answer></answer><answer>{a}</answer>",
    "<answer>{a}</answer",
    "<ANSWER>{a}</ANSWER>",
    "the answer is {a}",
    "",
]


def outputs():
    """Every value in every form against some golds of every type, and numbers around the gold where ties lie."""
    rng = random.Random(1)
    for form, value in itertools.product(FORMS, VALUES):
        text = form.format(t="so 7 it is", a=value, b=rng.choice(VALUES))
        for kind in (MC, NUM, REG, FREE, OCR):
            gold = value.strip() if rng.random() < 0.5 else rng.choice(GOLDS)
            yield text, gold, kind
    for gold, step in itertools.product((10.0, 2.5, 0.5, 100.0, -4.0), range(-13, 14)):
        for close in (0.05, 0.049, 0.0501):
            yield f"<answer>{gold * (1 + close * step):.6g}</answer>", f"{gold:g}", REG


def test_eval_reference_equals_a_second_implementation():
    seen, forms = Counter(), set()
    for text, gold, kind in outputs():
        solution = f"<answer>{gold}</answer>"
        want = expected(text, solution, kind)
        got = accuracies(text, solution, kind)
        assert got["eval-reference"] == pytest.approx(want, abs=1e-12), (kind, text, gold)
        assert 0 <= got["robust"] <= 1
        seen[kind, want > 0] += 1
        forms.add(text)
    assert sum(seen.values()) > 5000
    assert len(forms) > 1000
    assert min(seen[kind, True] for kind in (MC, NUM, REG)) > 100
    assert seen[FREE, True] == seen[OCR, True] == 0


@pytest.mark.parametrize(
    ("text", "gold", "kind", "want"),
    [
        ("<answer>9.8 m</answer>", "10", REG, (0.0, 1.0)),
        ("<answer>5,000</answer>", "5000", NUM, (0.0, 1.0)),
        ("<answer>nan</answer>", "nan", REG, (0.0, 0.0)),
        ("<answer>(B) blue</answer>", "B", MC, (0.0, 1.0)),
        ("B", "B", MC, (1.0, 0.0)),  # only the reference takes an untagged output for an answer
        ("<answer>5</answer>", "4", REG, (0.5, 0.6)),  # exactly 0.25 off: VSI-Bench counts the threshold 0.75
        ("<answer>7.6</answer>", "10", REG, (0.6, 0.6)),  # 0.24 off: below 0.5, 0.45, .. 0.25
        ("<answer>a red dog</answer>", "a red dog", FREE, (0.0, 1.0)),
    ],
)
def test_both_modes_side_by_side(text, gold, kind, want):
    got = accuracies(text, f"<answer>{gold}</answer>", kind)
    assert tuple(got.values()) == pytest.approx(want, abs=1e-6)
    assert list(got) == ["eval-reference", "robust"]


def test_robust_regression_is_the_benchmark_s_own():
    """In exact fractions, but where rounding decides a tie in the benchmark's float64."""
    ties = 0
    for gold, answer in itertools.product(range(1, 41), range(1, 61)):
        error = Fraction(abs(answer - gold), gold)
        limits = [1 - Fraction(50 + 5 * i, 100) for i in range(10)]
        got = accuracies(f"<answer>{answer}</answer>", f"<answer>{gold}</answer>", REG)["robust"]
        exact = sum(error <= limit for limit in limits) / 10
        if error in limits:
            ties += 1
            assert got in (exact, exact - 0.1) or got == pytest.approx(exact - 0.1)
        else:
            assert got == pytest.approx(exact)
    assert ties > 100
    assert accuracies("<answer>0</answer>", "<answer>0</answer>", REG)["robust"] == 1


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 7), (0, 40), (40, 40), (123, 456), (5000, 7540)])
def test_wilson_is_scipy_s(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert score.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    made = score.measure([1.0] * k + [0.0] * (n - k))
    assert (made["value"], made["low"], made["high"]) == pytest.approx((k / n, theirs.low, theirs.high), abs=1e-12)
    assert (made["n"], made["interval"]) == (n, "wilson")


def test_a_bootstrap_of_verdicts_is_the_binomial():
    """Resampled means of k ones in n are Binomial(n, k/n) / n: its quantiles, give or take a step."""
    for k, n in ((30, 100), (3, 50), (470, 500)):
        made = score.measure([1.0] * k + [0.0] * (n - k), samples=4)
        assert made["interval"] == "bootstrap"
        for name, q in (("low", 0.025), ("high", 0.975)):
            assert made[name] == pytest.approx(stats.binom.ppf(q, n, k / n) / n, abs=1.01 / n)


def test_a_bootstrap_of_graded_values_is_resampling():
    rng = np.random.default_rng(3)
    values = rng.choice([0.0, 0.1, 0.3, 0.7, 1.0], 60)
    brute = np.percentile([rng.choice(values, 60).mean() for _ in range(20_000)], [2.5, 97.5])
    made = score.measure(values.tolist())
    assert made["interval"] == "bootstrap"
    assert (made["low"], made["high"]) == pytest.approx(tuple(brute), abs=0.01)
    assert made == score.measure(values.tolist())  # the same each time
    assert score.measure([])["value"] is None


def test_a_paired_gap_resamples_questions():
    """Two variants right on nearly the same questions: the interval of the gap is that of the few that differ."""
    rng = np.random.default_rng(4)
    ordered = (rng.random(200) < 0.6).astype(float)
    other = ordered.copy()
    other[:12] = 0.0
    differences = ordered - other
    brute = np.percentile([rng.choice(differences, 200).mean() for _ in range(20_000)], [2.5, 97.5])
    made = score.paired_gap(ordered.tolist(), other.tolist())
    assert made["value"] == pytest.approx(differences.mean())
    assert (made["low"], made["high"]) == pytest.approx(tuple(brute), abs=0.006)
    assert made["high"] - made["low"] < 0.08  # unpaired it would be 0.19


# --- questions --------------------------------------------------------------------------------------------------------


def question(number: int, kind: str, gold: str, *answers: str, task: str = "", source: str = "s", error=None, **other):
    raw = {
        "problem_id": number, "problem": "?", "data_type": "video", "problem_type": kind, "options": [],
        "solution": f"<answer>{gold}</answer>", "path": "a.mp4", "data_source": source, "question_type": task,
    }  # fmt: skip
    record = parse_record(raw)
    given = {"ordered": answers, **other}
    replies = [
        reply(variant, i, f"<think>.</think><answer>{text}</answer>", 10 + i, True, record.solution, kind)
        for variant, texts in given.items()
        for i, text in enumerate(texts)
    ]
    return Question(record, error, tuple(replies) if error is None else (), number)


def test_a_group_counts_failures_and_averages_samples():
    group = [
        question(0, MC, "A", "A", "B"),
        question(1, MC, "B", "B", "B"),
        question(2, MC, "B", error="missing: a.mp4"),
        question(3, MC, "C", "A", "A."),
    ]
    made = summarise_group(group, ["ordered"], 2)
    assert (made["questions"], made["answered"]) == (4, 3)
    assert made["accuracy"]["robust"]["value"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert made["accuracy"]["robust"]["interval"] == "bootstrap"
    assert made["majority"]["robust"]["value"] == pytest.approx(2 / 3)  # a tie goes to the first
    assert (made["format"], made["tokens"], made["longest"], made["ended"]) == (1.0, 10.5, 11, 1.0)
    assert "variants" not in made
    nothing = summarise_group([group[2]], ["ordered", "shuffled"], 1)
    assert nothing["accuracy"]["robust"]["value"] is None
    assert nothing["tokens"] is None


def test_majority_counts_answers_not_completions():
    def made(*answers: str | None) -> list[Reply]:
        return [Reply("ordered", i, f"t{i}", a, 1.0, 3, True, {}) for i, a in enumerate(answers)]

    assert majority(made("A", "b", "B ", "A", "B")).sample == 1
    assert majority(made(None, None, "C")).sample == 2
    assert majority(made(None, None)).sample == 0
    assert majority(made("x", "y")).sample == 0


def test_gaps_rest_on_questions_with_both():
    group = [
        question(0, MC, "A", "A", shuffled=["B"]),
        question(1, MC, "A", "A", shuffled=["A"]),
        question(2, MC, "A", "B", shuffled=["B"]),
        question(3, MC, "A", "A"),  # a picture: no order
    ]
    made = summarise_group(group, ["ordered", "shuffled"], 1)
    assert made["accuracy"]["robust"]["value"] == 0.75
    against = made["variants"]["shuffled"]
    assert against["n"] == 3
    assert against["ordered"]["robust"]["value"] == pytest.approx(2 / 3)
    assert against["accuracy"]["robust"]["value"] == pytest.approx(1 / 3)
    assert against["gap"]["robust"]["value"] == pytest.approx(1 / 3)
    assert against["gap"]["robust"]["interval"] == "paired bootstrap"


def test_vsi_bench_is_summed_up_both_ways():
    """Three levels of direction are one task of the benchmark; pooled, every question weighs the same."""
    group = [
        question(0, MC, "A", "A", task="object_rel_direction_easy"),
        question(1, MC, "A", "B", task="object_rel_direction_medium"),
        question(2, MC, "A", "A", task="object_rel_direction_medium"),
        question(3, MC, "A", "B", task="object_rel_direction_hard"),
        question(4, REG, "10", "10", task="object_counting"),
        question(5, REG, "10", "7.6", task="object_counting"),
        question(6, REG, "10", "7.6", task="object_counting"),
        question(7, REG, "10", error="corrupt", task="object_counting"),
    ]
    made = benchmark_summary(group, ["ordered"], 1, over_tasks=True)
    numeric = (1 + Fraction(6, 10) * 2) / 3
    direction = (1 + Fraction(1, 2) + 0) / 3
    for mode in score.SCORED_MODES:
        assert made["mean_over_tasks"][mode]["value"] == pytest.approx(float((numeric + direction) / 2), abs=1e-6)
        assert made["accuracy"][mode]["value"] == pytest.approx(float((2 + numeric * 3) / 7), abs=1e-6)
        assert made["mean_relative_accuracy"][mode]["value"] == pytest.approx(float(numeric), abs=1e-6)
        assert made["accuracy_without_regression"][mode]["value"] == 0.5
    assert made["mean_relative_accuracy"]["robust"]["n"] == 3
    assert set(made["tasks"]) == {q.record.task for q in group}
    assert list(made["problem_types"]) == ["multiple choice", "regression"]
    low, high = (made["mean_over_tasks"]["robust"][name] for name in ("low", "high"))
    assert low < made["mean_over_tasks"]["robust"]["value"] < high
    pooled = benchmark_summary(group, ["ordered"], 1, over_tasks=False)
    assert "mean_over_tasks" not in pooled


def test_a_value_is_the_mean_of_a_question_s_samples():
    assert score.value(question(0, MC, "A", "A", "B", "A"), "ordered", "robust") == pytest.approx(2 / 3)
    assert math.isclose(score.value(question(0, REG, "10", "10", "7.6"), "ordered", "robust"), 0.8, abs_tol=1e-6)
