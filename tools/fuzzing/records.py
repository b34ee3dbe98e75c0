"""Question files that are not what they should be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jvr1.data.records import Record, load_records
from tools.fuzzing.damage import DIGITS, MARK, Rng, harm
from tools.fuzzing.watch import Canaries

GOOD: dict[str, Any] = {
    "problem_id": 2, "problem": "which colour came third?", "data_type": "image", "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>", "process": "<think>a</think>",
    "path": "a.png", "data_source": "x",
}  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def odd_values(rng: Rng) -> list[Any]:
    """Values of other kinds and sizes than a field has."""
    return [
        None, True, False, 0, -1, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", " ", "0", "x" * 3_000_000,
        "\ud83d", "\0", "\x1b[2J", "\u202eabc", "e\u0301\u0301" * 50, "😀" * 1000, [], [[]], [None], ["a", 1], {},
        {"a": {"b": []}},
        _nested(int(rng.integers(2, 200))), MARK, "<|image_pad|>" * 20, "<|im_end|>", "{{ 7 * 7 }}", "%s%s%n",
        "<answer>" * 5000, "video", "text", "image", "numerical", "regression",
    ]  # fmt: skip


def odd_paths(rng: Rng, folder: Path, canaries: Canaries) -> list[Any]:
    return [
        *canaries.names(folder), "../" * 8 + "etc/passwd", "/etc/passwd", "a/../../b.png", "./a.png", ".", "..",
        "a.png/", "a\\..\\..\\b.png", "C:/a.png", "n" * 300 + ".png", "d/" * 3000 + "a.png", "loop.png", "file/a.png",
        "a.png\0b", "~/.ssh/id_rsa", "$HOME/a.png", "%2e%2e/a.png", "\n", "a.png\n", "-a.png", "gs://bucket/a.png",
        "é.png", "folder", ["a.png", "a.png"], ["a.png", "../a.png"], [], ["a.png"] * 2000,
    ]  # fmt: skip


def write(rng: Rng, folder: Path, picture: bytes, canaries: Canaries) -> tuple[str, str]:
    """Writes one case. Gives the file's name and what was done."""
    (folder / "a.png").write_bytes(picture)
    (folder / "file").write_text("x")
    (folder / "folder").mkdir()
    os.symlink("loop.png", folder / "loop.png")
    rows = [{**GOOD, "problem_id": n} for n in range(int(rng.integers(1, 5)))]
    done = []
    for _ in range(int(rng.integers(0, 4))):
        row = rows[int(rng.integers(len(rows)))]
        field = str(rng.choice([*GOOD, "path", "path", "task"]))
        values = odd_paths(rng, folder, canaries) if field == "path" else odd_values(rng)
        if rng.random() < 0.15:
            row.pop(field, None)
            done.append(f"no {field}")
            continue
        place = int(rng.integers(len(values)))
        row[field] = values[place]
        done.append(f"{field}={values[place]!r:.30}")
    data, form = _text(rng, rows)
    name = str(rng.choice(("r.json", "r.jsonl", "r")))
    if rng.random() < 0.4:
        data, how = harm(rng, data)
        form += f" {how}"
    (folder / name).write_bytes(data)
    return name, f"{form} {', '.join(done)}"


def _text(rng: Rng, rows: list[dict[str, Any]]) -> tuple[bytes, str]:
    """The rows in a form, which may be none that is read."""
    array, lines = json.dumps(rows), "\n".join(map(json.dumps, rows))
    forms = {
        "array": array,
        "lines": lines,
        "indented": json.dumps(rows, indent=1),
        "wrapped": json.dumps({"data": rows}),
        "arrays": array + "\n" + array,
        "twice": array.replace('"problem":', '"problem": "a", "problem":'),
        "deep": "[" * int(rng.integers(1, 100_000)) + array,
        "comma": array[:-1] + ",]",
        "comment": "// records\n" + array,
        "text": "which colour came third?",
        "number": DIGITS,
    }
    usual = rng.random() < 0.6
    form = str(rng.choice(("array", "lines"))) if usual else str(rng.choice(list(forms)))
    text = forms[form].replace(f'"{MARK}"', DIGITS)
    code = "utf-8" if rng.random() < 0.85 else str(rng.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")))
    return text.encode(code, "surrogatepass" if code != "utf-7" else "replace"), f"{form} {code}"


@dataclass(frozen=True)
class Reading:
    """Loads a file under a root: its records, and a hash of them and of what was said of those left out."""

    root: str

    def __call__(self, path: str) -> tuple[list[Record], str]:
        """Raises UserError."""
        with contextlib.redirect_stderr(io.StringIO()) as told:
            records = load_records(os.path.join(self.root, path))
        said = told.getvalue().replace(self.root, "")
        return records, hashlib.sha256(repr((records, said)).encode(errors="backslashreplace")).hexdigest()[:12]
