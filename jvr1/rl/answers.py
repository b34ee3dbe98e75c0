"""Reading a model's answer: the tagged text, option letters, numbers with units, words of any script."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import NamedTuple

_PAIR = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def first_answer(text: str) -> str:
    """What the first `<answer>` encloses, stripped; '' without a pair (Video-R1 `extract_answer`).

    Plain searches: the reference's expression takes cubic time on an open tag followed by blanks.
    """
    _, opened, rest = text.partition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if opened and closed else ""


def final_answer(text: str) -> str:
    """What the last pair of answer tags encloses, those after the thinking first; '' without a pair."""
    after = text.partition("</think>")[2]
    pairs = _PAIR.findall(after) or _PAIR.findall(text)
    return pairs[-1].strip() if pairs else ""


def tidy(text: str) -> str:
    """One way to write a text: full-width forms, fractions, powers, minus signs, LaTeX wrappers and blanks."""
    out = []
    for char in text:
        kind = unicodedata.decomposition(char).partition(">")[0]
        # compatibility forms would glue: 1½ to 11/2, 10² to 102
        out.append({"<fraction": " ", "<super": "^"}.get(kind, "") + char)
    text = unicodedata.normalize("NFKC", "".join(out)).translate(_SAME)
    text = re.sub(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2", text)
    text = re.sub(r"\\(?:boxed|text|mathrm|mathbf)\{([^{}]*)\}", r"\1", text)
    return " ".join(text.replace("\\%", "%").split())


_SAME = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
)


# --- option letters ---------------------------------------------------------------------------------------------------

_LEAD = re.compile(
    r"(?:the )?(?:(?:final|correct|best|right) )?(?:answer|option|choice)(?: is\b)? ?[:=]?(?: ?(?:option|choice)\b)? ?",
    re.I,
)
_LETTER = r"[(\[]?[A-Za-z](?![A-Za-z'])[)\].:]*"
_LETTERS = re.compile(rf"{_LETTER}(?:(?: ?(?:[,;/&]|and\b|or\b))* ?{_LETTER})*", re.I)
_ONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_LABEL = re.compile(r"[(\[]?([A-Za-z])[)\].:,]")


def option_letters(text: str) -> frozenset[str]:
    """The options an answer names, upper case: 'A', 'a.', '(A)', 'A. text', 'Option A' name A; 'A or B' names both.

    Empty where none is named. What follows a label does not count: a list of all options names the first.
    """
    text = tidy(text)
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    text = text.strip(" *_`'\"$")
    if _LETTERS.fullmatch(text):
        return frozenset(letter.upper() for letter in _ONE_LETTER.findall(text))
    label = _LABEL.match(text)
    return frozenset(label[1].upper()) if label else frozenset()


# --- numbers ----------------------------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """A number as written: its value, whether a percent sign follows, and the word after it ('' if none)."""

    value: float
    percent: bool
    unit: str


_NUMBER = re.compile(
    r"""(?<![\w^])(?<!\d\.) (?P<sign>[+-])? [$€£¥]?
    (?: (?P<mixed>\d+)\ (?=\d+\ ?/\ ?\d) )?
    (?> (?P<grouped>\d{1,3}(?:,\d{2,3})*,\d{3}(?!,?\d)(?:\.\d+)? | \d{1,3}(?:\ \d{3})+(?!\d)(?:\.\d+)?)
      | (?P<comma>\d+,\d{1,2}(?![\d,]))
      | (?P<plain>\d+(?:\.\d*)?|\.\d+) )
    (?:[eE](?P<exponent>[+-]?\d+)(?!\w))?
    (?:\ ?/\ ?(?P<below>\d+(?:\.\d+)?)(?![\d/]))?
    (?:\ ?(?:[x*×·]|\\times)\ ?10\ ?\^\ ?\{?(?P<power>[+-]?\d+)\}?)?
    (?:\ ?\^\ ?\{?(?P<raised>[+-]?\d+)\}?)?
    \ ?(?P<percent>%|per\ ?cent\b)?
    \ ?(?P<unit>[^\W\d_]+)?""",
    re.VERBOSE,
)

_UNITS = {
    "length": "1e-3 mm millimeter millimetre; 1e-2 cm centimeter centimetre; 1 m meter metre;"
    "1e3 km kilometer kilometre; 0.0254 in inch; 0.3048 ft foot feet; 0.9144 yd yard; 1609.344 mi mile",
    "time": "1e-3 ms millisecond; 1 s sec second; 60 min minute; 3600 h hr hour; 86400 day",
    "mass": "1e-6 mg milligram; 1e-3 g gram; 1 kg kilogram; 0.45359237 lb pound",
}
_UNIT = {
    name: (dimension, float(entry.split()[0]))
    for dimension, table in _UNITS.items()
    for entry in table.split(";")
    for name in entry.split()[1:]
}


def numbers(text: str) -> list[Quantity]:
    """All numbers of a text: 5,000; 3,14; 1 1/2; 50%; 3e-4; 2 x 10^3; $5; '5 km'. Overflow gives inf, x/0 nan."""
    return [_quantity(match) for match in _NUMBER.finditer(tidy(text))]


def _quantity(match: re.Match[str]) -> Quantity:
    part = match.groupdict()
    digits = part["plain"] or (part["grouped"] or "").replace(",", "").replace(" ", "")
    value = float(digits or part["comma"].replace(",", "."))
    if part["exponent"]:
        value *= _power_of_ten(part["exponent"])
    if part["below"]:
        value = value / float(part["below"]) if float(part["below"]) else math.nan
    if part["power"]:
        value *= _power_of_ten(part["power"])
    if part["raised"]:
        value = _power(value, part["raised"])
    value += float(part["mixed"] or 0)
    value = -value if part["sign"] == "-" else value
    return Quantity(value, part["percent"] is not None, part["unit"] or "")


def _power_of_ten(exponent: str) -> float:
    return float("1e" + exponent)


def _power(base: float, exponent: str) -> float:
    try:
        return base ** float(exponent)
    except (OverflowError, ZeroDivisionError):
        return math.nan


def readings(answer: Quantity, gold: Quantity) -> list[tuple[float, float]]:
    """The (answer, gold) pairs of plain numbers worth comparing; empty where units contradict each other.

    Known units of one dimension convert, unknown or missing ones do not count. A percent sign on one side only
    may mean 50 or 0.5.
    """
    scale = 1.0
    known, wanted = _known_unit(answer.unit), _known_unit(gold.unit)
    if known and wanted:
        if known[0] != wanted[0]:
            return []
        scale = known[1] / wanted[1]
    a, g = answer.value * scale, gold.value
    if answer.percent == gold.percent:
        return [(a, g)]
    return [(a, g), (a / 100, g)] if answer.percent else [(a, g), (a, g / 100)]


def _known_unit(name: str) -> tuple[str, float] | None:
    name = name.lower()
    return _UNIT.get(name) or _UNIT.get(name.removesuffix("s")) or _UNIT.get(name.removesuffix("es"))


# --- words ------------------------------------------------------------------------------------------------------------

# scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_CHARACTER = re.compile(rf"([{_UNSPACED}])")


def words(text: str) -> list[str]:
    """Lower-case words of any script without punctuation; each character of an unspaced script is a word."""
    return _WORD.findall(tidy(text).casefold())


def transcript(text: str) -> list[str]:
    """Words as they stand, case and punctuation kept, for a word error rate; unspaced scripts by character."""
    return _CHARACTER.sub(r" \1 ", tidy(text)).split()
