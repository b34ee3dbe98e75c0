"""Answers in many dresses, scored as the benchmarks' published code does and as we do, as a table. Needs the tests.

The answers are made, not a model's: they say which wordings are read differently, not how often a model uses them.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jvr1.questions.replies import SCORED_MODES, accuracies

ANSWERS = 500
COLUMNS = (
    "rule",
    "decides",
    *(f"`{mode}` agrees" for mode in SCORED_MODES),
    "only the rule says right",
    "only `robust`",
)


class Row(NamedTuple):
    """decided: answers that the rule gives a verdict on; agree: by mode, of those; rule_only, robust_only: by dress,
    which of the rule and robust mode alone says right."""

    title: str
    decided: int
    agree: dict[str, int]
    rule_only: Counter[str]
    robust_only: Counter[str]


def run() -> dict[str, Any]:
    """The Markdown table, and by rule the dresses that are read differently."""
    rows = measured()
    report: dict[str, Any] = {"table": "\n" + "\n".join(table(rows)) + "\n"}
    for row in rows:
        report[row.title] = {"only the rule says right": said(row.rule_only), "only robust": said(row.robust_only)}
    return report


def measured(count: int = ANSWERS) -> list[Row]:
    made = importlib.import_module("tests.eval.generated")
    rules = importlib.import_module("tests.eval.published")
    lettered = "multiple choice"
    return [
        compared("MVBench", rules.mvbench, list(made.choices("MVBench", count)), lettered),
        compared("MVBench, lmms-eval", rules.mvbench_lmms, list(made.choices("MVBench", count)), lettered),
        compared("TempCompass, choice", rules.tempcompass_choice, list(made.choices("TempCompass", count)), lettered),
        compared("TempCompass, yes or no", rules.tempcompass_yes_no, list(made.yes_no(count)), lettered),
        compared("TempCompass, captions", rules.tempcompass_caption, list(made.captions(count)), lettered),
        compared("VideoMMMU, choice", rules.videommmu_choice, list(made.choices("VideoMMMU", count)), lettered),
        compared("VideoMMMU, numbers", rules.videommmu_open, list(made.open_numbers(count)), "numerical"),
        compared("MMVU, lmms-eval", rules.mmvu_lmms, list(made.choices("MMVU", count)), lettered),
        compared("Video-MME", rules.videomme, list(made.choices("Video-MME", count)), lettered),
    ]


def compared(title: str, rule: Callable[..., int | None], answered: Sequence[Any], kind: str) -> Row:
    """Ours see the answer in its tags after reasoning, the rule the answer alone."""
    decided, agree = 0, dict.fromkeys(SCORED_MODES, 0)
    rule_only: Counter[str] = Counter()
    robust_only: Counter[str] = Counter()
    for dress, answer, gold, options, _ in answered:
        verdict = rule(answer, gold, options)
        if verdict is None:
            continue
        completion, solution = f"<think>so</think>\n<answer>{answer}</answer>", f"<answer>{gold}</answer>"
        ours = accuracies(completion, solution, kind, options)
        decided += 1
        for mode in SCORED_MODES:
            agree[mode] += ours[mode] == verdict
        if ours["robust"] != verdict:
            (rule_only if verdict else robust_only)[dress] += 1
    return Row(title, decided, agree, rule_only, robust_only)


def table(rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        figures = (row.decided, *row.agree.values(), row.rule_only.total(), row.robust_only.total())
        lines.append("| " + " | ".join([row.title, *map(str, figures)]) + " |")
    return lines


def said(dresses: Counter[str]) -> str:
    return ", ".join(f"{dress} {n}" for dress, n in dresses.most_common()) or "none"
