"""Rewards of one completion: format, and accuracy by problem kind (`problems.kinds`) in three modes. Pure, per row.

reference       Video-R1's training reward (`accuracy_reward` of its grpo.py), quirks included
eval-reference  its evaluation (`reward_fn` of its eval_bench.py), which differs
robust          ours: the quirks mended (docs/deviations.md)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jvr1.errors import UserError
from jvr1.problems.answers import final_answer, first_answer
from jvr1.problems.grounding import NO_FACTS, Facts
from jvr1.problems.kinds import KINDS, Scorer, kind_of

MODES = ("reference", "robust", "eval-reference")

_SEPARATOR = re.compile(r"</think>\s*<answer>")


class Score(NamedTuple):
    """Accuracy in [0,1], format in {0,1}, and the text that was scored (None: no answer was found)."""

    accuracy: float
    format: float
    answer: str | None


def score(
    completion: str,
    gold: str,
    problem_type: str,
    mode: str = "robust",
    options: Sequence[str] = (),
    *,
    evaluated: bool = False,
    facts: Facts = NO_FACTS,
) -> Score:
    """Scores a completion against a record's `solution`.

    `gold` is as published, `<answer>A</answer>`; robust mode also takes it without tags, the reference modes then
    find no gold answer, as theirs do. eval-reference scores the whole output where there is no answer. options: the
    record's, by whose texts robust mode knows them, too. evaluated: as a model is evaluated, not trained, where the
    kind makes a difference. facts: what else the record says (`Record.further`), such as the unit of a time.
    Nothing in a completion raises. Errors: UserError for an unknown mode, in robust mode for an unknown problem
    type, which the reference scores 0, and for a value of a user's own kind that is not in [0,1].
    """
    if mode not in MODES:
        raise UserError(f"reward mode {mode!r} is unknown; use one of {', '.join(MODES)}")
    answer, gold = _read(completion, gold, mode)
    kind = kind_of(problem_type) if mode == "robust" else KINDS.get(problem_type)
    accuracy = 0.0 if kind is None else kind.accuracy(answer, gold, options, mode, evaluated=evaluated, facts=facts)
    if not 0 <= accuracy <= 1:
        raise UserError(f"the problem kind {problem_type!r} scores {answer!r} {accuracy}; it must be from 0 to 1")
    found = answer if mode == "eval-reference" else answer or None
    return Score(accuracy, format_reward(completion), found)


def measured(of: Scorer, completion: str, gold: str, mode: str, given: Sequence[str] | Facts) -> float:
    """A metric of a completion, of the texts that the mode scores; 0 where one is empty. given: `Kind.given`."""
    answer, gold = _read(completion, gold, mode)
    return of(answer, gold, given) if answer and gold else 0.0


def _read(completion: str, gold: str, mode: str) -> tuple[str, str]:
    """The answer and the gold that a mode compares; '' where there is none."""
    if mode == "robust":
        return final_answer(completion), final_answer(gold) or gold.strip()
    answer = first_answer(completion)
    return (answer or completion) if mode == "eval-reference" else answer, first_answer(gold)


def format_reward(completion: str) -> float:
    r"""1 if the whole completion is `<think>.*?</think>\s*<answer>.*?</answer>`, else 0 (Video-R1 `format_reward`).

    A blank before or after the tags counts against it; a second answer does not.
    """
    if not (completion.startswith("<think>") and completion.endswith("</answer>")):
        return 0.0
    return float(_SEPARATOR.search(completion, len("<think>"), len(completion) - len("</answer>")) is not None)
