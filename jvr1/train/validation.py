"""What a validation leaves behind beside its means: every answer in a file, some of them in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jvr1.opening.staging import write_file
from jvr1.problems.answers import final_answer
from jvr1.questions.asking import VARIANTS
from jvr1.questions.replies import Question, task_of
from jvr1.train.metrics import MetricsWriter

VALIDATION_FOLDER = "validation"
"""Folder of a workdir: step-N.jsonl has what each question of a validation was answered."""
SHOWN_ANSWERS = 12


def keep_answers(workdir: epath.Path, step: int, questions: Sequence[Question], mode: str) -> None:
    """Writes WORKDIR/validation/step-N.jsonl, a line a question that was asked."""
    folder = workdir / VALIDATION_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(answers_of(q, mode), ensure_ascii=False) + "\n" for q in questions if q.error is None]
    # a lone surrogate, which JSON can carry, has no UTF-8 form
    write_file(folder / f"step-{step}.jsonl", "".join(lines).encode("utf-8", "replace"))


def answers_of(question: Question, mode: str) -> dict[str, Any]:
    """A question and its replies in short: of each variant the answer, its accuracy, the completion."""
    record = question.record
    return {
        "number": question.number,
        "task": task_of(record),
        "problem": record.problem,
        "options": record.options,
        "gold": final_answer(record.solution) or record.solution.strip(),
        "data_type": record.data_type,
        "path": record.path,
        "replies": {
            r.variant: {"answer": r.answer, "accuracy": r.accuracy[mode], "completion": r.completion}
            for r in question.replies
        },
    }


def validation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Of each task the accuracy on ordered frames, in brackets on shuffled ones."""
    told = []
    for name, value in metrics.items():
        task, _, variant = name.rpartition("/")
        if variant == VARIANTS[0]:
            twin = metrics.get(f"{task}/{VARIANTS[1]}")
            told.append(f"{task} {value:.2f}" + ("" if twin is None else f" ({twin:.2f})"))
    return f"step {step} valid, ordered (shuffled): {'  '.join(told)}"


def log_answers(writer: MetricsWriter, step: int, questions: Sequence[Question], mode: str) -> None:
    """A table of some questions, evenly spread, the same at each validation."""
    there = [answers_of(q, mode) for q in questions if q.error is None]
    every = max(1, len(there) // SHOWN_ANSWERS)
    rows = []
    for one in there[::every][:SHOWN_ANSWERS]:
        said = [one["replies"].get(variant, {}) for variant in VARIANTS]
        told = [f"{r['answer'] or 'none'} ({r['accuracy']:.3g})" if r else "" for r in said]
        asked = "  ".join([one["problem"], *one["options"]])
        rows.append([one["task"], one["gold"], *told, f"{asked}: {said[0].get('completion', '')}"])
    columns = ["task", "right", *VARIANTS, "question and completion on ordered frames"]
    writer.table(step, "valid/answers", f"{len(there)} questions, {len(rows)} shown", columns, rows)
