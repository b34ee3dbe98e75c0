"""Rewards: a table of cases in all three modes, and thousands of generated outputs against a second implementation."""

import itertools
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from nltk.stem.porter import PorterStemmer

from jvr1.errors import UserError
from jvr1.problems.answers import final_answer, first_answer, option_letters, words
from jvr1.problems.measures import mean_relative_accuracy
from jvr1.problems.quantities import Quantity, numbers
from jvr1.rl.rewards import MODES, format_reward, score

MC, NUM, OCR, FREE, REG = PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")


def wrap(answer: str) -> str:
    return f"<think>so</think>\n<answer>{answer}</answer>"


def accuracies(answer: str, gold: str, kind: str) -> tuple[float, float, float]:
    """Accuracy in reference, eval-reference and robust mode of a well-formed completion."""
    modes = ("reference", "eval-reference", "robust")
    return tuple(score(wrap(answer), f"<answer>{gold}</answer>", kind, mode).accuracy for mode in modes)


# answer, gold, then accuracy in reference, eval-reference, robust
CASES = [
    (MC, "A", "A", 1, 1, 1),
    (MC, "B", "A", 0, 0, 0),
    (MC, " A ", "A", 1, 1, 1),
    (MC, "A.", "A", 0, 0, 1),
    (MC, "(A)", "A", 0, 0, 1),
    (MC, "A. a red ball", "A", 0, 0, 1),
    (MC, "A) George W. Bush", "A", 0, 0, 1),
    (MC, "a", "A", 0, 0, 1),
    (MC, "**A**", "A", 0, 0, 1),
    (MC, "\\boxed{A}", "A", 0, 0, 1),
    (MC, "Ａ", "A", 0, 0, 1),
    (MC, "（A）", "A", 0, 0, 1),
    (MC, "Option A", "A", 0, 0, 1),
    (MC, "The correct answer is (A).", "A", 0, 0, 1),
    (MC, "Answer: A", "A", 0, 0, 1),
    (MC, "A", "A. a red ball", 0, 0, 1),
    (MC, "A or B", "A", 0, 0, 0),
    (MC, "A, B, C, D", "A", 0, 0, 0),
    (MC, "C, A", "A,C", 0, 0, 1),
    (MC, "A", "A, C", 0, 0, 0),
    (MC, "A red ball", "A", 0, 0, 0),
    (MC, "Apple", "A", 0, 0, 0),
    (MC, "yes.", "Yes", 0, 0, 1),
    (NUM, "5", "5", 1, 1, 1),
    (NUM, "6", "5", 0, 0, 0),
    (NUM, "5,000", "5000", 0, 0, 1),
    (NUM, "5000", "5,000", 0, 0, 1),
    (NUM, "1,234,567.5", "1234567.5", 1, 1, 1),
    (NUM, "5.0", "5", 0, 0, 1),
    (NUM, "5.", "5", 0, 0, 1),
    (NUM, "3.14159", "3.14", 1, 1, 1),
    (NUM, "3.15", "3.14", 0, 0, 0),
    (NUM, "3,14", "3.14", 0, 0, 1),
    (NUM, "50%", "50", 0, 0, 1),
    (NUM, "50 percent", "0.5", 0, 0, 1),
    (NUM, "0.5", "50%", 0, 0, 1),
    (NUM, "5%", "50%", 0, 0, 0),
    (NUM, "1/2", "0.5", 0, 0, 1),
    (NUM, "1 1/2", "1.5", 0, 0, 1),
    (NUM, "-1½", "-1.5", 0, 0, 1),
    (NUM, "\\frac{3}{4}", "0.75", 0, 0, 1),
    (NUM, "1/0", "1", 0, 0, 0),
    (NUM, "$1,200", "1200", 0, 0, 1),
    (NUM, "5 apples", "5", 0, 0, 1),
    (NUM, "5 km", "5000 m", 0, 0, 1),
    (NUM, "90 minutes", "1.5 hours", 0, 0, 1),
    (NUM, "5 kg", "5 m", 0, 0, 0),
    (NUM, "5 m^2", "5", 0, 0, 1),
    (NUM, "−3", "-3", 0, 0, 1),
    (NUM, "-3", "3", 0, 0, 0),
    (NUM, "2 × 10³", "2000", 0, 0, 1),
    (NUM, "2e3", "2000", 1, 1, 1),
    (NUM, "x = 42", "42", 0, 0, 1),
    (NUM, "5 or 6", "5", 0, 0, 0),
    (NUM, "5-7", "5", 0, 0, 0),
    (NUM, "12:30", "12:30", 0, 0, 1),
    (NUM, "five", "5", 0, 0, 0),
    (NUM, "nan", "nan", 0, 0, 0),
    (NUM, "inf", "inf", 1, 1, 0),
    (NUM, "1e999", "1e999", 1, 1, 0),
    (NUM, "0.001", "0.004", 1, 1, 0),
    (NUM, "0", "0", 1, 1, 1),
    (OCR, "STOP HERE", "STOP HERE", 1, 0, 1),
    (OCR, "STOP", "STOP HERE", 0.5, 0, 0.5),
    (OCR, "stop here", "STOP HERE", 0, 0, 0),
    (OCR, "a b c d", "e", 0, 0, 0),
    (OCR, "HELL0", "HELLO", 0, 0, 0.8),
    (OCR, "你好吗", "你好", 0, 0, 0.5),
    (OCR, "\u201cOPEN\u201d", '"OPEN"', 0, 0, 1),
    (FREE, "dog", "dog", 2 / 3, 0, 1),
    (FREE, "the dog", "dog", 4 / 9, 0, 2 / 3),
    (FREE, "a dog runs", "a dog runs", 1, 0, 1),
    (FREE, "cats", "dogs", 0, 0, 0),
    (FREE, "猫在吃鱼", "猫在吃鱼", 0, 0, 1),
    (FREE, "猫在跑", "猫在吃鱼", 0, 0, (4 / 7 + 2 / 5 + 4 / 7) / 3),
    (FREE, "кот спит", "кот спит", 0, 0, 1),
    (FREE, "café", "cafe", 0, 0, 0),
    (REG, "5", "5", 1, 1, 1),
    (REG, "4", "5", 0.8, 0.6, 0.8),
    (REG, "5 m", "5", 0, 0, 1),
    (REG, "11", "5", 0, 0, 0),
    (REG, "nan", "5", 1, 0, 0),
    (REG, "nan", "nan", 1, 0, 0),
    (REG, "5", "nan", 1, 0, 0),
    (REG, "inf", "5", 0, 0, 0),
    (REG, "5", "inf", 1, 0, 0),
    (REG, "0", "0", 0, 1, 1),
    (REG, "1", "0", 0, 0, 0),
    (REG, "about 5", "5", 0, 0, 1),
]


@pytest.mark.parametrize(("kind", "answer", "gold", "reference", "evaluation", "robust"), CASES)
def test_accuracy(kind, answer, gold, reference, evaluation, robust):
    assert accuracies(answer, gold, kind) == pytest.approx((reference, evaluation, robust), abs=1e-6)


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_no_answer(kind):
    """No answer scores 0 in robust mode whatever the gold; to the reference '' equals a gold without tags."""
    for completion, gold in itertools.product(
        ["", "A", "<answer></answer>", "<answer>A", "<think>A</think>"], ["A", "", "<answer></answer>"]
    ):
        assert score(completion, gold, kind, "robust").accuracy == 0
    assert score("no tags", "A", kind, "reference").accuracy == float(kind in (MC, OCR))
    assert score("no tags", "A", kind, "reference").answer is None


def test_evaluation_falls_back_to_the_whole_output():
    assert score(" A\n", "<answer>A</answer>", MC, "eval-reference") == (1.0, 0.0, " A\n")
    assert score("7", "<answer>7</answer>", NUM, "eval-reference").accuracy == 1
    assert score("<answer> </answer>", "<answer>A</answer>", MC, "eval-reference").accuracy == 0
    assert score("A", "<answer>A</answer>", MC, "reference").accuracy == 0


def test_which_answer_counts():
    two = "<think>maybe <answer>A</answer></think><answer>B</answer> or <answer>C</answer>"
    assert first_answer(two) == "A"
    assert final_answer(two) == "C"
    assert final_answer("<think>maybe <answer>A</answer></think><answer>B</answer>") == "B"
    assert final_answer("<think>hm <answer>A</answer></think>") == "A"
    assert final_answer("<answer>A <answer>B</answer>") == "B"
    assert first_answer("<answer>A <answer>B</answer>") == "A <answer>B"
    assert score(two, "<answer>A</answer>", MC, "reference").answer == "A"
    assert score(two, "C", MC, "robust") == (1.0, 1.0, "C")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>a</think> \n\t<answer>b</answer>", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>a\nb</think><answer>c\nd</answer>", 1),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 1),
        ("<think>a</think> x </think><answer>b</answer>", 1),
        (" <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>\n", 0),
        ("<think>a</think>so<answer>b</answer>", 0),
        ("<think>a</think><answer>b", 0),
        ("<answer>b</answer>", 0),
        ("<think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_format(completion, expected):
    assert format_reward(completion) == expected
    for mode in MODES:
        assert score(completion, "<answer>b</answer>", MC, mode).format == expected


def test_unknown_names():
    with pytest.raises(UserError, match="reference, robust, eval-reference"):
        score("A", "A", MC, "strict")
    with pytest.raises(UserError, match="multiple choice, numerical"):
        score(wrap("A"), "A", "multiple-choice", "robust")
    assert score(wrap("A"), "<answer>A</answer>", "multiple-choice", "reference").accuracy == 0


def test_reading_helpers():
    assert numbers("5,000 m and 3%") == [Quantity(5000.0, False, "m"), Quantity(3.0, True, "")]
    assert numbers("H2O v1.2.3") == []
    assert option_letters("The answer is D") == {"D"}
    assert option_letters("banana split and") == frozenset()
    assert words("It's 東京 Café!") == ["it", "s", "東", "京", "café"]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" + " " * 100_000,
        "<answer>" * 10_000,
        "<think>" + "</think>" * 10_000 + " " * 10_000,
        wrap("a " * 10_000 + "!"),
        wrap("and or " * 5_000),
        wrap("111," * 3_000),
        wrap("1 " * 5_000),
        wrap("(" * 20_000),
        wrap("9" * 20_000),
        wrap("1e" + "9" * 5_000),
        wrap("10^" + "9" * 500),
        wrap("\ud800 \x00"),
    ],
    ids=range(12),
)
def test_hostile_outputs_end(text):
    """None of these raises, and each ends soon (the reference's expressions take minutes on the first)."""
    for mode, kind in itertools.product(MODES, (MC, NUM, REG, OCR)):
        assert 0 <= score(text, "<answer>12 a</answer>", kind, mode).accuracy <= 1


# --- a second implementation of the two reference modes, from the described behaviour ---------------------------------

STEM = PorterStemmer().stem


def tagged(text: str) -> str:
    found = re.search("<answer>(.*?)</answer>", text, flags=re.S)
    return found.group(1).strip() if found else ""


def to_number(text: str):
    try:
        return float("".join(text.split(",")))
    except ValueError:
        return None


def edit_distance(a: list, b: list) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (x != y)))
    return row[-1]


def f1(hits: int, a: int, b: int) -> float:
    return 2 * hits / (a + b) if hits else 0.0


def common_subsequence(a: list, b: list) -> int:
    best = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in np.ndindex(len(a), len(b)):
        best[i + 1, j + 1] = best[i, j] + 1 if a[i] == b[j] else max(best[i, j + 1], best[i + 1, j])
    return int(best[-1, -1])


def mean_rouge(gold: str, answer: str) -> float:
    def tokens(text):
        return [STEM(t) if len(t) > 3 else t for t in re.findall("[a-z0-9]+", text.lower())]

    a, b = tokens(gold), tokens(answer)
    pairs = [Counter(itertools.pairwise(a)), Counter(itertools.pairwise(b))]
    single = f1((Counter(a) & Counter(b)).total(), len(a), len(b))
    double = f1((pairs[0] & pairs[1]).total(), pairs[0].total(), pairs[1].total())
    return (single + double + f1(common_subsequence(a, b), len(a), len(b))) / 3


def torch_relative_accuracy(answer: float, gold: float) -> float:
    a, g = (torch.tensor(x, dtype=torch.float32) for x in (answer, gold))
    limits = 1 - torch.arange(0.5, 0.95 + 0.05 / 2, 0.05, dtype=torch.float32)
    return ((a - g).abs() / (g.abs() + 1e-8) < limits).float().mean().item()


def numerical(answer: str, gold: str) -> float:
    if bool(set(gold) & set(".,")) is not bool(set(answer) & set(".,")):
        return 0.0
    a, g = to_number(answer), to_number(gold)
    return 0.0 if a is None or g is None else float(round(a, 2) == round(g, 2))


def trained(completion: str, solution: str, kind: str) -> float:
    answer, gold = tagged(completion), tagged(solution)
    if kind == MC:
        return float(answer == gold)
    if kind == NUM:
        return numerical(answer, gold)
    if kind == OCR:
        return max(0.0, 1 - edit_distance(gold.split(), answer.split()) / max(1, len(gold.split())))
    if kind == FREE:
        return mean_rouge(gold, answer)
    a, g = to_number(answer), to_number(gold)
    if a is None or g is None:
        return 0.0
    relative = (abs(a - g) + 1e-9) / (abs(g) + 1e-9)
    return 1.0 if math.isnan(relative) else 1 - min(1.0, relative)


def evaluated(completion: str, solution: str, kind: str) -> float:
    answer, gold = tagged(completion) or completion, tagged(solution)
    if kind == MC:
        return float(answer.strip() == gold)
    if kind == NUM:
        return numerical(answer, gold)
    if kind == REG and None not in (pair := (to_number(answer), to_number(gold))):
        return torch_relative_accuracy(*pair)
    return 0.0


LINES = (
    "A|B|C|D|E|a|A.|(A)|A. red|A or B|Option A||  |\n|nan|NaN|inf|-inf|Infinity|0|-0|0.0|1|-1|2|5|5.0|5.00|5.004",
    "5.005|5.006|5,000|5000|5000.0|1,2,3|,|.|-|1e3|1e-3|1e400|1_000|+7| 7 |7.|.7|0x10|50%|50 %|1/2|½|3.14|3,14|2.675",
    "2.68|12 km|$5|−3|٣|５|five|the red dog|The red dogs are running|red|dog|running dogs|STOP|stop|STOP HERE",
    "STOP  HERE|STOP\tHERE\nNOW|猫在吃鱼|猫 在 吃 鱼|кот спит|café au lait|naïve|it's the dog's|snake_case_word|🐱",
    "a\u00a0b|a\u3000b|\u200b|x\x1fy|12:30|100|99|95|90|105|110|75|50|25|150|0.95|1.05|-5|9.5|10|10.5",
)
ANSWERS = "|".join(LINES).split("|")
SHAPES = [
    "<think>t</think><answer>{0}</answer>",
    "<think>t</think>\n<answer>\n{0}\n</answer>",
    "<think>t</think>\n\n<answer>{0}</answer>\n",
    "<answer>{0}</answer>",
    "{0}",
    "<think>t</think>{0}",
    "<think>t</think><answer>{0}",
    "<think>t<answer>{0}</answer>",
    "<think>t</think>{0}</answer>",
    "<think>t</think><answer>{0}</answer><answer>{1}</answer>",
    "<think><answer>{1}</answer></think><answer>{0}</answer>",
    "<answer>{0}<answer>{1}</answer></answer>",
    "<Answer>{0}</Answer>",
    "<answer >{0}</answer>",
    "</answer>{1}<answer>{0}</answer>",
    "<answer></answer><answer>{0}</answer>",
    "{0} <answer>{1}</answer> {0}",
    "",
]
FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.S)


def generated(count: int):
    rng = random.Random(0)
    for _ in range(count):
        gold = rng.choice(ANSWERS)
        same = rng.random() < 0.3
        first, second = (gold if same else rng.choice(ANSWERS)), rng.choice([gold, rng.choice(ANSWERS)])
        if rng.random() < 0.2:  # numbers near the gold, where regression has its ties
            value = rng.choice([10.0, 20.0, 5.0, 0.5, 100.0])
            gold, first = str(value), str(round(value * (1 + 0.05 * rng.randint(-12, 12)), 3))
        solution = rng.choice([f"<answer>{gold}</answer>"] * 6 + [gold, f"<answer> {gold}\n</answer>"])
        yield rng.choice(SHAPES).format(first, second), solution, rng.choice([*PROBLEM_TYPES, "unknown"])


def test_generated_outputs_match_the_second_implementation():
    rows = list(generated(6000))
    seen = Counter()
    for completion, solution, kind in rows:
        for mode, oracle in (("reference", trained), ("eval-reference", evaluated)):
            expected = 0.0 if kind == "unknown" else oracle(completion, solution, kind)
            got = score(completion, solution, kind, mode)
            assert got.accuracy == pytest.approx(expected, abs=1e-12), (mode, kind, completion, solution)
            assert got.format == float(FORMAT.fullmatch(completion) is not None)
            seen[mode, kind, got.accuracy > 0] += 1
    # the sweep is worth something only where both verdicts occur
    for kind in PROBLEM_TYPES:
        assert min(seen["reference", kind, True], seen["reference", kind, False]) > 50
    for kind in (MC, NUM, REG):
        assert min(seen["eval-reference", kind, True], seen["eval-reference", kind, False]) > 50


def test_robust_mode_on_generated_outputs():
    """Never an error, always in [0,1], and what the reference calls right on finite, tagged answers stays right."""
    for completion, solution, kind in generated(3000):
        if kind == "unknown":
            continue
        robust = score(completion, solution, kind, "robust")
        assert 0 <= robust.accuracy <= 1
        assert (robust.answer is None) <= (robust.accuracy == 0)
        if completion == wrap(tagged(solution)) and re.fullmatch(r"-?\d+(\.\d+)?|[A-E]", tagged(solution)):
            assert robust.accuracy == 1


def test_mean_relative_accuracy_equals_torch():
    """Ties included: fp32, strict comparisons."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        gold = round(float(rng.uniform(-20, 20)), int(rng.integers(0, 3)))
        answer = round(gold * (1 + 0.05 * int(rng.integers(-12, 12))), int(rng.integers(0, 4)))
        assert mean_relative_accuracy(answer, gold) == torch_relative_accuracy(answer, gold)
    for pair in [(1e39, 1.0), (math.nan, 1.0), (0.0, 0.0), (1.0, 0.0), (math.inf, math.inf)]:
        assert mean_relative_accuracy(*pair) == torch_relative_accuracy(*pair)
