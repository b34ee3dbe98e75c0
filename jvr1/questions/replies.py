"""A question asked, its replies scored in both modes, and both as a line of JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jvr1.data.records import Record
from jvr1.data.store import RecordStore
from jvr1.problems.grounding import NO_FACTS, Facts
from jvr1.rl.rewards import score

SCORED_MODES = ("eval-reference", "robust")


@dataclass(frozen=True)
class Reply:
    """One completion. answer: the text scored in robust mode; length: tokens, the end token counted; ended: whether it
    came; accuracy: by mode."""

    variant: str
    sample: int
    completion: str
    answer: str | None
    format: float
    length: int
    ended: bool
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Question:
    """A question asked: its record and its replies, or `error`, why there are none, as `cause` or `cause: message`."""

    record: Record
    error: str | None
    replies: tuple[Reply, ...] = ()
    number: int = -1

    @property
    def cause(self) -> str | None:
        """By which failures are counted."""
        return self.error.partition(":")[0] if self.error else None


def accuracies(
    completion: str, gold: str, problem_type: str, options: Sequence[str] = (), facts: Facts = NO_FACTS
) -> dict[str, float]:
    """Accuracy in [0,1] by mode. Regression is mean relative accuracy in both, as VSI-Bench has it."""
    return {
        mode: score(completion, gold, problem_type, mode, options, evaluated=True, facts=facts).accuracy
        for mode in SCORED_MODES
    }


def mode_of(reward_mode: str) -> str:
    """In which mode a run with `reward.mode` is validated."""
    return "robust" if reward_mode == "robust" else "eval-reference"


def reply(
    variant: str, sample: int, completion: str, length: int, ended: bool, gold: str, problem_type: str,
    options: Sequence[str] = (), facts: Facts = NO_FACTS,
) -> Reply:  # fmt: skip
    """A completion, scored."""
    robust = score(completion, gold, problem_type, "robust", options, facts=facts)
    found = accuracies(completion, gold, problem_type, options, facts)
    return Reply(variant, sample, completion, robust.answer, robust.format, length, ended, found)


def grouped(questions: Sequence[Question], key: Callable[[Question], str]) -> dict[str, list[Question]]:
    """By key, in alphabetical order."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[key(question)].append(question)
    return {name: groups[name] for name in sorted(groups)}


def task_of(record: Record) -> str:
    """The kind of question within its benchmark: what the file names, else its data_source, else 'all'."""
    return record.task or record.data_source or "all"


def to_line(question: Question) -> str:
    """What `from_line` reads."""
    return json.dumps(
        {"number": question.number, "error": question.error, "replies": [asdict(r) for r in question.replies]}
    )


def from_line(line: str, records: Sequence[Record] | RecordStore) -> Question:
    raw = json.loads(line)
    replies = tuple(Reply(**r) for r in raw["replies"])
    return Question(records[raw["number"]], raw["error"], replies, raw["number"])
