"""Solutions that a reward cannot do much with, found before a run rather than in its curves. Pure."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from jvr1.rl.answers import chosen_options, final_answer, first_answer
from jvr1.rl.quantities import numbers


@runtime_checkable
class Posed(Protocol):
    """A question as `data.records.Record` holds it."""

    @property
    def problem_type(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def solution(self) -> str: ...


_NO_VALUE = re.compile(r"[-+]?(?:nan|inf(?:inity)?|none|null|n/a)", re.I)
_LETTERED = re.compile(r"\(?([A-Z])[).:]")


def doubt(record: Posed) -> str | None:
    """What is wrong with a record's solution; None where nothing is."""
    if not first_answer(record.solution):
        return "has an empty answer" if "<answer>" in record.solution else "stands without <answer> tags"
    gold = final_answer(record.solution)
    if _NO_VALUE.fullmatch(gold):
        return "is no value"
    if record.problem_type == "multiple choice" and record.options:
        letters = chosen_options(gold, record.options)
        if not letters:
            return "names no option"
        lettered = [_LETTERED.match(option) for option in record.options]
        there = {m[1] for m in lettered if m} or {chr(ord("A") + i) for i in range(len(record.options))}
        if not letters <= there:
            return "names a letter that is no option"
    if record.problem_type in ("numerical", "regression"):
        found = numbers(gold)
        if len(found) != 1 or not math.isfinite(found[0].value):
            return "is not one number"
    return None


def doubts(records: Iterable[Posed]) -> str:
    """A line for each kind of doubtful solution, how many and which is the first; '' where there is none."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        if (what := doubt(record)) is not None:
            rows[what].append(row)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(f"  solution {len(at):>7}  {what} (such as record {at[0]})" for what, at in ordered)
