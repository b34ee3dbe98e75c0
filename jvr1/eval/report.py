"""Summaries as tables."""

from __future__ import annotations

from collections.abc import Mapping

from jvr1.eval.run import Summary

COLUMNS = ("task", "questions", "ordered", "shuffled", "format", "length", "failed")


def as_table(summaries: Mapping[str, Summary]) -> str:
    """A Markdown table, one row a task: accuracies and format rate in percent, length in tokens."""
    rows = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1)]
    for task, s in summaries.items():
        shuffled = "" if s.shuffled is None else percent(s.shuffled)
        rows.append(
            (task, str(s.questions), percent(s.ordered), shuffled, percent(s.format), f"{s.length:.1f}", str(s.failed))
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
