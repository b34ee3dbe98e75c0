r"""Numbers as people and models write them: signs, fractions, powers, roots, separators, units, in LaTeX or any script.

A small grammar, read strictly: what could mean two things is no number at all, for a wrong answer scored right teaches
more harm than a right one scored wrong. Pure.

    quantity = [sign] [currency] product [scale] [% | unit]        -  minus  $   k, million, 万
    product  = power {[x] power} [/ power]                         2 x 10^3, 2\pi, \sqrt{3}/2, 1 1/2
    power    = atom [^ exponent]
    atom     = digits | \pi | \sqrt[n]{product} | \frac{product}{product}
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import NamedTuple

from jvr1.problems.units import UNIT, UNSPACED, known_unit, spoken_unit


class Quantity(NamedTuple):
    """A number as written: its value, whether a percent sign follows, its unit or the word after it ('' if none)."""

    value: float
    percent: bool
    unit: str


class _DoubtfulError(Exception):
    """The text may mean more than one number, or none."""


# --- one way to write mathematics -------------------------------------------------------------------------------------

_MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-") | {"\u00ba": "\u00b0"})
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2044": "/", "\u066a": "%"})
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_BRACE = re.compile(
    r"\\(?:boxed|fbox|mbox|text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|emph|operatorname)\s*\{|[{}]"
)
_SPELT = (
    (re.compile(r"\\(?:displaystyle|left|right|big[lr]?|Big[lr]?)(?![A-Za-z])"), ""),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]?frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|[\u00d7\u22c5\u00b7\u2219]"), "*"),
    (re.compile(r"(?<=\d)\*\*(?=[\d{(+-])"), "^"),
    (re.compile(r"\\div(?![A-Za-z])|\u00f7"), "/"),
    (re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), "\u00b0"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])|[~\u2248\u2243\u223c\u7ea6]"), "\u2248"),
    (re.compile(r"\\pi(?![A-Za-z])|(?<![A-Za-z\\])pi(?![A-Za-z])"), "\u03c0"),
    (re.compile(r"\\sqrt(?![A-Za-z])|(?<![A-Za-z\\])sqrt(?![A-Za-z])"), "\u221a"),
    (re.compile(r"\$\$"), "$"),
    (re.compile(r"\$([^$]*)\$(?!\d)"), r" \1 "),
)


def unwrapped(text: str) -> str:
    r"""Without \boxed{..}, \text{..}, \textbf{..} and the like, however nested; what is not closed stays."""
    opened: list[re.Match[str]] = []
    dropped: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace)
        elif opened and (begin := opened.pop())[0] != "{":
            dropped += [begin, brace]
    out, at = [], 0
    for brace in sorted(dropped, key=lambda match: match.start()):
        out.append(text[at : brace.start()])
        at = brace.end()
    return "".join([*out, text[at:]])


def _normal(text: str) -> str:
    text = _RAISED.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run[0]).translate(_MINUS) + "}", text)
    out = []
    for char in text.translate(_MINUS):
        if unicodedata.decomposition(char).startswith("<fraction>") and unicodedata.numeric(char, None) is not None:
            below, _, above = unicodedata.normalize("NFKC", char).partition("\u2044")
            char = f"\\frac{{{below}}}{{{above}}}"
        out.append(char)
    text = unwrapped(unicodedata.normalize("NFKC", "".join(out)).translate(_MINUS).translate(_QUOTES))
    for pattern, plain in _SPELT:
        text = pattern.sub(plain, text)
    text = " ".join(text.split()).strip(" *_`")
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


# --- products ---------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(
    r"""(?>(?P<grouped>[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?!,?\d)(?:\.\d+)?
        | [1-9]\d{0,2}(?:\ \d{3})+(?!\d)(?:\.\d+)?
        | [1-9]\d{0,2}(?:'\d{3})+(?!'?\d)(?:\.\d+)?)
      | (?P<comma>\d+,\d{1,2}(?![\d,]) | 0,\d+(?![\d,]))
      | (?P<plain>\d+(?:\.\d*)?|\.\d+))
    (?:[eE](?P<exponent>[+-]?\d+)(?!\w))?
    (?![\d_!]|[.,']\d)""",
    re.VERBOSE,
)
_MIXED = re.compile(
    r"(\d+) ?(?:(\d+) ?/ ?(\d+)|\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}|\\frac ?(\d)(\d))(?![\d/^]|[.,]\d)"
)
_SPACED_MIXED = re.compile(r"\d+(?: |(?= ?\\frac))")
_TIMES_TEN = re.compile(r" ?[x*] ?(?=10 ?\^)", re.I)
_TIMES = re.compile(r" ?\* ?(?=[\u03c0\u221a])| ?(?=[\u03c0\u221a])")
_OVER = re.compile(r" ?/ ?(?=[\d.\u03c0\u221a\\])")
_RAISE = re.compile(r" ?\^ ?")
_SIGN = re.compile(r" ?([+-]?) ?")
_WHOLE = re.compile(r"[+-]?\d+")
_DEPTH = 6


class _Reader:
    """Reads products from a place in a text on; raises _DoubtfulError."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def expect(self, mark: str) -> None:
        if not self.text.startswith(mark, self.at):
            raise _DoubtfulError
        self.at += len(mark)

    def product(self, depth: int = 0) -> float:
        if depth > _DEPTH:
            raise _DoubtfulError
        if _SPACED_MIXED.match(self.text, self.at) and (mixed := self.take(_MIXED)):
            whole, *parts = (float(part) for part in mixed.groups() if part is not None)
            value = whole + _ratio(*parts)
        else:
            value = self.power(depth)
        divided = False
        while True:
            if self.take(_TIMES_TEN):
                value *= self.power(depth)
            elif _TIMES.match(self.text, self.at):
                if divided:  # 1/2 pi
                    raise _DoubtfulError
                self.take(_TIMES)
                value *= self.power(depth)
            elif self.take(_OVER):
                if divided:
                    raise _DoubtfulError
                value, divided = _ratio(value, self.power(depth)), True
            else:
                return value

    def power(self, depth: int) -> float:
        base = self.atom(depth)
        if not self.take(_RAISE):
            return base
        if self.text[self.at : self.at + 1] in ("{", "("):
            exponent = self.group(depth)
        elif whole := self.take(_WHOLE):
            exponent = float(whole[0])
        else:
            raise _DoubtfulError
        return _power(base, exponent)

    def atom(self, depth: int) -> float:
        if depth > _DEPTH:
            raise _DoubtfulError
        if digits := self.take(_DIGITS):
            return _digits(digits)
        mark = self.text[self.at : self.at + 1]
        if mark == "\u03c0":
            self.at += 1
            return math.pi
        if mark == "\u221a":
            self.at += 1
            root = 2.0
            if self.text.startswith("[", self.at):
                root = self.enclosed("[", "]", depth)
            inner = self.group(depth) if self.text[self.at : self.at + 1] in ("{", "(") else self.atom(depth + 1)
            return _power(inner, 1 / root) if root and inner >= 0 else math.nan
        self.expect("\\frac")
        return _ratio(self.part(depth), self.part(depth))

    def part(self, depth: int) -> float:
        """An argument of a fraction: a group, or one digit."""
        self.take(re.compile(" "))
        if self.text.startswith("{", self.at):
            return self.group(depth)
        digit = self.take(re.compile(r"\d"))
        if digit is None:
            raise _DoubtfulError
        return float(digit[0])

    def group(self, depth: int) -> float:
        opened = self.text[self.at]
        return self.enclosed(opened, {"{": "}", "(": ")"}[opened], depth)

    def enclosed(self, opened: str, closed: str, depth: int) -> float:
        self.expect(opened)
        sign = self.take(_SIGN)
        value = self.product(depth + 1)
        self.take(re.compile(" "))
        self.expect(closed)
        return -value if sign and sign[1] == "-" else value


def _digits(match: re.Match[str]) -> float:
    part = match.groupdict()
    digits = part["plain"] or re.sub("[, ']", "", part["grouped"] or "") or part["comma"].replace(",", ".")
    value = float(digits)
    if part["exponent"]:
        scaled = float(f"{digits}e{part['exponent']}")
        return scaled if scaled or not value else math.nan
    return value


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _power(base: float, exponent: float) -> float:
    try:
        value = base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.nan
    return value if isinstance(value, float) and (value or not base) else math.nan


# --- quantities in a text ---------------------------------------------------------------------------------------------

_START = re.compile(r"[\d\u03c0\u221a]|\.\d|\\frac(?![A-Za-z])")
_NAME = re.compile(rf"(?:[^\W\d{UNSPACED}]|[^\W\d_{UNSPACED}]-)\Z")  # H2, v1, GPT-4
_RUN = re.compile(r"[\w.]+")
_LEAD = re.compile(
    r"(?P<sign>[+-]|(?<![A-Za-z])(?:minus|negative|plus|positive|menos|moins|\u043c\u0438\u043d\u0443\u0441)\b"
    r"|\u8d1f|\u8ca0|\u96f6\u4e0b|\u30de\u30a4\u30ca\u30b9)?"
    r"(?P<space> ?)(?P<money>[$\u20ac\u00a3\u00a5\u20b9\u20a9]?) ?(?P<inner>[+-]?)\Z",
    re.I,
)
_POSITIVE = ("+", "plus", "positive", "")
_OPENS = re.compile(rf"(?:\A|[\s(\[{{=:,;\u2248'\"$*{UNSPACED}\u3000-\u303f])\Z")
_STATES = re.compile(
    r"(?:\A|[(\[{=:,;\u2248\u662f\u4e3a]|\b(?:is|was|be|equals|of|to|about|around|roughly|approximately|answer))\s*\Z",
    re.I,
)
_DOUBLE = re.compile(r"[-+\u00b1\u2213] ?\Z")
_PERCENT = re.compile(r" ?(?:%|per ?cent\b)", re.I)
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
    "dozen": 12.0, "lakh": 1e5, "crore": 1e7, "k": 1e3,
    "\u767e": 1e2, "\u5343": 1e3, "\u4e07": 1e4, "\u842c": 1e4, "\u4ebf": 1e8, "\u5104": 1e8,
}  # fmt: skip
_SCALE = re.compile(
    r" ?-?(?P<word>hundred|thousand|million|mn|billion|bn|trillion|dozen|lakh|crore)s?(?![^\W\d_])"
    r"|(?P<k>k)(?!\w)| ?(?P<han>[\u767e\u5343\u4e07\u842c\u4ebf\u5104])",
    re.I,
)
_HEDGE = re.compile(
    r"\b(?:not|never|than|at least|at most|up to|between|except|unless|no)\b|n't\b|\u4e0d|\u81f3\u5c11|\u81f3\u591a",
    re.I,
)
_ODD = re.compile(r"[\\^\u221a\u03c0+*<>\u00b1\u2213\u2260\u2264\u2265\u226a\u226b?!_|#{}\u2030]")
_CONTINUES = re.compile(r"[\d_!(+?]|[.,':]\d| ?[+*^=<>\u00b1]|(?: - ?|-)(?:[A-Za-z](?![A-Za-z])|\d)| ?/ ?[\w\\(]")


def numbers(text: str) -> list[Quantity]:
    r"""All numbers of a text: 5,000; 3,14; 1 1/2; 50%; 3e-4; 2 x 10^3; $5; '5 km/h'; \frac{\pi}{2}; 约5米.

    Empty where none stands there or where it is doubtful which (5!, >5, x - 5, 1.2.3). Overflow gives inf, x/0 nan.
    """
    text = _normal(text)
    if _HEDGE.search(text):
        return []
    try:
        found, rest = _scan(text)
    except _DoubtfulError:
        return []
    return [] if _ODD.search(rest) else found


def _scan(text: str) -> tuple[list[Quantity], str]:
    """The quantities, and the text around them."""
    found: list[Quantity] = []
    rest: list[str] = []
    at = 0
    while start := _START.search(text, at):
        first = start.start()
        if _NAME.search(text, max(at, first - 2), first):
            run = _RUN.match(text, first)
            end = run.end() if run else first + 1
            rest.append(text[at:end])
            at = end
            continue
        gap = text[at:first]
        negative, money, before = _sign(gap, begin=at == 0)
        rest.append(before)
        reader = _Reader(text, first)
        found.append(_quantity(reader, negative, money))
        at = reader.at
    rest.append(text[at:])
    return found, " ".join(rest)


def _sign(gap: str, *, begin: bool) -> tuple[bool, str, str]:
    """Whether what stands before a number makes it negative, its currency, and the text before both."""
    lead = _LEAD.search(gap, max(0, len(gap) - 16))
    assert lead is not None  # it may be empty
    sign, inner, before = (lead["sign"] or "").lower(), lead["inner"], gap[: lead.start()]
    if not sign and not inner:
        return False, lead["money"], before
    if (sign and inner) or _DOUBLE.search(before):
        raise _DoubtfulError
    if sign in ("+", "-") and (begin or before):
        detached = lead["space"] and not lead["money"]
        if not (_STATES if detached else _OPENS).search(before) or (not begin and not before.strip()):
            raise _DoubtfulError
    elif sign.isascii() and sign.isalpha() and not (_STATES.search(before) and (begin or before.strip())):
        raise _DoubtfulError
    return (sign or inner) not in _POSITIVE, lead["money"], before


def _quantity(reader: _Reader, negative: bool, money: str) -> Quantity:
    value = reader.product()
    while not spoken_unit(reader.text, reader.at) and (scale := reader.take(_SCALE)):
        value *= _SCALES[(scale["word"] or scale["k"] or scale["han"]).lower()]
    percent = reader.take(_PERCENT) is not None
    unit = money
    if not money and not percent:
        if spoken := spoken_unit(reader.text, reader.at):
            unit, reader.at = spoken
        elif named := reader.take(UNIT):
            unit = named["unit"]
    if _CONTINUES.match(reader.text, reader.at):
        ahead = reader.text[reader.at :].lstrip()
        if not (
            ahead[:1] in "-:=" and re.match(r"[-:=] ?\d", ahead)
        ):  # a second number follows: two are compared as text
            raise _DoubtfulError
    return Quantity(-value if negative else value, percent, unit)


def readings(answer: Quantity, gold: Quantity) -> list[tuple[float, float]]:
    """The (answer, gold) pairs of plain numbers worth comparing; empty where units contradict each other.

    Known units of one dimension convert; a missing one does not count; unknown ones must be the same, and where the
    other side has none be more than one letter (2x is not 2). A percent sign on one side may mean 50 or 0.5.
    """
    scale = 1.0
    ours, theirs = known_unit(answer.unit), known_unit(gold.unit)
    if answer.unit and gold.unit:
        if ours and theirs:
            if ours[0] != theirs[0]:
                return []
            scale = ours[1] / theirs[1]
        elif ours or theirs or _stem(answer.unit) != _stem(gold.unit):
            return []
    elif any(len(q.unit) == 1 and not k and q.unit < "\u0e00" for q, k in ((answer, ours), (gold, theirs))):
        return []
    a, g = answer.value * scale, gold.value
    if answer.percent == gold.percent:
        return [(a, g)]
    if answer.unit or gold.unit:
        return []
    return [(a, g), (a / 100, g)] if answer.percent else [(a, g), (a, g / 100)]


def _stem(unit: str) -> str:
    unit = unit.casefold()
    return unit.removesuffix("es") if unit.endswith(("shes", "ches", "xes", "sses")) else unit.removesuffix("s")
