"""What can be wrong with a solution, by what it should be. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from jvr1.problems.answers import chosen_options
from jvr1.problems.measures import Options
from jvr1.problems.quantities import numbers

Doubt: TypeAlias = Callable[[str, Any], str | None]
"""(gold, the record's options, or its facts where the kind goes by these) -> what is wrong, such as 'names no option';
None where nothing is."""

_LETTERED = re.compile(r"\(?([A-Z])[).:]")


def no_doubt(gold: str, options: Options) -> None:
    return None


def not_an_option(gold: str, options: Options) -> str | None:
    if not options:
        return None
    letters = chosen_options(gold, options)
    if not letters:
        return "names no option"
    lettered = [_LETTERED.match(option) for option in options]
    there = {m[1] for m in lettered if m} or {chr(ord("A") + i) for i in range(len(options))}
    return None if letters <= there else "names a letter that is no option"


def not_one_option(gold: str, options: Options) -> str | None:
    """Of a kind whose answer is a single letter."""
    wrong = not_an_option(gold, options)
    return "names several options" if options and not wrong and len(chosen_options(gold, options)) > 1 else wrong


def not_a_number(gold: str, options: Options) -> str | None:
    found = numbers(gold)
    return None if len(found) == 1 and math.isfinite(found[0].value) else "is not one number"
