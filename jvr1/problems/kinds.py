"""Problem kinds, a row each: how a question is put, how its answer is scored in each mode, what an evaluation measures.

Everything that depends on a record's `problem_type` asks this table: prompts, rewards, the check of solutions, reports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from jvr1.errors import UserError
from jvr1.problems import grounding, measures
from jvr1.problems.doubts import Doubt, no_doubt, not_a_number, not_an_option, not_one_option
from jvr1.problems.grounding import NO_FACTS, Facts, at_least
from jvr1.problems.measures import Options

Scorer: TypeAlias = Callable[[str, str, Any], float]
"""(answer, gold, the record's options, or its facts where the kind goes by these) -> a value in [0,1]; raises for no
answer, whatever it is."""


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
    apart: whether reports have the accuracy of the other kinds alone, too. by_facts: whether scorers, metrics and
    `doubt` are given the record's facts in the place of its options. unit, suffixes: the fact that says how an answer
    is to be written, and what a prompt then ends in; `suffix` where it says nothing.
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
    by_facts: bool = False
    unit: str = ""
    suffixes: tuple[tuple[str, str], ...] = ()

    def ending(self, facts: Facts) -> str:
        """What the prompt of a record ends in."""
        said = facts.get(self.unit) if self.unit else None
        return next((suffix for name, suffix in self.suffixes if name == said), self.suffix)

    def given(self, options: Options, facts: Facts) -> Options | Facts:
        """What scorers are given beside answer and gold."""
        return facts if self.by_facts else options

    def accuracy(
        self, answer: str, gold: str, options: Options, mode: str, *, evaluated: bool = False, facts: Facts = NO_FACTS
    ) -> float:
        """In a mode of `rl.rewards`."""
        exact = {"reference": self.reference, "eval-reference": self.eval_reference}.get(mode)
        given = self.given(options, facts)
        if exact is not None:
            return exact(answer, gold, given)
        robust = (evaluated and self.evaluated) or self.robust
        return robust(answer, gold, given) if answer and gold else 0.0


# --- the table --------------------------------------------------------------------------------------------------------

_WITHIN = " within the <answer> </answer> tags."


def _ious(iou: Scorer) -> tuple[Metric, ...]:
    return (Metric("mIoU"), *(Metric(f"R@{least}", at_least(least, iou)) for least in (0.3, 0.5, 0.7)))


_NUMBER = f" Please provide the numerical value (e.g., 42 or 3.14){_WITHIN}"

_ROWS = (
    Kind(
        "multiple choice",
        suffix=f" Please provide only the single option letter (e.g., A, B, C, D, etc.){_WITHIN}",
        lists_options=True,
        robust=measures.same_choice,
        reference=measures.same_text,
        eval_reference=measures.same_stripped,
        doubt=not_one_option,
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
        robust=grounding.temporal_iou,
        doubt=grounding.not_spans,
        metrics=_ious(grounding.temporal_iou),
        by_facts=True,
        unit="time_unit",
        suffixes=(
            ("mm:ss", f" Please provide the start and end time as minutes and seconds (e.g., [00:12, 01:05]){_WITHIN}"),
            ("frames", f" Please provide the first and last frame (e.g., [12, 40]){_WITHIN}"),
        ),
    ),
    Kind(
        "spatial grounding",
        suffix=f" Please provide the bounding box in pixels (e.g., [10, 20, 110, 220]){_WITHIN}",
        robust=grounding.spatial_iou,
        doubt=grounding.not_boxes,
        metrics=_ious(grounding.spatial_iou),
        by_facts=True,
        unit="box_unit",
        suffixes=(
            ("thousandths", f" Please provide the bounding box from 0 to 1000 (e.g., [100, 200, 350, 800]){_WITHIN}"),
        ),
    ),
    Kind(
        "counting",
        suffix=f" Please provide the count as a whole number (e.g., 4){_WITHIN}",
        robust=measures.close_count,
        doubt=not_a_number,
        metrics=(Metric("exact", measures.same_count), Metric("off by one at most", measures.near_count)),
    ),
    Kind(
        "multiple choice, several answers",
        suffix=f" Please provide the letters of all correct options (e.g., A, C){_WITHIN}",
        lists_options=True,
        robust=measures.right_choices,
        evaluated=measures.same_choice,
        doubt=not_an_option,
        metrics=(Metric("share found, none wrong", measures.right_choices),),
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
