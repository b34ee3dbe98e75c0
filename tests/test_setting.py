"""What a field says of a setting, and what comes of it: names, ranges, sentences."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

import pytest

from jvr1.errors import UserError
from jvr1.setting import check_section, no_pattern, section, section_helps, setting, settings_of, written_as


@dataclass(frozen=True)
class Inner:
    low: int = setting(MISSING, "Least of all", least=0, most="high")
    high: int = setting(MISSING, "Most of all")
    late: float | int | None = setting(None, "After low", above="low")


@dataclass(frozen=True)
class Outer:
    name: str = setting("a", "Which", one_of=("a", "b"), resume="fixed")
    share: float = setting(0.5, "A share", above=0, most=1)
    bonus: float = setting(1.0, "A bonus", finite=True)
    rate: float | None = setting(None, "A rate", least=0, below=1)
    weight: float = setting(1.0, "A weight", above=0)
    words: tuple[str, ...] = setting(("x",), "Words", needed=True, wrong=no_pattern)
    loud: bool = setting(False, "Loud", of_machine=True)
    inner: Inner = section(Inner(1, 3), "Inside", resume="free", without=("late",))
    kept: int = 7


@dataclass(frozen=True)
class Whole:
    seed: int = setting(0, "Seed")
    outer: Outer = section(Outer(), "All of it", resume="tunable")


NAMED = {one.name: one for one in settings_of(Whole())}


def test_names_and_what_may_change_come_from_the_place():
    assert {name: one.about.resume for name, one in NAMED.items()} == {
        "seed": "fixed", "outer.name": "fixed", "outer.share": "tunable", "outer.bonus": "tunable",
        "outer.rate": "tunable", "outer.weight": "tunable", "outer.words": "tunable", "outer.loud": "tunable",
        "outer.inner.low": "free", "outer.inner.high": "free",
    }  # fmt: skip
    assert {name for name, one in NAMED.items() if one.about.of_machine} == {"outer.loud"}
    assert NAMED["outer.inner.low"].about.help == "Inside: least of all"
    assert section_helps(Whole()) == {"outer": "All of it"}
    assert {name: one.type for name, one in NAMED.items() if one.type is not float} == {
        "seed": int, "outer.name": str, "outer.words": tuple, "outer.loud": bool, "outer.inner.low": int,
        "outer.inner.high": int,
    }  # fmt: skip


def test_what_each_can_be_is_said():
    assert {name: one.values for name, one in NAMED.items()} == {
        "seed": "a whole number",
        "outer.name": "a, b",
        "outer.share": "a number, positive and at most 1",
        "outer.bonus": "a number, finite",
        "outer.rate": "a number, at least 0 and below 1, or none",
        "outer.weight": "a number, positive",
        "outer.words": "a tuple",
        "outer.loud": "true or false",
        "outer.inner.low": "a whole number, between 0 and outer.inner.high",
        "outer.inner.high": "a whole number",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "c"}, "outer.name is 'c'; use one of a, b"),
        ({"share": 0.0}, "outer.share is 0.0; it must be positive and at most 1"),
        ({"share": 1.1}, "outer.share is 1.1; it must be positive and at most 1"),
        ({"share": float("nan")}, "outer.share is nan; it must be a number"),
        ({"bonus": float("-inf")}, "outer.bonus is -inf; it must be finite"),
        ({"rate": 1.0}, "outer.rate is 1.0; it must be at least 0 and below 1, or None"),
        ({"rate": -0.1}, "outer.rate is -0.1; it must be at least 0 and below 1, or None"),
        ({"words": ()}, "outer.words is not set; give it in the config file or as --config.outer.words=..."),
        ({"words": ("(",)}, "outer.words holds '(', which is no regular expression: missing ), unterminated"),
        ({"inner": Inner(4, 3)}, "outer.inner.low is 4; it must be between 0 and outer.inner.high, 3"),
        ({"inner": Inner(-1, 3)}, "outer.inner.low is -1; it must be between 0 and outer.inner.high, 3"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_name(changes, message):
    with pytest.raises(UserError) as error:
        check_section(Outer(**changes), "outer.")
    assert str(error.value).startswith(message)


def test_bounds_are_values_where_they_say_so():
    check_section(Outer(share=1.0, rate=0.0, inner=Inner(3, 3)))
    check_section(Inner(0, 0, 0.1))
    for late, low in ((0, 0), (2, 2)):
        with pytest.raises(UserError, match=f"^late is {late}; it must be above low, {low}, or None$"):
            check_section(Inner(low, 9, late))


def test_errors_name_settings_as_they_were_written():
    names = {"share": "outer.share", "inner.low": "--inner-low"}
    with pytest.raises(UserError) as error, written_as(names):
        raise UserError("share=2 and inner.low, not shares, other.share or share.x; --share is share.")
    assert str(error.value) == (
        "outer.share=2 and --inner-low, not shares, other.share or share.x; --share is outer.share."
    )
    with pytest.raises(UserError, match=r"^share$"), written_as({}):
        raise UserError("share")
