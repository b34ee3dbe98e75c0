"""The file of an index: JSONL. The first line holds the settings the index depends on, the number of entries and a hash
of their lines; each further line is one entry as a list in the order of `IndexEntry`'s fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from jvr1.errors import UserError
from jvr1.model.media import Probe

INDEX_FORMAT = 3


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index knows of record number `row`. media: a probe of each of its files, in its order; none for text and
    where one could not be probed. bucket: where it goes; in a file, where buckets are not chosen yet, the kind of its
    media. steps, windows: temporal steps of its media together, windows of the frame that has most; completion: tokens
    of the answer to learn. error: None, or `cause` or `cause: message`."""

    row: int
    media: tuple[Probe, ...]
    prompt_tokens: int
    bucket: str | None
    error: str | None
    steps: int = 0
    windows: int = 0
    completion: int = 1

    @property
    def cause(self) -> str | None:
        """By which the entry is counted when it is dropped."""
        return self.error.partition(":")[0] if self.error else None


def with_places(entries: Sequence[IndexEntry], places: Sequence[int]) -> list[IndexEntry]:
    """Entries of usable records numbered as these stand in their file, for those who read it."""
    return [replace(entry, row=place) for entry, place in zip(entries, places, strict=True)]


def as_json_values(value: Any) -> Any:
    """A setting as JSON values: dataclasses become objects, tuples lists, anything else its text."""
    return json.loads(json.dumps(value, default=_plain, sort_keys=True))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def is_kept_result(name: str) -> bool:
    """Whether a file beside a dataset's own is what `datasets` computed of it: it comes and goes as it is used."""
    return name.startswith("cache-") and name.endswith(".arrow")


def file_stamp(file: str | Path) -> dict[str, Any]:
    """Size and hash of a file's content, for the settings of an index; of a folder, of the files in it by name,
    but what `datasets` keeps of its results there."""
    digest, size, path = hashlib.sha256(), 0, epath.Path(file)
    parts = [path]
    if path.is_dir():
        parts = sorted(each for each in path.iterdir() if not (each.is_dir() or is_kept_result(each.name)))
    for part in parts:
        if part != path:
            digest.update(part.name.encode() + b"\0")
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_json_values(settings), sort_keys=True).encode()).hexdigest()[:16]


def save_index(
    file: str | Path,
    entries: Sequence[IndexEntry],
    settings: Mapping[str, Any],
    further: Mapping[str, Any] | None = None,
) -> None:
    """Writes an index, local or gs://; a local file appears whole or not at all. further: as of `index_header`."""
    target = epath.Path(file)
    staged = target if "://" in str(file) else target.with_name(target.name + ".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [entry_line(entry) for entry in entries]
    with staged.open("w") as stream:
        stream.write(index_header(settings, lines, further))
        for line in lines:
            stream.write(line)
    if staged != target:
        staged.replace(target)


def load_index(file: str | Path, settings: Mapping[str, Any]) -> list[IndexEntry]:
    """Reads an index. Raises UserError when there is none, when it is not what was written, or when it was made with
    other settings: says which."""
    try:
        with epath.Path(file).open("r") as stream:
            header = _read_header(stream.readline())
            if header is None:
                raise UserError(f"{file} is no index of this version; remove it, and make one with jvr1 index")
            changed = differing(header.get("settings"), as_json_values(settings))
            if changed:
                shown = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
                raise UserError(f"{file} was made with other settings: {shown}; run jvr1 index again")
            lines = list(stream)
            count = header.get("entries", len(lines))  # older ones do not say
            if len(lines) != count:
                raise UserError(f"{file} is damaged: {len(lines)} of {count} entries are in it; {_AGAIN}")
            if header.get("sha256", _sum(lines)) != _sum(lines):
                raise UserError(f"{file} is damaged: its entries are not those that were written; {_AGAIN}")
            return [_entry(line) for line in lines]
    except FileNotFoundError:
        raise _no_index(file) from None
    except UserError:
        raise
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def index_sum(file: str | Path) -> str:
    """The hash of an index's entries, as it says itself. Raises UserError for what is none."""
    return str(_header_of(file).get("sha256"))


def began_at(file: str | Path) -> float:
    """When the first look at the media of an index was taken, in seconds of the epoch; not after it was written. Raises
    UserError for what is none."""
    written = float(epath.Path(file).stat().mtime)
    return min(float(_header_of(file).get("began", written)), written)


MediaKey: TypeAlias = tuple[str, str | tuple[str, ...] | None]
"""(data type, path) of a record."""


def probed_media(file: str | Path, settings: Mapping[str, Any]) -> dict[MediaKey, tuple[Probe, ...]]:
    """What an index of probes knows of media that could be used, by the `paths` of its header. Empty where it was made
    with other settings than these, the `media` apart. Raises UserError for what is damaged or none."""
    header = _header_of(file)
    made_with, paths = header["settings"], header.get("paths", ())
    if not paths or differing(made_with | {"media": None}, as_json_values(settings) | {"media": None}):
        return {}
    entries = load_index(file, made_with)
    keys = [(kind, tuple(path) if isinstance(path, list) else path) for kind, path in paths]
    return {key: entry.media for key, entry in zip(keys, entries, strict=True) if entry.media}


def _header_of(file: str | Path) -> dict[str, Any]:
    try:
        with epath.Path(file).open("r") as stream:
            header = _read_header(stream.readline())
    except FileNotFoundError:
        raise _no_index(file) from None
    if header is None:
        raise UserError(f"{file} is no index of this version; remove it, and make one with jvr1 index")
    return header


def _no_index(file: str | Path) -> UserError:
    return UserError(f"there is no index {file}; make it with jvr1 index")


def differing(before: Any, after: Any, name: str = "") -> list[str]:
    """The settings that differ, as 'a.b was 1, is 2'."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [c for k in keys for c in differing(before.get(k), after.get(k), f"{name}.{k}" if name else str(k))]
    return [] if before == after else [f"{name} was {json.dumps(before)}, is {json.dumps(after)}"]


_AGAIN = "remove it, and make it again with jvr1 index"


def index_header(
    settings: Mapping[str, Any], lines: Sequence[str] | None = None, further: Mapping[str, Any] | None = None
) -> str:
    """lines: of all entries, where they are known. further: what else it says: `began`, when the first of the media was
    looked at, in seconds of the epoch; `paths`, of probes, a `MediaKey` for each entry."""
    hashed = settings_hash(settings)
    whole: dict[str, Any] = {} if lines is None else {"entries": len(lines), "sha256": _sum(lines)}
    told = {"jvr1_index": INDEX_FORMAT, "hash": hashed, **whole, **(further or {})}
    told["settings"] = as_json_values(settings)
    return json.dumps(told) + "\n"


def _sum(lines: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read_header(line: str) -> Any:
    """The first line of an index, None if it is none."""
    try:
        header = json.loads(line)
    except json.JSONDecodeError:
        return None
    known = (
        isinstance(header, dict)
        and header.get("jvr1_index") == INDEX_FORMAT
        and isinstance(header.get("settings"), dict)
    )
    return header if known else None


def entry_line(entry: IndexEntry) -> str:
    return json.dumps(astuple(entry), ensure_ascii=False) + "\n"


def _entry(line: str | bytes) -> IndexEntry:
    """Raises ValueError, TypeError for what `entry_line` did not write."""
    row, media, *rest = json.loads(line)
    return IndexEntry(row, tuple(Probe(*one) for one in media), *rest)


def read_partial(partial: Path, settings: Mapping[str, Any]) -> dict[int, IndexEntry]:
    """Entries of an interrupted run with the same settings; a line torn by the interruption is cut off."""
    if not partial.exists():
        return {}
    with partial.open("rb+") as stream:
        header = _read_header(stream.readline().decode(errors="replace"))
        if header is None or differing(header["settings"], as_json_values(settings)):
            return {}
        done = {}
        good = stream.tell()
        for line in stream:
            try:
                entry = _entry(line) if line.endswith(b"\n") else None
            except (ValueError, TypeError):
                entry = None
            if entry is None:
                break
            done[entry.row] = entry
            good += len(line)
        stream.truncate(good)
        return done
