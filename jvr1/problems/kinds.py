"""Problem kinds, a row each: how a question is put, how its answer is scored in each mode, what an evaluation measures.

Everything that depends on a record's `problem_type` asks this table: prompts, rewards, the check of solutions, reports.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from jvr1.errors import UserError
from jvr1.problems import measures
from jvr1.problems.answers import tidy
from jvr1.problems.doubts import Doubt, no_doubt, not_a_number, not_an_option
from jvr1.problems.measures import Options

Scorer: TypeAlias = Callable[[str, str, Options], float]
"""(answer, gold, the record's options) -> a value in [0,1]; raises for no answer, whatever it is."""


@dataclass(frozen=True)
class Metric:
    """A number of a kind's evaluation: the mean over its questions of `of` (None: of their accuracy); no answer is 0.
    key: its name in report.json where that is not 'kind: name'."""

    name: str
    of: Scorer | None = None
    key: str = ""


@dataclass(frozen=True)
class Kind:
    """A problem kind.

    name: as records say it in `problem_type`. suffix: what a prompt ends in; lists_options: whether it has the options.
    robust: accuracy in the mode of that name, of an answer and a gold that are not empty. evaluated: the same where a
    model is evaluated (None: `robust`). reference, eval_reference: accuracy as Video-R1's training and evaluation have
    it, of any texts (None: it has none, and scores are `robust`'s). doubt: what is wrong with a solution.
    apart: whether reports have the accuracy of the other kinds alone, too.
    """

    name: str
    suffix: str
    robust: Scorer
    evaluated: Scorer | None = None
    reference: Scorer | None = None
    eval_reference: Scorer | None = None
    lists_options: bool = False
    doubt: Doubt = no_doubt
    metrics: tuple[Metric, ...] = ()
    apart: bool = False

    def accuracy(self, answer: str, gold: str, options: Options, mode: str, *, evaluated: bool = False) -> float:
        """In a mode of `rl.rewards`."""
        exact = {"reference": self.reference, "eval-reference": self.eval_reference}.get(mode)
        if exact is not None:
            return exact(answer, gold, options)
        robust = (evaluated and self.evaluated) or self.robust
        return robust(answer, gold, options) if answer and gold else 0.0


# --- temporal grounding -----------------------------------------------------------------------------------------------

_TIME = r"(\d{1,9}(?:\.\d{1,9})?|\d{1,4}(?::[0-5]\d){1,2}(?:\.\d{1,9})?) ?(?:s|secs?|seconds?)?"
_INTERVAL = re.compile(rf"[\[(]? ?(?:(?:from|between) )?{_TIME} ?(?:,|-|to|and) ?{_TIME} ?[\])]?\.?", re.I)


def interval(text: str) -> tuple[float, float] | None:
    """Start and end in seconds: '[12.5, 17.0]', 'from 12.5 to 17 s', '1:05 - 1:20'; None for anything else."""
    found = _INTERVAL.fullmatch(tidy(text))
    start, end = (_seconds(time) for time in found.groups()) if found else (0.0, 0.0)
    return (start, end) if start < end else None


def _seconds(clock: str) -> float:
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def temporal_iou(answer: str, gold: str, options: Options = ()) -> float:
    """Intersection over union of two intervals (TALL, arXiv 1705.02101); 0 where one of the texts is none."""
    a, g = interval(answer), interval(gold)
    if a is None or g is None:
        return 0.0
    # in this form never above 1, however it is rounded
    return max(0.0, (min(a[1], g[1]) - max(a[0], g[0])) / (max(a[1], g[1]) - min(a[0], g[0])))


def _recall(threshold: float) -> Metric:
    """R@1 at an IoU of at least so much, as TALL's code counts it."""
    return Metric(f"R@{threshold}", lambda answer, gold, options: float(temporal_iou(answer, gold) >= threshold))


def _not_an_interval(gold: str, options: Options) -> str | None:
    return None if interval(gold) else "is not one interval"


# --- the table --------------------------------------------------------------------------------------------------------

_WITHIN = " within the <answer> </answer> tags."
_NUMBER = f" Please provide the numerical value (e.g., 42 or 3.14){_WITHIN}"

_ROWS = (
    Kind(
        "multiple choice",
        suffix=f" Please provide only the single option letter (e.g., A, B, C, D, etc.){_WITHIN}",
        lists_options=True,
        robust=measures.same_choice,
        reference=measures.same_text,
        eval_reference=measures.same_stripped,
        doubt=not_an_option,
    ),
    Kind(
        "numerical",
        suffix=_NUMBER,
        robust=measures.same_number,
        reference=measures.equal_decimals,
        eval_reference=measures.equal_decimals,
        doubt=not_a_number,
    ),
    Kind(
        "OCR",
        suffix=f" Please transcribe text from the image/video clearly and provide your text answer{_WITHIN}",
        robust=measures.transcription,
        reference=measures.right_words,
        eval_reference=measures.nothing,
    ),
    Kind(
        "free-form",
        suffix=f" Please provide your text answer{_WITHIN}",
        robust=measures.overlap,
        reference=measures.mean_rouge,
        eval_reference=measures.nothing,
    ),
    Kind(
        "regression",
        suffix=_NUMBER,
        robust=measures.close_number,
        evaluated=measures.number_accuracy,
        reference=measures.relative_closeness,
        eval_reference=measures.relative_accuracy,
        doubt=not_a_number,
        metrics=(Metric("mean relative accuracy", key="mean_relative_accuracy"),),
        apart=True,
    ),
    Kind(
        "temporal grounding",
        suffix=f" Please provide the start and end time in seconds (e.g., [12.5, 17.0]){_WITHIN}",
        robust=temporal_iou,
        doubt=_not_an_interval,
        metrics=(Metric("mIoU"), _recall(0.3), _recall(0.5), _recall(0.7)),
    ),
)
KINDS = {kind.name: kind for kind in _ROWS}
"""By name, Video-R1's first, each with the suffix that it appends; `load_kinds` adds a user's own."""


def kind_of(problem_type: str) -> Kind:
    """Raises UserError for a name that the table lacks."""
    if problem_type not in KINDS:
        raise UserError(f"problem type {problem_type!r} is unknown; use one of {', '.join(KINDS)}")
    return KINDS[problem_type]


def load_kinds(specs: Iterable[str]) -> tuple[Kind, ...]:
    """The kinds that 'module:name' name, put into the table of this process. Raises UserError."""
    return tuple(_load(spec) for spec in specs)


def _load(spec: str) -> Kind:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UserError(f"data.kinds holds {spec!r}, not of the form module:name, such as my_kinds:COLOUR")
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module is code: anything may go wrong in it
        raise UserError(f"data.kinds {spec!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(kind, Kind):
        raise UserError(f"data.kinds {spec!r} is a {type(kind).__name__}, no Kind of jvr1/problems/kinds.py")
    if KINDS.setdefault(kind.name, kind) != kind:
        raise UserError(f"data.kinds {spec!r} is called {kind.name!r}, and there is another kind of that name")
    return kind
