"""Numbers and option letters in robust mode: generated ways to write exact values, and what is none of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from jvr1.problems.answers import option_letters
from jvr1.problems.quantities import numbers
from jvr1.rl.rewards import score

NUM, MC, REG = "numerical", "multiple choice", "regression"


def robust(answer: str, gold: str, kind: str = NUM) -> float:
    return score(f"<think>so</think><answer>{answer}</answer>", gold, kind, "robust").accuracy


# what is written, and its value computed otherwise
FORMS: list[tuple[str, float | Fraction]] = [
    ("5", Fraction(5)), ("5.25", Fraction(21, 4)), (".5", Fraction(1, 2)), ("３", Fraction(3)), ("٣", Fraction(3)),
    ("1/2", Fraction(1, 2)), ("½", Fraction(1, 2)), ("¾", Fraction(3, 4)), ("1½", Fraction(3, 2)),
    ("1 1/2", Fraction(3, 2)),
    (r"\frac{1}{2}", Fraction(1, 2)), (r"\tfrac{3}{4}", Fraction(3, 4)), (r"\dfrac{7}{8}", Fraction(7, 8)),
    (r"\frac12", Fraction(1, 2)), (r"\frac{22}7", Fraction(22, 7)), (r"2\frac{1}{3}", Fraction(7, 3)),
    (r"\frac{\frac{1}{2}}{3}", Fraction(1, 6)), ("1,000", Fraction(1000)), ("1{,}000", Fraction(1000)),
    ("1'000", Fraction(1000)), ("1 000", Fraction(1000)), (r"1\,000", Fraction(1000)), ("1\u202f000", Fraction(1000)),
    ("1,234,567.5", Fraction(2469135, 2)), ("12,34,567", Fraction(1234567)), ("3,14", Fraction(157, 50)),
    ("0,125", Fraction(1, 8)), ("10¹²", Fraction(10**12)), ("2¹⁰", Fraction(2**10)), ("10⁻³", Fraction(1, 1000)),
    ("10^{-3}", Fraction(1, 1000)), ("2^10", Fraction(1024)), ("2**10", Fraction(1024)),
    ("2 × 10¹⁵", Fraction(2 * 10**15)),
    (r"1.5 \cdot 10^{3}", Fraction(1500)), (r"1.5 \times 10^3", Fraction(1500)), ("1.5 x 10^-2", Fraction(3, 200)),
    ("1.5·10⁻²", Fraction(3, 200)), ("1.5e3", Fraction(1500)), ("2E-2", Fraction(1, 50)),
    ("5 million", Fraction(5 * 10**6)),
    ("1.2 thousand", Fraction(1200)), ("3万", Fraction(30000)), ("5k", Fraction(5000)), (r"\pi", math.pi),
    ("2π", 2 * math.pi),
    (r"2\pi", 2 * math.pi), ("2*pi", 2 * math.pi), (r"\frac{\pi}{2}", math.pi / 2),
    (r"\frac{3\pi}{4}", 3 * math.pi / 4),
    ("√2", math.sqrt(2)), (r"3\sqrt{5}", 3 * math.sqrt(5)), (r"\frac{\sqrt{3}}{2}", math.sqrt(3) / 2),
    (r"\sqrt[3]{27}", 3.0), ("sqrt(16)/5", 0.8),
]  # fmt: skip
SIGNS = [("", 1), ("-", -1), ("−", -1), ("- ", -1), ("− ", -1), ("–", -1), ("－", -1),
         ("minus ", -1), ("Negative ", -1),
         ("负", -1), ("+", 1), ("+ ", 1)]  # fmt: skip
WRAPS = [
    "{}", " {} ", "${}$", "$${}$$", r"\({}\)", r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", "**{}**", "x = {}",
    "The answer is {}.", "约{}", "共 {} 次", "答案是{}。",
]  # fmt: skip


def wrong_values(value: float) -> list[float]:
    """Values that a reading which drops a sign, a power, a factor or a part would give."""
    return [-value, value + 1, 10 * value, value / 10, value * math.pi, abs(value) ** 2 + 3]


@pytest.mark.slow
def test_every_way_to_write_a_value():
    """Signs x forms x scripts: right against the value itself, wrong against its neighbours."""
    seen = 0
    for (form, value), (sign, factor), wrap in itertools.product(FORMS, SIGNS, WRAPS):
        if (sign == "负" and not form[0].isdecimal()) or (wrap.startswith("共") and sign.endswith(" ")):
            continue
        text, exact = wrap.format(sign + form), float(value) * factor
        assert robust(text, repr(exact)) == 1, (text, exact, numbers(text))
        seen += 1
    for (form, value), (sign, factor) in itertools.product(FORMS, SIGNS):
        for other in wrong_values(float(value) * factor):
            assert robust(sign + form, repr(other)) == 0, (sign + form, other)
    assert seen > 5000


LENGTHS = {"mm": Fraction(1, 1000), "cm": Fraction(1, 100), "m": Fraction(1), "km": Fraction(1000),
"inches": Fraction(254, 10000),
           "feet": Fraction(3048, 10000), "miles": Fraction(1609344, 1000), "米": Fraction(1), "千米": Fraction(1000),
           "公里": Fraction(1000),
           "厘米": Fraction(1, 100)}  # fmt: skip
TIMES = {"ms": Fraction(1, 1000), "s": Fraction(1), "seconds": Fraction(1), "min": Fraction(60),
"minutes": Fraction(60),
         "hours": Fraction(3600), "h": Fraction(3600), "days": Fraction(86400), "秒": Fraction(1),
         "小时": Fraction(3600)}  # fmt: skip
SPEEDS = {"m/s": Fraction(1), "km/h": Fraction(10, 36), "mph": Fraction(44704, 100000), "kph": Fraction(10, 36),
          "meters per second": Fraction(1), "miles per hour": Fraction(44704, 100000), "m s^-1": None}  # fmt: skip
AREAS = {"m^2": Fraction(1), "m²": Fraction(1), "square meters": Fraction(1), "cm^2": Fraction(1, 10**4),
"sq ft": Fraction(3048, 10**4) ** 2,
         "km^{2}": Fraction(10**6), "hectares": Fraction(10**4)}  # fmt: skip
MASSES = {"g": Fraction(1, 1000), "kg": Fraction(1), "mg": Fraction(1, 10**6), "千克": Fraction(1), "公斤": Fraction(1)}


@pytest.mark.parametrize("table", [LENGTHS, TIMES, SPEEDS, AREAS, MASSES])
def test_units_convert(table):
    for (ours, a), (theirs, b) in itertools.product(table.items(), repeat=2):
        if a is None or b is None:
            continue
        for count in (Fraction(60), Fraction(5, 2)):
            told, right = f"{float(count)} {ours}", float(count * a / b)
            assert robust(told, f"{right!r} {theirs}") == 1, (told, right, theirs)
            assert robust(told, f"{float(count * 2)!r} {ours}") == 0
            if a != b:
                assert robust(told, f"{float(count)} {theirs}") == 0, (told, theirs)
            assert robust(told, repr(float(count))) == 1  # a unit that is missing does not count


def test_units_of_other_dimensions_contradict():
    for one, other in itertools.permutations(["m", "s", "kg", "km/h", "m^2", "degrees", "°C", "$", "V"], 2):
        told, gold = ("$5" if unit == "$" else f"5 {unit}" for unit in (one, other))
        assert robust(told, gold) == 0, (told, gold)


DIFFERENT = [
    ("60 km/h", "60 mph"), ("$5", "€5"), ("5 apples", "5 oranges"), ("60 knots", "60 km/h"), ("5 million", "5"),
    ("5k", "5"), ("5 M", "5 m"), ("2x", "2"), ("x - 5", "-5"), ("x - 5", "5"), ("5 - x", "5"), ("5!", "5"), ("5?", "5"),
    (">5", "5"), ("≥ 5", "5"), ("more than 5", "5"), ("at least 5", "5"), ("not 5", "5"), ("isn't 5", "5"), ("±5", "5"),
    ("5 ± 1", "5"), ("--5", "5"), ("--5", "-5"), ("-+5", "-5"), ("10 minus 5", "-5"), ("ten minus 5", "-5"),
    ("1.2.3", "1.2"),
    ("1_000", "1"), ("1_000", "1000"), ("1.000.000", "1"), ("1.000,5", "1"), ("GPT-4", "4"), ("H2O", "2"), ("x^2", "2"),
    ("5^", "5"), ("2+3", "5"), ("5+", "5"), ("5+3i", "5"), ("3i", "3"), ("2e", "2"), ("1/2/3", "0.5"),
    (r"1/2\pi", "1.57"),
    ("3 x 4", "3"), ("1920x1080", "1920"), ("5-7", "5"), ("5–7", "-7"), ("12:30", "12"), ("3:2", "1.5"),
    ("10^400", "10"),
    ("1e-400", "0"), (r"\frac{1}{0}", "0"), (r"\sqrt{-4}", "2"), (r"\frac{a}{2}", "2"), ("5 percentage points", "5%"),
    ("5%", "5 km"), ("25 °C", "25 °F"), ("5'", "5 in"), ("不是5", "5"), ("至少5米", "5"),
    ("5 ft 3 in", "5"), ("x5", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_what_is_doubtful_or_different_scores_nothing(answer, gold):
    assert robust(answer, gold) == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("x + 1", "x + 1"), ("5–7", "5-7"), ("12:30", "12:30"), (r"\pm 5", r"\pm 5"), ("5!", "5!"),
        ("$5", "5 dollars"), ("$5 million", "5000000"), ("-$5", "-5"), ("$-5$", "-5"), ("5-minute", "300 s"),
        ("5 in total", "5"),
        ("5 (five)", "5"), ("5 people are there", "5"), ("第5", "5"), ("5左右", "5"),
        ("零下5度", "-5"), ("5 in", "0.127 m"),
        ("25°C", "25 degrees Celsius"), (r"90^\circ", "90 degrees"), (r"50\%", "0.5"), ("1.5 L", "1500 ml"),
        ("the answer is minus 5", "-5"),
        ("CO2 fell to 5", "5"), ("about -5", "-5"), ("= -5", "-5"), ("- $5", "-5"), ("3.14...", "3.14"), ("<b>", "<b>"),
    ],
)  # fmt: skip
def test_equal_ways(answer, gold):
    assert robust(answer, gold) == 1
    assert robust(answer, gold, REG) == pytest.approx(1)


# --- multiple choice --------------------------------------------------------------------------------------------------

ONE = [
    "{}", "{}.", "({})", "[{}]", "{}\nred", "{} - red", "{} – red", "{}、红色", "{}: red", "{}) red", "({}) red",
    "**{}**: red",
    "答案：{}", "答案是{}", "正确答案为 {}。", "选{}", "应选：{}", "选项{}", "【{}】", "「{}」",
    r"\({}\)", "${}$", r"\textbf{{{}}}",
    r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", r"\boxed{{\textbf{{({})}}}}", "I think the answer is {}",
    "I think the answer is ({}) red.",
    "the answer must be {}", "The answer is {}, because it moves.", "considered (Z) and (Y). Final answer: {}.",
    "Answer: **{}**",
    "The answer is Z. No: the correct answer is {}.", "Option {}", "option {}: red", "`{}`", "（{}）",
]  # fmt: skip


@pytest.mark.parametrize("form", ONE)
def test_one_letter(form):
    for letter in "ABCDE":
        assert option_letters(form.format(letter)) == {letter}
        assert robust(form.format(letter), f"<answer>{letter}</answer>", MC) == 1
        assert robust(form.format(letter), f"<answer>{chr(ord(letter) + 1)}</answer>", MC) == 0


@pytest.mark.parametrize(
    "between",
    [",", ", ", ";", "; ", "/", "|", " | ", "&", " and ", " or ", "、", "；", "，", "和", " + ", "\n", " ", ""],
)
def test_several_letters(between):
    told = between.join("ACD")
    assert option_letters(told) == {"A", "C", "D"}
    assert robust(told, "A, C, D", MC) == 1
    assert all(robust(told, gold, MC) == 0 for gold in ("A", "C", "A, C", "A, B, D"))


@pytest.mark.parametrize(
    "text",
    [
        "A. red\nB. blue\nC. green", "(A) or (B)", "(A) red, not (B)", "A is wrong", "(A) is wrong", "not A",
        "The answer is not A",
        "A red ball", "The answer is a red ball", "Apple", "A-frame", "A or B", "I would say neither", "不选A", "BAD",
        "AA", "",
    ],
)  # fmt: skip
def test_no_single_letter(text):
    assert option_letters(text) != {"A"}
    assert robust(text, "A", MC) == 0


def test_a_label_keeps_its_text_out():
    assert option_letters("A) George W. Bush") == {"A"}
    assert option_letters("A. the answer key") == {"A"}
    assert option_letters("B. it is not raining") == {"B"}
