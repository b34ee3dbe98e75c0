"""Answers as numbers for a log: what validation in training shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jvr1.questions.replies import Question, grouped, task_of


class TaskSummary(NamedTuple):
    """One task: questions answered on ordered frames, mean accuracy ordered and shuffled (None: no video), format
    rate, mean length in tokens, and questions whose media failed."""

    questions: int
    ordered: float
    shuffled: float | None
    format: float
    length: float
    failed: int


def summarise(questions: Iterable[Question], mode: str) -> dict[str, TaskSummary]:
    """By task, in alphabetical order; accuracy in a mode of `eval.score`."""
    groups = grouped(list(questions), lambda q: task_of(q.record))
    return {task: _summary(group, mode) for task, group in groups.items()}


def _summary(questions: Sequence[Question], mode: str) -> TaskSummary:
    found = [r for q in questions for r in q.replies]
    ordered = [r for r in found if r.variant == "ordered"]
    shuffled = [r.accuracy[mode] for r in found if r.variant == "shuffled"]

    def mean(values: Sequence[float | int]) -> float:
        return float(np.mean(values)) if len(values) else 0.0

    return TaskSummary(
        sum(q.error is None for q in questions),
        mean([r.accuracy[mode] for r in ordered]),
        mean(shuffled) if shuffled else None,
        mean([r.format for r in ordered]),
        mean([r.length for r in ordered]),
        sum(q.error is not None for q in questions),
    )


def as_metrics(summaries: dict[str, TaskSummary]) -> dict[str, float]:
    """Flat names for a log: 'order/ordered', 'order/shuffled', 'order/format', ..."""
    return {
        f"{task}/{name}": float(value)
        for task, summary in summaries.items()
        for name, value in summary._asdict().items()
        if value is not None
    }
