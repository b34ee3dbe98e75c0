"""Solutions that a reward cannot do much with, found before a run rather than in its curves. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from jvr1.problems.answers import final_answer, first_answer
from jvr1.problems.kinds import kind_of


@runtime_checkable
class Posed(Protocol):
    """A question as `data.records.Record` holds it."""

    @property
    def problem_type(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def solution(self) -> str: ...
    @property
    def further(self) -> Mapping[str, Any]: ...


_NO_VALUE = re.compile(r"[-+]?(?:nan|inf(?:inity)?|none|null|n/a)", re.I)


def doubt(record: Posed) -> str | None:
    """What is wrong with a record's solution; None where nothing is."""
    if not first_answer(record.solution):
        return "has an empty answer" if "<answer>" in record.solution else "stands without <answer> tags"
    gold = final_answer(record.solution)
    if _NO_VALUE.fullmatch(gold):
        return "is no value"
    kind = kind_of(record.problem_type)
    return kind.doubt(gold, kind.given(record.options, record.further))


def doubts(records: Iterable[Posed]) -> str:
    """A line for each kind of doubtful solution, how many and which is the first; '' where there is none."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        if (what := doubt(record)) is not None:
            rows[what].append(row)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(f"  solution {len(at):>7}  {what} (such as record {at[0]})" for what, at in ordered)
