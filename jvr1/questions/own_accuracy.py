"""Accuracies that a user's own reward gives, in the place of the run's: validation and evaluation follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jvr1.questions.replies import SCORED_MODES, Question, Reply
from jvr1.rl.reward_rows import RewardRow
from jvr1.rl.rewards import Score
from jvr1.rl.user_values import UserValues, row_of

ROWS_A_CALL = 64
"""Replies that a reward which takes all rows at once is given together."""


def with_own_accuracy(questions: Sequence[Question], user: UserValues | None) -> list[Question]:
    """The questions, those of problem types whose accuracy is a user's value with that as the accuracy of all modes.

    A question of which a reply has none could not be scored, which is its error.
    """
    if user is None or not user.accuracies:
        return list(questions)
    own = [q for q in questions if q.error is None and q.record.problem_type in user.accuracies]
    pairs = [(q, r) for q in own for r in q.replies]
    found: list[float] = []
    for start in range(0, len(pairs), ROWS_A_CALL):
        part = pairs[start : start + ROWS_A_CALL]
        values, failed = user([_seen(q, r) for q, r in part])
        columns = [user.accuracy_column(q.record.problem_type) for q, _ in part]
        found += [
            float("nan") if lost else float(row[column])
            for row, column, lost in zip(values, columns, failed, strict=True)
        ]
    given = iter(found)
    scored = {id(q): [next(given) for _ in q.replies] for q in own}
    return [_scored(q, scored[id(q)]) if id(q) in scored else q for q in questions]


def _seen(question: Question, one: Reply) -> RewardRow:
    score = Score(one.accuracy["robust"], one.format, one.answer)
    return row_of(
        question.record, one.completion, score, tokens=one.length, ended=one.ended, frames=one.variant, step=-1
    )


def _scored(question: Question, values: Sequence[float]) -> Question:
    if any(value != value for value in values):
        return replace(question, error="not scored: reward.user gave no accuracy", replies=())
    replies = [
        replace(one, accuracy=dict.fromkeys(SCORED_MODES, min(1.0, max(0.0, value))))
        for one, value in zip(question.replies, values, strict=True)
    ]
    return replace(question, replies=tuple(replies))
