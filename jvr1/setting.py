"""Settings: fields of frozen dataclasses that say their range, what they do and what may change when a run goes on.

From them come the defaults, the checks and their sentences, docs/config.md and what --help prints (`jvr1.config`).
"""

from __future__ import annotations

import math
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from jvr1.errors import UserError

Resume: TypeAlias = Literal["fixed", "tunable", "free"]
"""What a setting may be when a run goes on: as it was; another one, which changes what is learned from there on, so
that the run says so; another one without a word."""
Limit: TypeAlias = float | int | str | None
"""A number, or the name of a setting beside this one; that counts as 0 where it is None."""

_TYPES: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (float, int)),
    str: ("a text", (str,)),
    tuple: ("a tuple", (tuple, list)),
}
"""Of a setting's type: what its values are called, and which types they may have."""
_BOUNDS = (
    ("least", "at least", operator.ge), ("above", "above", operator.gt), ("most", "at most", operator.le),
    ("below", "below", operator.lt),
)  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a field says of itself.

    least, above, most, below: bounds of a number. one_of: all that it can be. needed: it must not be empty. wrong: what
    is wrong of a value, in words that follow the setting's name, or None. resume: None is as its section says.
    of_machine: the processes of a run may have it otherwise.
    """

    help: str
    least: Limit = None
    above: Limit = None
    most: Limit = None
    below: Limit = None
    finite: bool = False
    one_of: Collection[str] = ()
    needed: bool = False
    wrong: Callable[[Any], str | None] | None = None
    resume: Resume | None = None
    of_machine: bool = False


@dataclass(frozen=True)
class AboutSection:
    """What a field says whose value is a dataclass of settings; `without`: fields of that one which are none here."""

    help: str
    resume: Resume | None
    without: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A setting where it stands: its name as the user writes it, its type, its value in the section it was read of."""

    name: str
    hint: Any
    value: Any
    about: About

    @property
    def type(self) -> type:
        """bool, int, float, str or tuple."""
        first = typing.get_args(self.hint)[0] if isinstance(self.hint, types.UnionType) else self.hint
        return typing.get_origin(first) or first

    @property
    def optional(self) -> bool:
        return types.NoneType in typing.get_args(self.hint)

    @property
    def values(self) -> str:
        """What it can be, as docs/config.md and --help say it."""
        if self.about.one_of:
            return ", ".join(self.about.one_of)
        span = self._span(lambda bound: self._beside(bound) if isinstance(bound, str) else str(bound))
        return f"{_TYPES[self.type][0]}{', ' * bool(span)}{span}{', or none' * self.optional}"

    def fault(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong of its value, in words that follow its name, or None. values: of all settings, by name."""
        value, about = values[self.name], self.about
        called, allowed = _TYPES[self.type]
        if value is None and self.optional:
            return None
        if not isinstance(value, allowed) or isinstance(value, bool) != (self.type is bool) or value != value:
            return f"is {value!r}; it must be {called}"
        if about.needed and not value:
            return f"is not set; give it in the config file or as --config.{self.name}=..."
        if about.one_of and value not in about.one_of:
            return f"is {value!r}; use one of {', '.join(about.one_of)}"
        if self._outside(value, values):
            told = self._span(lambda bound: self._shown(bound, values))
            return f"is {value}; it must be {told}{', or None' * self.optional}"
        return about.wrong(value) if about.wrong else None

    def _outside(self, value: Any, values: Mapping[str, Any]) -> bool:
        bounds = [(getattr(self.about, name), holds) for name, _, holds in _BOUNDS]
        within = all(holds(value, self._number(bound, values)) for bound, holds in bounds if bound is not None)
        return not within or (self.about.finite and not math.isfinite(value))

    def _span(self, shown: Callable[[Limit], str]) -> str:
        about = self.about
        if about.least is not None and about.most is not None:
            return f"between {shown(about.least)} and {shown(about.most)}"
        given = [(word, bound) for name, word, _ in _BOUNDS if (bound := getattr(about, name)) is not None]
        parts = ["positive" if (word, bound) == ("above", 0) else f"{word} {shown(bound)}" for word, bound in given]
        return " and ".join(parts + ["finite"] * about.finite)

    def _beside(self, name: str) -> str:
        return self.name.removesuffix(self.name.rpartition(".")[2]) + name

    def _number(self, bound: Limit, values: Mapping[str, Any]) -> Any:
        return values[self._beside(bound)] or 0 if isinstance(bound, str) else bound

    def _shown(self, bound: Limit, values: Mapping[str, Any]) -> str:
        number = self._number(bound, values)
        return f"{self._beside(bound)}, {number}" if isinstance(bound, str) else f"{number}"


def setting(
    default: Any,
    help: str,
    *,
    least: Limit = None,
    above: Limit = None,
    most: Limit = None,
    below: Limit = None,
    finite: bool = False,
    one_of: Collection[str] = (),
    needed: bool = False,
    wrong: Callable[[Any], str | None] | None = None,
    resume: Resume | None = None,
    of_machine: bool = False,
) -> Any:
    """A field that is a setting: what it is by default (`dataclasses.MISSING`: nothing) and what `About` says of it."""
    about = About(help, least, above, most, below, finite, one_of, needed, wrong, resume, of_machine)
    return field(default=default, metadata={"about": about})


def section(default: Any, help: str = "", *, resume: Resume | None = None, without: tuple[str, ...] = ()) -> Any:
    """A field that holds settings: a frozen dataclass with the values they have by default."""
    return field(default=default, metadata={"section": AboutSection(help, resume, without)})


def settings_of(
    root: Any, prefix: str = "", resume: Resume = "fixed", without: tuple[str, ...] = ()
) -> Iterator[Setting]:
    """The settings of a section with the values it has, those of the sections in it too. A field that does not say what
    it is, is none."""
    hints = typing.get_type_hints(type(root))
    for each in fields(root):
        value, name = getattr(root, each.name), prefix + each.name
        inner, about = each.metadata.get("section"), each.metadata.get("about")
        if inner is not None:
            for one in settings_of(value, f"{name}.", inner.resume or resume, inner.without):
                help = one.about.help
                told = f"{inner.help}: {help[0].lower()}{help[1:]}" if prefix and inner.help else help
                yield replace(one, about=replace(one.about, help=told))
        elif about is not None and each.name not in without:
            yield Setting(name, hints[each.name], value, replace(about, resume=about.resume or resume))


def section_helps(root: Any) -> dict[str, str]:
    """Name -> what is to be said of each section."""
    return {each.name: each.metadata["section"].help for each in fields(root) if "section" in each.metadata}


def check_settings(settings: Iterable[Setting], values: Mapping[str, Any]) -> None:
    """Raises UserError for a value that a setting cannot have by itself. values: of all, by name."""
    for one in settings:
        if wrong := one.fault(values):
            raise UserError(f"{one.name} {wrong}")


def check_section(section: Any, prefix: str = "") -> None:
    """Raises UserError for a value of a section that cannot be, named with `prefix`."""
    settings = list(settings_of(section, prefix))
    check_settings(settings, {one.name: one.value for one in settings})


def no_pattern(patterns: Any) -> str | None:
    """Of regular expressions, for `About.wrong`: the first that is none."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            return f"holds {pattern!r}, which is no regular expression: {error}"
    return None


@contextmanager
def written_as(names: Mapping[str, str]) -> Iterator[None]:
    """Makes a UserError name settings as the user wrote them: setting -> flag, or its name in full."""
    try:
        yield
    except UserError as error:
        known = "|".join(map(re.escape, names)) or "(?!)"
        raise UserError(re.sub(rf"(?<![\w.-])({known})(?!\.?\w)", lambda found: names[found[1]], str(error))) from None
