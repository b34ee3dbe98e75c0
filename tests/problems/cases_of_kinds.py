"""What tests of problem kinds share: a record's prompt, answers as a suite's, the rows of a report."""

from __future__ import annotations

from typing import Any

from jvr1.data.prompts import PromptStyle, messages
from jvr1.data.records import Record
from jvr1.eval.report import AskedSuite, tables
from jvr1.eval.suites import Suite
from jvr1.questions.replies import Question, reply

SETTINGS = {"model": "m", "primary_mode": "robust"}


def prompt_of(record: Record) -> str:
    (turn,) = messages(record, PromptStyle(), len(record.paths))
    return turn["content"][-1]["text"]


def asked_of(records: list[Record], answers: list[tuple[str, ...]]) -> AskedSuite:
    """Each record with the answers of its samples."""
    questions = {}
    for i, (record, texts) in enumerate(zip(records, answers, strict=True)):
        replies = [
            reply(
                "ordered", sample, f"<think>so</think><answer>{text}</answer>", 20, True, record.solution,
                record.problem_type, record.options,
            )
            for sample, text in enumerate(texts)
        ]  # fmt: skip
        questions[i] = Question(record, None, tuple(replies), i)
    return AskedSuite(Suite("own", "own", "own.json", dict(enumerate(records)), []), questions)


def headline(report: dict[str, Any]) -> list[list[str]]:
    return [[cell.text for cell in row] for row in tables(report)[0].rows]
