"""What an evaluation has answered so far: written down as the answers come, found again after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jvr1.data.cache import is_remote
from jvr1.errors import UserError
from jvr1.questions.replies import Question, Reply, to_line

ANSWERED_WITH = "settings.json"
ANSWERS = "answers.jsonl"
PARTIAL = "answers.partial"


class AnswerJournal:
    """Answers of an unfinished evaluation in its folder: local, one growing file a process; in a bucket, whose objects
    cannot grow, one file for each time that some came."""

    def __init__(self, folder: epath.Path, process: int):
        self.folder, self.process = folder, process
        self._files = 0

    def read(self) -> dict[int, str]:
        """Whole lines by the number of their question, of a finished evaluation and of all processes of an unfinished
        one. A torn or damaged line is no answer: its question is asked again."""
        found: dict[int, str] = {}
        parts = sorted(self.folder.glob(f"{PARTIAL}-*.jsonl"))
        self._files = len(parts)
        for file in [p for p in (self.folder / ANSWERS,) if p.exists()] + parts:
            for raw in file.read_bytes().split(b"\n")[:-1]:
                line = _whole(raw)
                if line is not None:
                    found[json.loads(line)["number"]] = line
        return found

    def add(self, questions: Sequence[Question]) -> None:
        """Whole lines at once: a kill leaves at most one torn."""
        if not questions:
            return
        text = "".join(to_line(q) + "\n" for q in questions)
        if is_remote(str(self.folder)):
            (self.folder / f"{PARTIAL}-{self.process}-{self._files:06d}.jsonl").write_text(text)
            self._files += 1
            return
        with open(self.folder / f"{PARTIAL}-{self.process}.jsonl", "ab+") as file:
            if file.tell():  # a line torn by a kill must not swallow the next one
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())

    def clear(self) -> None:
        for file in self.folder.glob(f"{PARTIAL}-*.jsonl"):
            file.unlink()


def _whole(raw: bytes) -> str | None:
    """A line that `from_line` can read, or None."""
    try:
        line = raw.decode()
        read = json.loads(line)
        if not isinstance(read["number"], int) or not isinstance(read["error"], str | None):
            return None
        [Reply(**reply) for reply in read["replies"]]
    except (ValueError, TypeError, KeyError):
        return None
    return line


def claim(folder: epath.Path, settings: Mapping[str, Any], *, write: bool) -> None:
    """Makes the folder of an evaluation, or takes up that of one with the same settings. Raises UserError when it holds
    answers to others."""
    kept = folder / ANSWERED_WITH
    if (folder / ANSWERS).exists() or any(folder.glob(f"{PARTIAL}-*.jsonl")):
        try:
            before = dict(json.loads(kept.read_text()))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{folder} holds answers and no readable {ANSWERED_WITH}; name another --out") from None
        now = json.loads(json.dumps(settings))
        different = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
        if different:
            shown = "; ".join(f"{n}: {_short(before.get(n))} -> {_short(now.get(n))}" for n in different[:3])
            more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(f"{folder} holds answers to other settings ({shown}{more}); name another --out")
    elif write:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def write_whole(path: epath.Path, text: str) -> None:
    """A local file appears whole or not at all."""
    if is_remote(str(path)):
        path.write_text(text)
        return
    staged = path.with_name(f".{path.name}.partial")
    staged.write_text(text)
    staged.replace(path)
