"""Measures of one answer against another, numbers and texts, as the reference computes them and as we do. Pure."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jvr1.problems.answers import chosen_options, names_of, plain, tidy, transcript, words
from jvr1.problems.quantities import numbers, readings

Options = Sequence[str]
"""A record's options; most measures need none."""

# --- the reference's --------------------------------------------------------------------------------------------------


def nothing(answer: str, gold: str, options: Options = ()) -> float:
    """0: what is not scored."""
    return 0.0


def same_text(answer: str, gold: str, options: Options = ()) -> float:
    """Of Video-R1's training: '' equals ''."""
    return float(answer == gold)


def same_stripped(answer: str, gold: str, options: Options = ()) -> float:
    """Of its evaluation."""
    return float(answer.strip() == gold)


def equal_decimals(answer: str, gold: str, options: Options = ()) -> float:
    """Equal to two decimals, and both or neither with a point or a comma."""
    if any(mark in gold for mark in ".,") != any(mark in answer for mark in ".,"):
        return 0.0
    a, g = _float(answer), _float(gold)
    return float(a is not None and g is not None and round(a, 2) == round(g, 2))


def right_words(answer: str, gold: str, options: Options = ()) -> float:
    """1 - word error rate."""
    return _unit_interval(1.0 - _word_error_rate(gold.split(), answer.split()))


def mean_rouge(answer: str, gold: str, options: Options = ()) -> float:
    """Mean ROUGE-1/2/L over English words."""
    rouge = _rouge(unicode_words=False).score(gold, answer)
    return _unit_interval(sum(rouge[kind].fmeasure for kind in ("rouge1", "rouge2", "rougeL")) / 3)


def relative_closeness(answer: str, gold: str, options: Options = ()) -> float:
    """1 - relative error. Its quirks: a nan scores 1, 0 against 0 scores 0."""
    a, g = _float(answer), _float(gold)
    if a is None or g is None:
        return 0.0
    # the order of min and max makes a nan 0, hence a reward of 1
    return 1.0 - min(1.0, max(0.0, (abs(a - g) + 1e-9) / (abs(g) + 1e-9)))


def relative_accuracy(answer: str, gold: str, options: Options = ()) -> float:
    """`mean_relative_accuracy` of Python's own reading of numbers."""
    a, g = _float(answer), _float(gold)
    return 0.0 if a is None or g is None else mean_relative_accuracy(a, g)


def mean_relative_accuracy(answer: float, gold: float) -> float:
    """Share of thresholds t in {0.5, 0.55, .., 0.95} with |answer - gold| / |gold| < 1 - t (VSI-Bench, 2412.14171).

    In fp32, as the reference computes it: the comparisons are strict and some ties depend on rounding.
    """
    with np.errstate(all="ignore"):
        a, g = np.float32(answer), np.float32(gold)
        error = np.abs(a - g) / (np.abs(g) + np.float32(1e-8))
    thresholds = (0.5 + 0.05 * np.arange(10)).astype(np.float32)
    return float(np.mean(error < np.float32(1) - thresholds, dtype=np.float32))


def _float(text: str) -> float | None:
    """Python's own reading of a number without its commas; 'nan' and 'inf' are numbers to it."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


# --- robust -----------------------------------------------------------------------------------------------------------


def same_choice(answer: str, gold: str, options: Options) -> float:
    """The same options; where the gold names none, the same text, or the name or sentence of a caption."""
    letters = chosen_options(gold, options)
    return float(chosen_options(answer, options) == letters if letters else plain(answer) in names_of(gold))


def right_choices(answer: str, gold: str, options: Options) -> float:
    """The share of the right options that are named; 0 where a wrong one is."""
    named, right = chosen_options(answer, options), chosen_options(gold, options)
    return len(named) / len(right) if named and named <= right else 0.0


def close_count(answer: str, gold: str, options: Options = ()) -> float:
    """1 - |answer - gold| / max(gold, 1), at least 0."""
    return _count_score(answer, gold, lambda a, g: max(0.0, 1.0 - abs(a - g) / max(g, 1.0)))


def same_count(answer: str, gold: str, options: Options = ()) -> float:
    return _count_score(answer, gold, lambda a, g: float(a == g))


def near_count(answer: str, gold: str, options: Options = ()) -> float:
    """Off by one at most, as repetition counting has it (RepNet, arXiv 2006.15418)."""
    return _count_score(answer, gold, lambda a, g: float(abs(a - g) <= 1))


_COUNTS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_COUNT_WORD = re.compile(rf"\b({'|'.join(_COUNTS)})\b", re.I)


def _count_score(answer: str, gold: str, compare: Callable[[float, float], float]) -> float:
    """Of two whole numbers, in digits or words; 0 where one of the texts has not one."""
    a, g = (numbers(_COUNT_WORD.sub(lambda word: str(_COUNTS.index(word[1].lower())), text)) for text in (answer, gold))
    counts = [one.value for one in (*a, *g)]
    if len(a) != 1 or len(g) != 1 or not all(n >= 0 and n == int(n) for n in counts if math.isfinite(n)):
        return 0.0
    return compare(*counts) if all(map(math.isfinite, counts)) else 0.0


def same_number(answer: str, gold: str, options: Options = ()) -> float:
    return _number_score(answer, gold, lambda a, g: float(_equal_numbers(a, g)))


def close_number(answer: str, gold: str, options: Options = ()) -> float:
    return _number_score(answer, gold, _relative_closeness)


def number_accuracy(answer: str, gold: str, options: Options = ()) -> float:
    """Mean relative accuracy, the benchmark's own."""
    return _number_score(answer, gold, benchmark_relative_accuracy)


def benchmark_relative_accuracy(answer: float, gold: float) -> float:
    """The same as VSI-Bench's own code counts it: |answer - gold| / |gold| <= 1 - t, in float64; against 0 only 0."""
    if gold == 0:
        return float(answer == gold)
    return float(np.mean(abs(answer - gold) / abs(gold) <= 1 - np.linspace(0.5, 0.95, 10)))


def _number_score(answer: str, gold: str, compare: Callable[[float, float], float]) -> float:
    """Best of `compare` over the readings of one number on each side. Where a side names several, none or it is
    doubtful which, the texts must be equal."""
    a, g = numbers(answer), numbers(gold)
    if not all(math.isfinite(q.value) for q in a + g) or _NO_NUMBER.fullmatch(_same(gold)):
        return 0.0
    if len(a) == len(g) == 1:
        return max((compare(*pair) for pair in readings(a[0], g[0])), default=0.0)
    return float(_same(answer) == _same(gold))


_NO_NUMBER = re.compile(r"[-+]?(?:nan|inf(?:inity)?|∞|)", re.I)


def _same(text: str) -> str:
    """A text to compare as such: case and outer marks do not count, signs do."""
    return tidy(text).casefold().strip(" .,;:_`'\"$")


def _equal_numbers(answer: float, gold: float) -> bool:
    """Equal to two decimals, or to two significant digits where two decimals would make of the gold a zero."""
    digits = 2 if gold == 0 or round(gold, 2) else 1 - math.floor(math.log10(abs(gold)))
    return round(answer, digits) == round(gold, digits)


def _relative_closeness(answer: float, gold: float) -> float:
    """1 - min(1, |answer - gold| / |gold|); against 0 only 0 scores."""
    return float(answer == gold) if gold == 0 else 1.0 - min(1.0, abs(answer - gold) / abs(gold))


def transcription(answer: str, gold: str, options: Options = ()) -> float:
    """1 - word error rate; for a gold of one word 1 - character error rate, else one letter would decide it all."""
    a, g = transcript(answer), transcript(gold)
    if len(g) == 1 and a:
        import jiwer

        return _unit_interval(1.0 - jiwer.cer(g[0], " ".join(a)))
    return _unit_interval(1.0 - _word_error_rate(g, a))


def overlap(answer: str, gold: str, options: Options = ()) -> float:
    """Mean ROUGE-1/2/L over words of any script; without ROUGE-2 where the gold has no pair of words."""
    if plain(answer) == plain(gold):
        return 1.0
    kinds = ("rouge1", "rouge2", "rougeL") if len(words(gold)) > 1 else ("rouge1", "rougeL")
    rouge = _rouge(unicode_words=True).score(gold, answer)
    return _unit_interval(sum(rouge[kind].fmeasure for kind in kinds) / len(kinds))


# --- text measures ----------------------------------------------------------------------------------------------------


def _word_error_rate(gold: list[str], answer: list[str]) -> float:
    """(substitutions + deletions + insertions) / words of gold; with an empty gold the number of words answered.

    jiwer splits at spaces alone and the reference at any blank, hence lists of words.
    """
    if not gold or not answer:
        return len(gold or answer) / max(1, len(gold))
    import jiwer

    return jiwer.wer(" ".join(gold), " ".join(answer))


class _UnicodeTokenizer:
    """rouge-score's default tokenizer for words of any script; English words are stemmed alike."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]


@functools.cache
def _rouge(unicode_words: bool) -> Any:
    """A scorer; imported when first needed, for rouge-score brings nltk and takes a second."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _UnicodeTokenizer() if unicode_words else None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True, tokenizer=tokenizer)


def _unit_interval(value: float) -> float:
    return max(0.0, min(1.0, value))
