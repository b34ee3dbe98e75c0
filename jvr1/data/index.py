"""The index of a data set: every medium probed once, every record measured, what cannot be used named with its cause.

File format: JSONL. The first line holds the settings the index depends on, the number of entries and a hash of their
lines; each further line is one entry as a list in the order of `IndexEntry`'s fields.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from jvr1.data.cache import MediaCache
from jvr1.data.media import MediaError, probe
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling

INDEX_FORMAT = 2

Measure = Callable[[Record, tuple[Probe, ...]], tuple[int, str | None, str | None]]
"""(record, a probe of each of its media) -> prompt tokens, bucket, reason. Without a bucket the reason says, as `cause`
or `cause: message`, why the record is dropped. Pure and picklable: it runs in the helper processes."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index knows of record number `row`. media: a probe of each of its files, in its order; none for text and
    where one could not be probed. error: None, or `cause` or `cause: message`."""

    row: int
    media: tuple[Probe, ...]
    prompt_tokens: int
    bucket: str | None
    error: str | None

    @property
    def cause(self) -> str | None:
        """By which the entry is counted when it is dropped."""
        return self.error.partition(":")[0] if self.error else None


@dataclass(frozen=True)
class VisualTokens:
    """The measure that needs no tokenizer: visual tokens alone, one bucket named after the modality.

    Tokens of a step: height x width / factor^2; steps: frames / 2, rounded up. rules: of the model to be; by default
    those that settings are written for.
    """

    sampling: VideoSampling
    image_limits: PixelLimits
    video_limits: PixelLimits
    rules: FrameRules = RULES

    @property
    def settings(self) -> dict[str, Any]:
        """All that an index by this measure depends on."""
        names = ("sampling", "image_limits", "video_limits")
        return {name: getattr(self, name) for name in names} | self.rules.told

    def __call__(self, record: Record, media: tuple[Probe, ...]) -> tuple[int, str | None, str | None]:
        return sum(map(self._tokens, media)), record.data_type, None

    def _tokens(self, probe: Probe) -> int:
        limits = self.image_limits if probe.is_image else self.video_limits
        height, width = self.rules.resized(probe, self.sampling, limits)
        steps = -(-len(self.rules.numbers(probe, self.sampling)) // 2)
        return (height // self.rules.factor) * (width // self.rules.factor) * steps


@dataclass(frozen=True)
class _Prober:
    """What runs in a helper: opens the media that some records share, then measures each record."""

    media: MediaCache
    measure: Measure
    max_decoded_mb: int = MAX_DECODED_MB

    def __call__(self, rows: list[int], records: list[Record], seen: tuple[Probe, ...] | None) -> Any:
        """Without `seen` the probes of the media that the records share; with them an entry a record."""
        if seen is None:
            return tuple(self._probe(path, records[0].data_type) for path in records[0].paths)
        return [self._entry(row, record, seen) for row, record in zip(rows, records, strict=True)]

    def _probe(self, path: str, data_type: str) -> Probe:
        with self.media.local(path) as file:
            return probe(file, data_type, self.max_decoded_mb)

    def _entry(self, row: int, record: Record, seen: tuple[Probe, ...]) -> IndexEntry:
        try:
            tokens, bucket, reason = self.measure(record, seen)
        except MediaError as error:
            tokens, bucket, reason = 0, None, str(error)
        cause = None if bucket is not None else reason or "no-bucket"
        return IndexEntry(row, seen, tokens, bucket, cause)


def with_seconds(records: Sequence[Record], entries: Sequence[IndexEntry]) -> list[Record]:
    """The records, those of videos with their length in seconds where it is known."""

    def length(entry: IndexEntry) -> float | None:
        known = len(entry.media) == 1 and not entry.media[0].is_image and entry.media[0].fps > 0
        return entry.media[0].frames / entry.media[0].fps if known else None

    return [replace(record, seconds=length(entry)) for record, entry in zip(records, entries, strict=True)]


def failed(row: int, error: MediaError | UserError) -> IndexEntry:
    """The entry of a record whose medium could not be probed."""
    return IndexEntry(row, (), 0, None, str(error) if isinstance(error, MediaError) else f"path: {error}")


def as_json_values(value: Any) -> Any:
    """A setting as JSON values: dataclasses become objects, tuples lists, anything else its text."""
    return json.loads(json.dumps(value, default=_plain, sort_keys=True))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def file_stamp(file: str | Path) -> dict[str, Any]:
    """Size and hash of a file's content, for the settings of an index."""
    digest, size = hashlib.sha256(), 0
    with epath.Path(file).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(as_json_values(settings), sort_keys=True).encode()).hexdigest()[:16]


def build_index(
    records: Sequence[Record],
    root: str | MediaCache,
    settings: Mapping[str, Any],
    measure: Measure,
    workers: int,
    partial: Path | None = None,
    timeout: float | int = 60.0,
    max_decoded_mb: int = MAX_DECODED_MB,
) -> list[IndexEntry]:
    """Probes every medium once, in `workers` helper processes, and measures every record; entries in row order.

    settings: all that the result depends on. partial: a local file to which entries are appended as they come; if it
    exists and was made with the same settings the rows in it are not done again, otherwise it is begun anew.
    timeout: seconds a medium may take. max_decoded_mb: megabytes it may take. Records with the same medium are probed
    together.
    """
    media = MediaCache(root) if isinstance(root, str) else root
    done = _read_partial(partial, settings) if partial else {}
    jobs = _jobs(records, done)
    with (
        open(partial or os.devnull, "a" if done else "w") as journal,
        tqdm(total=len(records), initial=len(done), unit="record", desc="index", mininterval=1.0) as bar,
    ):
        if not done:
            journal.write(_header(settings))
        for entries in _in_helpers(_Prober(media, measure, max_decoded_mb), records, jobs, workers, timeout):
            for entry in entries:
                done[entry.row] = entry
                journal.write(_line(entry))
            journal.flush()
            bar.update(len(entries))
    return [done[row] for row in range(len(records))]


def measure_one(
    record: Record,
    media: MediaCache,
    measure: Measure,
    timeout: float | int = 60.0,
    max_decoded_mb: int = MAX_DECODED_MB,
) -> IndexEntry:
    """The entry of a record by itself, its media probed in a helper process."""
    ((entry,),) = _in_helpers(_Prober(media, measure, max_decoded_mb), [record], [[0]], 1, timeout)
    return entry


def _jobs(records: Sequence[Record], done: Mapping[int, IndexEntry]) -> list[list[int]]:
    """Rows still to do, those with the same media together (text one by one)."""
    groups: dict[Any, list[int]] = {}
    for row, record in enumerate(records):
        if row not in done:
            groups.setdefault((record.data_type, record.path) if record.path is not None else row, []).append(row)
    return list(groups.values())


def _in_helpers(
    prober: _Prober, records: Sequence[Record], jobs: list[list[int]], workers: int, timeout: float | int
) -> Iterator[list[IndexEntry]]:
    """Results in the order they come. Each thread waits for one helper process."""
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    results: queue.SimpleQueue[list[IndexEntry] | BaseException] = queue.SimpleQueue()
    for rows in jobs:
        todo.put(rows)
    stop = threading.Event()

    def work() -> None:
        with Sandbox(prober, timeout, prober.max_decoded_mb) as helper:
            while not stop.is_set():
                try:
                    rows = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    results.put(_entries(helper, rows, [records[row] for row in rows]))
                except Exception as error:  # a fault of ours or of `measure`: the caller is to see it
                    results.put(error)
                    return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(workers, len(jobs))))]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _entries(helper: Sandbox, rows: list[int], records: list[Record]) -> list[IndexEntry]:
    """Entries of the records that share media. A call each for probing and measuring, for both may take their time;
    where measuring fails, each record is measured alone, so that one with a question without end costs only itself."""
    try:
        seen = helper(rows, records, None)
    except (MediaError, UserError) as error:
        return [failed(row, error) for row in rows]
    try:
        return helper(rows, records, seen) if len(rows) > 1 else [_entry_alone(helper, rows[0], records[0], seen)]
    except MediaError:
        return [_entry_alone(helper, row, one, seen) for row, one in zip(rows, records, strict=True)]


def _entry_alone(helper: Sandbox, row: int, record: Record, seen: tuple[Probe, ...]) -> IndexEntry:
    try:
        return helper([row], [record], seen)[0]
    except MediaError as error:
        return failed(row, MediaError(error.cause, f"its text was not tokenised ({error})"))


def save_index(file: str | Path, entries: Sequence[IndexEntry], settings: Mapping[str, Any]) -> None:
    """Writes an index, local or gs://; a local file appears whole or not at all."""
    target = epath.Path(file)
    staged = target if "://" in str(file) else target.with_name(target.name + ".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(entry) for entry in entries]
    with staged.open("w") as stream:
        stream.write(_header(settings, lines))
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
        raise UserError(f"there is no index {file}; make it with jvr1 index") from None
    except UserError:
        raise
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def differing(before: Any, after: Any, name: str = "") -> list[str]:
    """The settings that differ, as 'a.b was 1, is 2'."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [c for k in keys for c in differing(before.get(k), after.get(k), f"{name}.{k}" if name else str(k))]
    return [] if before == after else [f"{name} was {json.dumps(before)}, is {json.dumps(after)}"]


_AGAIN = "remove it, and make it again with jvr1 index"


def _header(settings: Mapping[str, Any], lines: Sequence[str] | None = None) -> str:
    """lines: of all entries, where they are known."""
    hashed = settings_hash(settings)
    whole = {} if lines is None else {"entries": len(lines), "sha256": _sum(lines)}
    return (
        json.dumps({"jvr1_index": INDEX_FORMAT, "hash": hashed, **whole, "settings": as_json_values(settings)}) + "\n"
    )


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


def _line(entry: IndexEntry) -> str:
    return json.dumps(astuple(entry), ensure_ascii=False) + "\n"


def _entry(line: str | bytes) -> IndexEntry:
    """Raises ValueError, TypeError for what `_line` did not write."""
    row, media, *rest = json.loads(line)
    return IndexEntry(row, tuple(Probe(*one) for one in media), *rest)


def _read_partial(partial: Path, settings: Mapping[str, Any]) -> dict[int, IndexEntry]:
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
