"""JSON objects of model folders, their values asked for by name and kind and checked as they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from jvr1.errors import UserError, shown


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises UserError naming `where`: no JSON, no object, a name that stands there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UserError(f"{where}: {shown(next(n for n in names if names.count(n) > 1))} stands there twice")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        raw = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a JSON object is expected, not a {type(raw).__name__}")
    return raw


class Fields:
    """Fields of an object. A field that is absent has its default; without one it is missing, which is an error, as is
    a value of another kind or out of range. `where` says in errors which file, `section` which part of it."""

    def __init__(self, raw: Mapping[str, Any], where: str, section: str = "") -> None:
        self.raw, self.where, self.section = raw, where, section

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Raises UserError about a field."""
        shown = json.dumps(self.raw.get(name), default=str)
        value = f" is {shown if len(shown) <= 60 else shown[:57] + '...'}" if name in self.raw else ""
        raise UserError(f"{self.where}: {self.section}{name}{value}{reason}")

    def given(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def part(self, *names: str) -> Fields:
        """The first of these objects that is there and not null; without any, one without fields."""
        for name in filter(self.given, names):
            if not isinstance(self.raw[name], Mapping):
                self.refuse(name, "; an object belongs there")
            return Fields(self.raw[name], self.where, f"{self.section}{name}.")
        return Fields({}, self.where, self.section)

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int) -> int:
        """A whole number in [least, most]."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, "; a whole number belongs there")
        if value < least:
            self.refuse(name, f"; it must be at least {least}")
        if value > most:
            self.refuse(name, f"; it must be at most {most}")
        return value

    def number(self, name: str, default: float, *, above: float | int, most: float | int) -> float:
        """A finite number in (above, most]."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "; a number belongs there")
        if not (math.isfinite(value) and above < value <= most):
            self.refuse(name, f"; it must be above {above:g} and at most {most:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "; true or false belongs there")
        return value

    def wholes(self, name: str, default: tuple[int, ...], *, most: int) -> tuple[int, ...]:
        """A list of whole numbers in [0, most]; the default is not checked."""
        value = self._value(name, default)
        if value is default:
            return default
        if not isinstance(value, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            self.refuse(name, "; a list of whole numbers belongs there")
        if not all(0 <= i <= most for i in value):
            self.refuse(name, f"; each must be from 0 to {most}")
        return tuple(value)

    def _value(self, name: str, default: Any) -> Any:
        if name not in self.raw and default is None:
            raise UserError(f"{self.where}: field '{self.section}{name}' is missing")
        return self.raw.get(name, default)
