"""Robust scores of numbers beside math-verify's, on the values that the tests write in many ways.

Needs the tests beside the tools, and pip install math-verify, which is no dependency. The list is made for our
grammar: it says what the library does not read, not which is better elsewhere.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from jvr1.errors import UserError
from jvr1.rl.rewards import score

Pair = tuple[str, str, bool]
"""An answer, a gold answer, whether they are equal."""


def run() -> dict[str, Any]:
    """Wrong ones among equal and among different pairs, and milliseconds a pair."""
    try:
        library = importlib.import_module("math_verify")
    except ImportError:
        raise UserError("part answers needs math-verify: pip install math-verify") from None
    found = pairs()
    ways: dict[str, Callable[[str, str], float]] = {
        "robust": robust,
        "math-verify": lambda answer, gold: library.verify(library.parse(gold), library.parse(answer)),
        "math-verify within $": lambda answer, gold: library.verify(
            library.parse(f"${gold}$"), library.parse(f"${answer}$")
        ),
    }
    report: dict[str, Any] = {"equal": sum(same for _, _, same in found), "different": sum(not s for *_, s in found)}
    return report | {name: measured(way, found) for name, way in ways.items()}


def pairs() -> list[Pair]:
    """Each form with each of four signs against its value and against two values that a misreading gives."""
    tests = importlib.import_module("tests.rl.test_quantities")
    found = [(answer, gold, False) for answer, gold in tests.DIFFERENT]
    for form, value in tests.FORMS:
        for sign, factor in (("", 1), ("-", -1), ("−", -1), ("minus ", -1)):
            exact = float(value) * factor
            found.append((sign + form, repr(exact), True))
            found += [(sign + form, repr(other), False) for other in tests.wrong_values(exact)[:2]]
    return found


def robust(answer: str, gold: str) -> float:
    return score(f"<think>so</think><answer>{answer}</answer>", gold, "numerical", "robust").accuracy


def measured(way: Callable[[str, str], float], found: list[Pair]) -> dict[str, float]:
    start = time.perf_counter()
    given = [bool(way(answer, gold)) for answer, gold, _ in found]
    seconds = time.perf_counter() - start
    wrong = [(said, same) for said, (_, _, same) in zip(given, found, strict=True) if said != same]
    return {
        "wrong 1": sum(said for said, _ in wrong),
        "wrong 0": sum(same for _, same in wrong),
        "milliseconds a pair": 1000 * seconds / len(found),
    }
