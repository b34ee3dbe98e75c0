"""The report as a page: tables, and every question with its frames, reasoning and verdict. One file, no network."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jvr1.data.encode import Encoder
from jvr1.data.media import MediaError
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.eval.report import HOW, AskedSuite, percent, rests_on, tables
from jvr1.eval.score import value
from jvr1.pages import render_page
from jvr1.problems.answers import final_answer
from jvr1.questions.replies import SCORED_MODES, Question, task_of

SHOWN_FRAMES = 8
HEIGHT = 96
_THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


Look = Callable[[Record], Sequence[np.ndarray]]
"""A record -> the frames [N,H,W,3] of each of its media; none where they cannot be read."""


def html(report: Mapping[str, Any], asked: Sequence[AskedSuite], look: Look, with_frames: int) -> str:
    """The page. with_frames: how many questions, evenly spread, show their frames (0: none)."""
    places = [(one, index) for one in asked for index in one.questions]
    show = set(np.linspace(0, len(places) - 1, min(with_frames, len(places))).round().astype(int).tolist())
    mode = report["settings"]["primary_mode"]
    questions = []
    for i, (one, index) in enumerate(places):
        question = one.questions[index]
        frames = thumbnails(look(question.record)) if i in show and question.error is None else []
        questions.append(_question(one.suite.title, index, question, mode, frames))
    for one in asked:
        questions += [
            _fault(one.suite.title, fault.index, fault.problem_id, fault.message) for fault in one.suite.faults
        ]
    return render_page(
        Path(__file__).parent / "report.html.jinja",
        report=report,
        tables=tables(report),
        questions=questions,
        benchmarks=sorted({q["benchmark"] for q in questions}),
        tasks=sorted({q["task"] for q in questions}),
        verdicts=[v for v in VERDICTS if any(q["verdict"] == v for q in questions)],
        rests_on=rests_on(report),
        framed=len(show),
        mode=mode,
        modes=SCORED_MODES,
        how=HOW,
    )


VERDICTS = ("right", "partly right", "wrong", "failed")


def _question(benchmark: str, index: int, question: Question, mode: str, frames: Sequence[str]) -> dict[str, Any]:
    record = question.record
    accuracy = value(question, "ordered", mode) if question.error is None else None
    return {
        "benchmark": benchmark,
        "index": index,
        "id": record.problem_id,
        "task": task_of(record),
        "type": record.problem_type,
        "problem": record.problem,
        "options": record.options,
        "gold": final_answer(record.solution) or record.solution,
        "media": ", ".join(record.paths),
        "frames": frames,
        "error": question.error,
        "verdict": _verdict(accuracy),
        "accuracy": "" if accuracy is None else percent(accuracy),
        "replies": [
            {
                "variant": r.variant,
                "sample": r.sample,
                "reasoning": _reasoning(r.completion),
                "answer": r.answer,
                "completion": r.completion,
                "verdict": _verdict(r.accuracy[mode]),
                "accuracy": {m: percent(r.accuracy[m]) for m in SCORED_MODES},
                "format": bool(r.format),
                "length": r.length,
                "ended": r.ended,
            }
            for r in question.replies
        ],
    }


def _fault(benchmark: str, index: int, problem_id: int | str | None, message: str) -> dict[str, Any]:
    """A record that is no question."""
    return {
        "benchmark": benchmark, "index": index, "id": problem_id, "task": "malformed", "type": "", "problem": "",
        "options": (), "gold": "", "media": "", "frames": [], "error": f"malformed: {message}", "verdict": "failed",
        "accuracy": "", "replies": [],
    }  # fmt: skip


def _verdict(accuracy: float | None) -> str:
    if accuracy is None:
        return "failed"
    return "right" if accuracy == 1 else "wrong" if accuracy == 0 else "partly right"


def _reasoning(completion: str) -> str:
    """What stands between the thinking tags, else all of it."""
    thought = _THINKING.search(completion)
    return (thought[1] if thought else completion).strip()


def frames_seen(encoder: Encoder, record: Record) -> list[np.ndarray]:
    """A `Look`: what the model saw, read again."""
    arguments = (record.data_type, encoder.sampling(record), encoder.limits(record), encoder.model.frames)
    try:
        return [encoder.read(path, *arguments).frames for path in record.paths]
    except (MediaError, UserError):
        return []


def thumbnails(media: Sequence[np.ndarray]) -> list[str]:
    """Up to SHOWN_FRAMES of each medium, at equal distances, as data addresses of small JPEGs."""
    out = []
    for frames in media:
        count = len(frames)
        for i in np.linspace(0, count - 1, min(count, SHOWN_FRAMES)).round().astype(int):
            out.append(_jpeg(frames[i]))
    return out


def _jpeg(frame: np.ndarray) -> str:
    height, width, _ = frame.shape
    small = Image.fromarray(frame).resize((max(1, round(width * HEIGHT / height)), HEIGHT), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
