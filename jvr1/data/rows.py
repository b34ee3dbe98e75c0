"""Raw records of a question file, whatever holds them and whatever it calls their fields.

JSON and JSONL by `json_file`; Parquet, and folders that `datasets` saved to disk, by pyarrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from jvr1.data.index_file import is_kept_result
from jvr1.data.json_file import json_values
from jvr1.errors import UserError, shown

FIELDS = (
    "problem_id", "problem", "data_type", "problem_type", "options", "solution", "process", "path", "data_source",
    "start", "end",
)  # fmt: skip
"""Of a record, as Video-R1's files call them; `start` and `end` are ours."""
TABLES = (".parquet", ".arrow")


@dataclass(frozen=True)
class FieldMap:
    """Where a file has the fields of a record. taken: (ours, the file's name of it); given: (ours, a value that all
    records have). Without any, a file is taken as it is."""

    taken: tuple[tuple[str, str], ...] = ()
    given: tuple[tuple[str, str], ...] = ()

    @property
    def told(self) -> dict[str, Any]:
        """What an index says of it; nothing where it changes nothing."""
        return {"fields": [*self.taken, *self.given]} if self.taken or self.given else {}

    def __call__(self, raw: Any, number: int) -> Any:
        """A record under our names. Of a renamed field texts are made where texts are needed: numbers are written out,
        a `solution` gets <answer> tags and a `process` <think> tags where it has none. A value of the file goes before
        one that all records have, one under the file's name before one under ours; null is no value. Without
        `problem_id` it is the record's number."""
        if not self.told or not isinstance(raw, dict):
            return raw
        raw = {name: value for name, value in raw.items() if value is not None}
        found = {name: value for name, value in raw.items() if name not in {theirs for _, theirs in self.taken}}
        found |= {ours: _as_ours(ours, raw[theirs]) for ours, theirs in self.taken if theirs in raw}
        return {"problem_id": number} | dict(self.given) | found

    @property
    def media_column(self) -> str:
        """What the file calls `path`."""
        return dict(self.taken).get("path", "path")


def field_map(pairs: Iterable[str]) -> FieldMap:
    """Of 'ours=theirs' (a field's name in the file) and 'ours:value' (the same for all records). Raises UserError."""
    taken: list[tuple[str, str]] = []
    given: list[tuple[str, str]] = []
    for pair in pairs:
        if wrong := _no_pair(pair):
            raise UserError(f"data.fields {wrong}")
        ours, mark, rest = _parted(pair)
        (taken if mark == "=" else given).append((ours, rest))
    return FieldMap(tuple(taken), tuple(given))


def no_fields(pairs: tuple[Any, ...]) -> str | None:
    """What is wrong with the setting, in words that follow its name."""
    return next(filter(None, map(_no_pair, pairs)), None)


def _no_pair(pair: Any) -> str | None:
    ours, mark, rest = _parted(pair) if isinstance(pair, str) else ("", "", "")
    if not mark or not rest:
        return f"holds {pair!r}; write 'path=video' for a field's name in the file, 'data_type:video' for a value"
    return None if ours in FIELDS else f"holds {pair!r}; fields of a record are {', '.join(FIELDS)}"


def _parted(pair: str) -> tuple[str, str, str]:
    """Parted at the first '=' or ':'."""
    at = min((i for i in (pair.find("="), pair.find(":")) if i >= 0), default=len(pair))
    return pair[:at].strip(), pair[at : at + 1], pair[at + 1 :].strip()


def _as_ours(field: str, value: Any) -> Any:
    if field == "options" and isinstance(value, list):
        return [option if isinstance(option, str) else str(option) for option in value]
    if field not in ("solution", "process", "problem", "data_source"):
        return value
    text = value if isinstance(value, str) else str(value)
    if field == "solution" and "<answer>" not in text and text.strip():
        return f"<answer>{text.strip()}</answer>"
    if field == "process" and "<think>" not in text and text.strip():
        return f"<think>{text.strip()}</think>"
    return text


def raw_rows(file: str | Path, fields: FieldMap | None = None) -> Iterator[Any]:
    """The records of a file one by one, under our names, unchecked. Raises UserError."""
    path = epath.Path(file)
    parts = parts_of(path)
    fields = fields or FieldMap()
    values = json_values(file) if parts is None else _table_rows(parts, fields.media_column)
    for number, raw in enumerate(values):
        yield fields(raw, number)


# --- tables -----------------------------------------------------------------------------------------------------------


def parts_of(path: epath.Path) -> list[epath.Path] | None:
    """The files of a table: Parquet, a folder of it, or one that `datasets` saved; None where `path` is anything else.
    Raises UserError for a folder of several splits."""
    if not path.is_dir():
        return [path] if path.suffix in TABLES else None
    if (path / "dataset_dict.json").exists():
        splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
        raise UserError(f"{path} holds the splits {splits}; name one of these folders")
    if saved := _saved_parts(path):
        return saved
    found = sorted(each for each in path.iterdir() if each.suffix in TABLES and not is_kept_result(each.name))
    prefixes = sorted({told[1] or told[2] for told in (_SPLIT.match(each.name) for each in found) if told})
    if len(prefixes) > 1:
        raise UserError(
            f"{path} holds files of the splits {', '.join(prefixes)}; name one file, or part them by folders"
        )
    return found or None


_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.|(train|test|validation|valid|val|dev|eval)(?![a-zA-Z])")
"""A split as the hub's files are named by it."""


def _saved_parts(path: epath.Path) -> list[epath.Path]:
    """The files that a dataset saved to disk says it has; none where it says nothing. Raises UserError."""
    state = path / "state.json"
    if not state.exists():
        return []
    try:
        return [path / str(one["filename"]) for one in json.loads(state.read_text()).get("_data_files") or ()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{state} is damaged: it does not name the files of the dataset; save it again") from None


def _table_rows(parts: Iterable[epath.Path], media_column: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as arrow
    except ImportError:
        raise UserError("tables are read by pyarrow, which is not there: pip install 'jvr1[tables]'") from None
    for part in parts:
        try:
            with ExitStack() as opened:
                for batch in _batches(part, opened):
                    yield from _rows_of(batch, part, media_column)
        except FileNotFoundError:
            raise UserError(f"{part} does not exist") from None
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{part} cannot be read: {str(error).splitlines()[0]}") from None


def _batches(part: epath.Path, opened: ExitStack) -> Iterator[Any]:
    """Record batches without columns of bytes: media inside a table are not read."""
    import pyarrow as arrow
    from pyarrow import ipc, parquet

    stream = opened.enter_context(part.open("rb"))
    if part.suffix == ".arrow":
        for batch in opened.enter_context(ipc.open_stream(stream)):
            yield batch.select([f.name for f in batch.schema if not _bytes(f.type, arrow)])
        return
    table = opened.enter_context(parquet.ParquetFile(stream))
    leaves = [table.schema.column(number) for number in range(len(table.schema))]  # of structs and lists too
    columns = [
        leaf.path for leaf in leaves if "BYTE_ARRAY" not in leaf.physical_type or leaf.logical_type.type != "NONE"
    ]
    yield from table.iter_batches(columns=columns)


def _bytes(kind: Any, arrow: Any) -> bool:
    return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) or arrow.types.is_fixed_size_binary(kind)


def _rows_of(batch: Any, part: epath.Path, media_column: str) -> Iterator[dict[str, Any]]:
    """Of media their paths are taken. Raises UserError where the record's own have none."""
    for row in batch.to_pylist():
        for name, value in row.items():
            several = isinstance(value, list) and bool(value)
            media = value if several else [value]
            if all(isinstance(one, dict) and "path" in one and one.keys() <= {"path", "bytes"} for one in media):
                paths = [one["path"] for one in media]
                if None in paths and name == media_column:
                    raise UserError(
                        f"{part}: column {shown(name)} holds the media themselves; write them to files and name these"
                    )
                row[name] = None if None in paths else paths if several else paths[0]
        yield {name: _jsonable(value) for name, value in row.items() if value is not None}


def _jsonable(value: Any) -> Any:
    """Dates and the like become their texts: what a record has beside its fields is kept as JSON."""
    if isinstance(value, dict):
        return {str(name): _jsonable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
