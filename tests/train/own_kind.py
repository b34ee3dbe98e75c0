"""A problem kind as users write one: the runs of tests/train/test_own_kind.py name it."""

from __future__ import annotations

from collections.abc import Sequence

from jvr1.problems.kinds import Kind, Metric


def same_shade(answer: str, gold: str, options: Sequence[str]) -> float:
    """1 for the colour, half for its first letter."""
    a, g = answer.strip().casefold(), gold.casefold()
    return 1.0 if a == g else 0.5 * float(a[:1] == g[:1])


def letter(answer: str, gold: str, options: Sequence[str]) -> float:
    return float(answer.strip()[:1].casefold() == gold[:1].casefold())


def no_word(gold: str, options: Sequence[str]) -> str | None:
    return None if gold.isalpha() else "is not one word"


SHADE = Kind(
    "shade", suffix=" Name the shade in one word.", robust=same_shade, doubt=no_word,
    metrics=(Metric("first letter", letter),),
)  # fmt: skip
OTHER = Kind("shade", suffix=" Which shade?", robust=same_shade)
BUILT_IN = Kind("OCR", suffix="", robust=same_shade)
NOTHING = "shade"
BEYOND = Kind("beyond", suffix="", robust=lambda answer, gold, options: float(answer))
