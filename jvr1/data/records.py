"""Questions in Video-R1's published form: read from a file, every record checked, kept once in memory."""

from __future__ import annotations

import json
import math
import posixpath
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from jvr1.data.rows import FIELDS, FieldMap, raw_rows
from jvr1.errors import UserError, shown
from jvr1.problems.kinds import KINDS

DATA_TYPES = ("image", "video", "text")
TASK_FIELDS = ("original_question_type", "question_type", "sub_task", "task_type", "task")
"""Fields in which evaluation files name the kind of question; the first that is there counts."""
ASPECT_FIELDS = ("duration", "dim", "track", "aspect")
"""Fields in which they name the group that the benchmark reports it in: Video-MME, TempCompass, VideoMMMU, any."""
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One question. path: of its medium, relative to the media root; a tuple of paths for several images; None for
    data_type "text" (an extension of ours). process: the chain of thought, in the cold-start file only. task: the kind
    of question within its source, where the file says (`TASK_FIELDS`); aspect: what else its benchmark groups by
    (`ASPECT_FIELDS`). extra: what else the file has of it, a JSON object, read by `further`; '' where it has nothing.
    seconds: length of its video, or of the part that it is about, where an index knows it (`data.index.with_seconds`).
    start, end: seconds of the video between which the record's clip lies (None: its beginning, its end)."""

    problem_id: int | str
    problem: str
    data_type: str
    problem_type: str
    options: tuple[str, ...]
    solution: str
    process: str | None
    path: str | tuple[str, ...] | None
    data_source: str
    task: str = ""
    aspect: str = ""
    extra: str = ""
    seconds: float | None = None
    start: float | None = None
    end: float | None = None

    @property
    def further(self) -> dict[str, Any]:
        """Fields of the file's record beside those it must or may have."""
        return json.loads(self.extra) if self.extra else {}

    @property
    def paths(self) -> tuple[str, ...]:
        """The media of this record: none, one or several."""
        return () if self.path is None else (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that cannot be used: its place in the file, its id where it has one, and what is wrong with it.
    damaged: its text is (`DamagedTextError`), not its form."""

    index: int
    problem_id: int | str | None
    message: str
    damaged: bool = False


class DamagedTextError(UserError):
    """A text that no file can hold and no tokenizer read: half of a surrogate pair, as cutting a text leaves it."""


def load_records(file: str | Path, fields: FieldMap | None = None) -> list[Record]:
    """`usable_records` without their places."""
    return list(usable_records(file, fields).values())


def usable_records(file: str | Path, fields: FieldMap | None = None) -> dict[int, Record]:
    """All records of a file (`data.rows`), local or gs://, by their places in it, but those whose text is damaged:
    these are left out, and the first few named on stderr. fields: what the file calls them.

    Raises UserError that names the file and, one line each, the index and field of the first few faulty records.
    """
    records, faults = read_records(file, fields)
    if problems := _told(file, [fault for fault in faults if not fault.damaged]):
        raise UserError("\n".join(problems))
    left_out = _told(file, faults)
    if not records:
        raise UserError("\n".join(left_out))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return records


def _told(file: str | Path, faults: list[Fault]) -> list[str]:
    """The first few, one a line, and how many more there are."""
    lines = []
    for fault in faults[:SHOWN_PROBLEMS]:
        known = str(fault.problem_id)
        known = known if len(known) <= 100 and known.isprintable() else shown(known)
        name = "" if fault.problem_id is None else f" (problem_id {known})"
        lines.append(f"{file}: record {fault.index}{name}: {fault.message}")
    if len(faults) > SHOWN_PROBLEMS:
        lines.append(f"{file}: {len(faults) - SHOWN_PROBLEMS} more faulty records")
    return lines


def read_records(file: str | Path, fields: FieldMap | None = None) -> tuple[dict[int, Record], list[Fault]]:
    """The good records by their place in the file, and the faulty ones. Raises UserError: no file, JSON or record."""
    records: dict[int, Record] = {}
    faults: list[Fault] = []
    for index, raw in enumerate(raw_rows(file, fields)):
        try:
            records[index] = parse_record(raw)
        except UserError as error:
            named = raw.get("problem_id") if isinstance(raw, dict) else None
            if isinstance(named, str):
                named = named.encode(errors="backslashreplace").decode()
            named = named if isinstance(named, int | str) else None
            faults.append(Fault(index, named, str(error), isinstance(error, DamagedTextError)))
    if not records and not faults:
        raise UserError(f"{file} holds no records")
    return records, faults


def parse_record(raw: Any) -> Record:
    """One record from its JSON object; fields it does not know are kept as `extra`. Raises UserError that names the
    field."""
    if not isinstance(raw, dict):
        raise UserError(f"is {_kind(raw)} where an object with fields is expected")
    problem_id = raw.get("problem_id")
    if isinstance(problem_id, float) and problem_id.is_integer():  # as tables have them where some row has none
        problem_id = int(problem_id)
    if isinstance(problem_id, bool) or not isinstance(problem_id, int | str):
        raise UserError(f"field 'problem_id' must be a number or a string, got {_kind(problem_id)}")
    # MVBench's for videos that come as frames; its evaluation file names the video made of them
    data_type = "video" if raw.get("data_type") == "frame" else _choice(raw, "data_type", DATA_TYPES)
    for field, value in raw.items():
        if field in _READ:
            check_whole(field, value)
    start, end = _span(raw, data_type)
    return Record(
        problem_id=problem_id,
        problem=_text(raw, "problem"),
        data_type=data_type,
        problem_type=_choice(raw, "problem_type", tuple(KINDS)),
        options=_options(raw.get("options")),
        solution=_text(raw, "solution"),
        process=_optional_text(raw, "process"),
        path=_media_path(raw.get("path"), data_type),
        data_source=sys.intern(_optional_text(raw, "data_source") or ""),
        task=sys.intern(_first_text(raw, TASK_FIELDS)),
        aspect=sys.intern(_first_text(raw, ASPECT_FIELDS)),
        extra=json.dumps(further) if (further := {k: v for k, v in raw.items() if k not in _OWN}) else "",
        start=start,
        end=end,
    )


_OWN = {*FIELDS} - {"start", "end"}  # which rewards see as they see all that a file has of its own
_READ = {*FIELDS, *TASK_FIELDS, *ASPECT_FIELDS} - {"data_type", "problem_type"}
_HALF = re.compile("[\ud800-\udfff]")


def check_whole(field: str, value: Any) -> None:
    """Raises DamagedTextError where a text, or one of a list, holds half of a surrogate pair."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (half := _HALF.search(text)):
            raise DamagedTextError(
                f"field {field!r} holds {ascii(half[0])[1:-1]}, half of a character: the text was cut or is not UTF-8"
            )


def media_path(root: str | Path, path: str) -> epath.Path:
    """Where the medium `path` lies under the media root, local or gs://.

    Refuses absolute paths and paths that climb out by '..'. Symbolic links under the root are followed: whoever
    put them there owns the root (parts of the published set often live on other disks), and unpacking never
    makes any. Raises UserError.
    """
    reason = _path_fault(path)
    if reason:
        raise UserError(f"path {shown(path)} {reason}; paths are relative to the media root {root} and stay in it")
    return epath.Path(root) / posixpath.normpath(path)


def _path_fault(path: str) -> str | None:
    if not path or "\0" in path:
        return "is no file name"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or "://" in path or path[1:3] == ":/":
        return "is absolute"
    if posixpath.normpath(path).split("/")[0] in ("..", "."):
        return "leaves the media root" if ".." in path.split("/") else "is no file name"
    return None


def _media_path(value: Any, data_type: str) -> str | tuple[str, ...] | None:
    if data_type == "text":
        if value:
            raise UserError("field 'path' must be absent for data_type 'text'")
        return None
    several = isinstance(value, list)
    if several and (data_type != "image" or not value):
        raise UserError("field 'path' may be a list of paths for images only, and not an empty one")
    for item in value if several else [value]:
        if not isinstance(item, str):
            raise UserError(f"field 'path' must be a path relative to the media root, got {_kind(item)}")
        reason = _path_fault(item)
        if reason:
            raise UserError(f"field 'path' {shown(item)} {reason}")
    return tuple(value) if several else value


def _span(raw: dict[str, Any], data_type: str) -> tuple[float | None, float | None]:
    start, end = (_second(raw, field) for field in ("start", "end"))
    if data_type != "video" and (start, end) != (None, None):
        raise UserError(f"field '{'end' if start is None else 'start'}' is for videos; data_type is {data_type!r}")
    if end is not None and end <= (start or 0.0):
        raise UserError(f"field 'end' must be above 'start', got {end:g} after {start or 0:g}")
    return start, end


def _second(raw: dict[str, Any], field: str) -> float | None:
    value = raw.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"field {field!r} must be a second of the video, such as 12.5, or null; got {shown(value)}")
    return float(value)


def _options(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise UserError("field 'options' must be a list of strings or null")
    return tuple(value)


def _choice(raw: dict[str, Any], field: str, choices: tuple[str, ...]) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or value not in choices:
        got = shown(value) if isinstance(value, str) else _kind(value)
        raise UserError(f"field {field!r} must be one of {', '.join(choices)}; got {got}")
    return sys.intern(value)


def _text(raw: dict[str, Any], field: str) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field {field!r} must be a non-empty string, got {_kind(value)}")
    return value


def _optional_text(raw: dict[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"field {field!r} must be a string or null, got {_kind(value)}")
    return value or None


def _first_text(raw: dict[str, Any], fields: tuple[str, ...]) -> str:
    """Only a text counts: these names mean other things in other files."""
    return next((raw[field] for field in fields if isinstance(raw.get(field), str) and raw[field]), "")


def _kind(value: Any) -> str:
    names = {str: "an empty string", dict: "an object", list: "a list", bool: "a boolean"}
    if value in (math.inf, -math.inf):
        return "a number beyond all bounds"
    return "nothing" if value is None else names.get(type(value), "a number")
