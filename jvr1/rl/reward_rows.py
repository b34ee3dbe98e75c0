"""What a user's reward sees of a completion, how it may be written, and how what it gives is read. Pure; no JAX."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jvr1.errors import UserError, shown

CAUSES = ("exception", "timeout", "value", "died")
"""By which failed calls are counted."""
LARGEST_REWARD = 1e18
"""Beyond it fp32 has no square, and the deviation of a group's rewards is no number."""


@dataclass(frozen=True)
class RewardRow:
    """A completion and its question.

    completion: the whole text; answer: what it encloses in its answer tags (None: nothing); gold: the record's
    solution as its file has it, tags included; gold_answer: what these enclose. accuracy, format: the run's own scores
    of it. tokens: its length, end token counted; ended: whether that came; frames: 'ordered' or 'shuffled', the order
    of the clip's frames; step: steps taken before. duration: seconds of its video (None: unknown or no video); path:
    of its medium, a tuple of several. extra: what else the record's file has of it, by name.
    """

    completion: str
    answer: str | None
    gold: str
    gold_answer: str
    accuracy: float
    format: float
    tokens: int
    ended: bool
    frames: str
    step: int
    problem_id: int | str
    problem: str
    problem_type: str
    data_type: str
    data_source: str
    options: tuple[str, ...]
    path: str | tuple[str, ...] | None
    duration: float | None
    extra: Mapping[str, Any]


ROW_FIELDS = tuple(f.name for f in fields(RewardRow))


def row_to_json(row: RewardRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ROW_FIELDS}


def row_from_json(raw: Mapping[str, Any]) -> RewardRow:
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) and k in ("options", "path") else v for k, v in raw.items()
    }
    return RewardRow(**values)


@dataclass(frozen=True)
class RewardForm:
    """How a reward is written. name: of its value where it gives one number. whole: it takes a list `rows` and gives a
    list; else one completion, as `row`, or those fields of it that its parameters name (`every`: all of them).
    waits: it is a coroutine."""

    function: Callable[..., Any]
    name: str
    whole: bool
    one: bool
    names: tuple[str, ...]
    optional: frozenset[str]
    every: bool
    waits: bool

    def call(self, rows: Sequence[RewardRow]) -> Any:
        """What the function gives; of a coroutine, what is to be awaited."""
        if self.whole:
            return self.function(list(rows))
        (row,) = rows
        if self.one:
            return self.function(row)
        return self.function(**self._arguments(row))

    def _arguments(self, row: RewardRow) -> dict[str, Any]:
        there = dict(row.extra) | {name: getattr(row, name) for name in ROW_FIELDS}
        if self.every:
            return there
        for name in self.names:
            if name not in there and name not in self.optional:
                known = ", ".join(ROW_FIELDS)
                raise TypeError(f"it takes {name!r}, which is no field of a row ({known}) or of its record")
        return {name: there[name] for name in self.names if name in there}

    def read(self, given: Any, count: int) -> list[dict[str, Any]]:
        """Of `count` rows: {"values": value by name} or {"cause", "error"}."""
        if not self.whole:
            return [self._row(given)]
        several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
        each = list(given) if several else []
        if len(each) != count or not several:
            told = f"{len(each)} values" if several else _named(given)
            return [failure("value", f"it gave {told} for {count} rows; a list with one for each is expected")] * count
        return [self._row(one) for one in each]

    def _row(self, given: Any) -> dict[str, Any]:
        try:
            if isinstance(given, Mapping):
                return {"values": {str(name): as_number(value) for name, value in given.items()}}
            return {"values": {self.name: as_number(given)}}
        except ValueError as error:
            return failure("value", str(error))


def as_number(value: Any) -> float | None:
    """Of what a reward gave; None: no opinion. Raises ValueError for what is none, or too large."""
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"it gave {_named(value)}; a number, None, or such by name are expected") from None
    if not abs(found) <= LARGEST_REWARD:
        raise ValueError(f"it gave {value!r}, which is no number, or too large for fp32")
    return found


def _named(value: Any) -> str:
    return f"{shown(value)}, a {type(value).__name__}"


def failure(cause: str, error: str) -> dict[str, Any]:
    return {"cause": cause, "error": error[:500]}


def reward_form(function: Callable[..., Any], spec: str) -> RewardForm:
    """Raises UserError for a function whose parameters cannot be filled."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"reward.user {spec!r} does not say its parameters; write a Python function") from None
    kinds = {p.name: p.kind for p in parameters}
    if any(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL) for kind in kinds.values()):
        raise UserError(
            f"reward.user {spec!r} takes parameters by place; name them: rows, row, or fields of a row "
            f"({', '.join(ROW_FIELDS)})"
        )
    names = tuple(name for name, kind in kinds.items() if kind != inspect.Parameter.VAR_KEYWORD)
    optional = frozenset(p.name for p in parameters if p.default is not inspect.Parameter.empty)
    needed = [name for name in names if name not in optional]
    call = getattr(function, "__call__", None)  # noqa: B004  (of an object, its method may be the coroutine)
    return RewardForm(
        function,
        spec.partition(":")[2].rpartition(".")[2],
        whole=needed == ["rows"],
        one=needed == ["row"],
        names=names,
        optional=optional,
        every=len(names) < len(kinds),
        waits=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call),
    )
