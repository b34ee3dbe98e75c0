"""Where in time and where in a picture: spans and boxes as people write them, and their IoU. Pure.

A record's facts say the unit: `time_unit` seconds, mm:ss or frames; `box_unit` pixels (of the picture as the model
sees it) or thousandths (0 to 1000 of its width and height). The solution is in that unit, and the answer is read in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from jvr1.problems.answers import tidy

Facts: TypeAlias = Mapping[str, Any]
"""What a record's file says beside what all records have."""
NO_FACTS: Facts = MappingProxyType({})
TimeSpan: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]
MOST = 20
"""Spans or boxes of an answer; one with more is none."""

# --- spans ------------------------------------------------------------------------------------------------------------

_TIME = r"(\d{1,9}(?:\.\d{1,9})?|\d{1,4}(?::[0-5]\d){1,2}(?:\.\d{1,9})?) ?(s|secs?|seconds?|frames?)?(?![\w:])"
_MARK = r"(?:(?:from|between) )?(?P<{0}>frames? )?<?"
_SPAN = re.compile(
    rf"(?P<open>[\[({{]*) ?{_MARK.format('a')}{_TIME}>? ?(?P<join>,|-|~|to|until|till|and) ?"
    rf"{_MARK.format('b')}{_TIME}>? ?(?P<close>[\])}}]*)"
)
_BETWEEN = re.compile(r" ?(?:[,;&] ?(?:and )?|and |then )|(?<=[\])}]) ")
_PREAMBLE = re.compile(r"[a-z][a-z ]{0,120}?[:,]? (?=(?:from |between )?(?:frames? )?[\[({<\d])")
_END = re.compile(r"(?: ?(?:of|in) the (?:video|clip))?\.?")
_HEDGE = re.compile(r"\b(?:not|no|or|except|before|after|than|unless|never)\b|n't\b")
_WORD = r"(?:[ _]?(?:time|frame|second)s?)? ?(?:[:=]|at\b|is\b)? ?"
_START_WORD = re.compile(rf"\b(?:start|begin)(?:s|ing|ning)?{_WORD}")
_END_WORD = re.compile(rf" ?[,;]? ?(?:and )?\b(?:end|stop)(?:s|ing|ping)?{_WORD}")
_FENCE = re.compile(r"```\w*|<\|[a-z_]+\|>")


def time_spans(text: str, *, frames: bool = False) -> list[TimeSpan]:
    """Starts and ends in seconds, or in frames: '[12.5, 17.0]', 'from 12.5 to 17 s', '1:05 - 1:20', '[[1, 2], [5, 8]]',
    '1-2 and 5-8', '{"start": 1, "end": 2}', 'it starts at 3 s and ends at 7 s', 'frames 12 to 40'.

    Empty for anything else: another unit, a span that ends before it starts, two that are an alternative.
    """
    text = tidy(_FENCE.sub(" ", text)).casefold()
    if _HEDGE.search(text):
        return []
    text = _END_WORD.sub(" to ", _START_WORD.sub("from ", re.sub("[\"'`*]", "", text))).strip()
    preamble = None if _SPAN.match(text) else _PREAMBLE.match(text)
    found: list[TimeSpan] = []
    at, loose = preamble.end() if preamble else 0, 0
    while one := _SPAN.match(text, at):
        span = _span(one, frames)
        if span is None or len(found) == MOST:
            return []
        found.append(span)
        loose += one["join"] in (",", "and") and not (one["open"] and one["close"]) and "between" not in one[0]
        at = one.end()
        if _END.fullmatch(text, at):
            return [] if loose and len(found) > 1 else found  # 1, 2, 5, 8 may mean anything
        between = _BETWEEN.match(text, at)
        if between is None:
            return []
        at = between.end()
    return []


def _span(one: re.Match[str], frames: bool) -> TimeSpan | None:
    _, _, first, unit, _, _, second, other, _ = one.groups()
    said = {word for word in (unit, other) if word}
    of_frames = bool(one["a"] or one["b"]) or any(word.startswith("frame") for word in said)
    of_seconds = any(word.startswith("s") for word in said) or ":" in first + second
    if of_seconds if frames else of_frames:
        return None
    start, end = _seconds(first), _seconds(second)
    return (start, end) if start < end else None


def _seconds(clock: str) -> float:
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def temporal_iou(answer: str, gold: str, facts: Facts = NO_FACTS) -> float:
    """Intersection over union in time (TALL, arXiv 1705.02101), of several spans what they cover together; 0 where one
    of the texts is none."""
    in_frames = facts.get("time_unit") == "frames"
    a, g = time_spans(answer, frames=in_frames), time_spans(gold, frames=in_frames)
    if not a or not g:
        return 0.0
    both = either = 0.0
    for start, end in pairwise(sorted({time for span in (*a, *g) for time in span})):
        inside = [any(s <= start and end <= e for s, e in each) for each in (a, g)]
        both += (end - start) * all(inside)
        either += (end - start) * any(inside)
    return both / either


def not_spans(gold: str, facts: Facts) -> str | None:
    return None if time_spans(gold, frames=facts.get("time_unit") == "frames") else "is no interval"


# --- boxes ------------------------------------------------------------------------------------------------------------

_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_FOUR = re.compile(rf"[\[({{]? ?{_NUMBER} ?, ?{_NUMBER}(?: ?[\])] ?,? ?[\[(]| ?,) ?{_NUMBER} ?, ?{_NUMBER} ?[\])}}]?")
_CORNER = re.compile(
    r"[\"']?\b(?:bbox(?:_2d)?|box(?:_2d)?|[xy]_?(?:1|2|min|max)|left|top|right|bottom)\b[\"']? ?[:=]? ?"
)
_LABEL = re.compile(r"[\"']label[\"'] ?: ?[\"'][^\"']*[\"']")


def boxes(text: str) -> list[Box]:
    """Left, top, right, bottom of each box: '[10, 20, 110, 220]', '(10,20),(110,220)', '{"bbox_2d": [..]}' with labels,
    'x1: 10, y1: 20, x2: 110, y2: 220', several of one form. Empty for anything else, and where one has no area."""
    text = _CORNER.sub("", _LABEL.sub("", tidy(_FENCE.sub(" ", text)).casefold()))
    found: list[Box] = []
    rest, at = [], 0
    for one in _FOUR.finditer(text):
        left, top, right, bottom = (float(n) for n in one.groups())
        if left >= right or top >= bottom or len(found) == MOST:
            return []
        found.append((left, top, right, bottom))
        rest.append(text[at : one.start()])
        at = one.end()
    rest.append(text[at:])
    return [] if re.search(r"[\d-]|\bor\b|\bnot\b", " ".join(rest)) else found


def spatial_iou(answer: str, gold: str, facts: Facts = NO_FACTS) -> float:
    """Intersection over union of areas, of several boxes what they cover together; 0 where one of the texts is none."""
    a, g = boxes(answer), boxes(gold)
    if not a or not g:
        return 0.0
    across, down = (np.unique([box[i] for box in (*a, *g) for i in at]) for at in ((0, 2), (1, 3)))
    area = np.diff(across)[:, None] * np.diff(down)[None]
    inside = [_covered(each, across, down) for each in (a, g)]
    return float(area[inside[0] & inside[1]].sum() / area[inside[0] | inside[1]].sum())


def _covered(each: Sequence[Box], across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Which cells between the lines are in a box."""
    cells = np.zeros((len(across) - 1, len(down) - 1), bool)
    for left, top, right, bottom in each:
        x, y = (across[:-1] >= left) & (across[1:] <= right), (down[:-1] >= top) & (down[1:] <= bottom)
        cells |= x[:, None] & y[None]
    return cells


def not_boxes(gold: str, facts: Facts) -> str | None:
    found = boxes(gold)
    if not found:
        return "is no box"
    beyond = facts.get("box_unit") == "thousandths" and max(max(box) for box in found) > 1000
    return "has a box beyond 1000" if beyond else None


def at_least(threshold: float, iou: Callable[[str, str, Facts], float]) -> Callable[[str, str, Facts], float]:
    """Whether an IoU is at least so much: R@1 as TALL's code counts it."""
    return lambda answer, gold, facts: float(iou(answer, gold, facts) >= threshold)
