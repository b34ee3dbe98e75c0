"""The index of a data set: every medium probed once, every record measured, what cannot be used named with its cause.

Probing depends on the files alone, measuring on sampling, sizes and the tokenizer: with probes of before (`known`) a
record is measured anew without a look at its media. Which bucket holds what was measured is `data.fitting`'s.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from tqdm import tqdm

from jvr1.data.cache import MediaCache
from jvr1.data.index_file import IndexEntry, entry_line, index_header, read_partial
from jvr1.data.media import MediaError, probe
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling


class Sized(NamedTuple):
    """What a measure says of a record: prompt tokens; the bucket, or the kind of its media where that is chosen later;
    without one the reason, as `cause` or `cause: message`, why it is dropped; sizes as of `IndexEntry`."""

    tokens: int
    bucket: str | None
    reason: str | None = None
    steps: int = 0
    windows: int = 0
    completion: int = 1


Measure = Callable[[Record, tuple[Probe, ...]], Sized]
"""Of a record and a probe of each of its media. Pure and picklable: it runs in the helper processes."""


Again: TypeAlias = Literal["nothing", "changed", "all"]
"""Which media that could not be used are probed again: none, those that were written since, all."""


def only_probed(record: Record, media: tuple[Probe, ...]) -> Sized:
    """The measure of an index that keeps probes alone."""
    return Sized(0, record.data_type)


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

    def __call__(self, record: Record, media: tuple[Probe, ...]) -> Sized:
        sampling = self.sampling.within(record.start, record.end)
        return Sized(sum(self._tokens(one, sampling) for one in media), record.data_type)

    def _tokens(self, probe: Probe, sampling: VideoSampling) -> int:
        limits = self.image_limits if probe.is_image else self.video_limits
        height, width = self.rules.resized(probe, sampling, limits)
        steps = -(-len(self.rules.numbers(probe, sampling)) // 2)
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
            found = self.measure(record, seen)
        except MediaError as error:
            found = Sized(0, None, str(error))
        cause = None if found.bucket is not None else found.reason or "no-bucket"
        return IndexEntry(row, seen, found.tokens, found.bucket, cause, found.steps, found.windows, found.completion)


def with_seconds(records: Sequence[Record], entries: Sequence[IndexEntry]) -> list[Record]:
    """The records, those of videos with the length of their clip in seconds where it is known."""

    def length(record: Record, entry: IndexEntry) -> float | None:
        if len(entry.media) != 1 or entry.media[0].is_image:
            return None
        whole = entry.media[0].frames / entry.media[0].fps
        return max(0.0, min(whole, whole if record.end is None else record.end) - (record.start or 0.0))

    return [replace(record, seconds=length(record, entry)) for record, entry in zip(records, entries, strict=True)]


def failed(row: int, error: MediaError | UserError, media: tuple[Probe, ...] = ()) -> IndexEntry:
    """The entry of a record whose medium could not be probed, or which was not measured."""
    return IndexEntry(row, media, 0, None, str(error) if isinstance(error, MediaError) else f"path: {error}")


def build_index(
    records: Sequence[Record],
    root: str | MediaCache,
    settings: Mapping[str, Any],
    measure: Measure,
    workers: int,
    partial: Path | None = None,
    timeout: float | int = 60.0,
    max_decoded_mb: int = MAX_DECODED_MB,
    known: Sequence[IndexEntry] | None = None,
) -> list[IndexEntry]:
    """Probes every medium once, in `workers` helper processes, and measures every record; entries in row order.

    settings: all that the result depends on. partial: a local file to which entries are appended as they come; if it
    exists and was made with the same settings the rows in it are not done again, otherwise it is begun anew.
    timeout: seconds a medium may take. max_decoded_mb: megabytes it may take. Records with the same medium are probed
    together. known: the entries of an index of the same records whose media were probed; none is probed again.
    """
    media = MediaCache(root) if isinstance(root, str) else root
    done = read_partial(partial, settings) if partial else {}
    begun = bool(done)
    for entry in known or ():
        if unprobed(records[entry.row], entry):
            done[entry.row] = entry
    jobs = _jobs(records, done)
    word = "probe" if measure is only_probed else "measure" if known else "index"
    with (
        open(partial or os.devnull, "a" if begun else "w") as journal,
        tqdm(total=len(records), initial=len(done), unit="record", desc=word, mininterval=1.0) as bar,
    ):
        if not begun:
            journal.write(index_header(settings, None, {"began": time.time()}))
        for entries in _in_helpers(_Prober(media, measure, max_decoded_mb), records, jobs, workers, timeout, known):
            for entry in entries:
                done[entry.row] = entry
                journal.write(entry_line(entry))
            journal.flush()
            bar.update(len(entries))
    return [done[row] for row in range(len(records))]


def unprobed(record: Record, entry: IndexEntry) -> bool:
    """Whether a record has media that could not be probed."""
    return bool(record.paths) and not entry.media


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
    prober: _Prober,
    records: Sequence[Record],
    jobs: list[list[int]],
    workers: int,
    timeout: float | int,
    known: Sequence[IndexEntry] | None = None,
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
                    seen = None if known is None else known[rows[0]].media
                    results.put(_entries(helper, rows, [records[row] for row in rows], seen))
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


def _entries(
    helper: Sandbox, rows: list[int], records: list[Record], seen: tuple[Probe, ...] | None
) -> list[IndexEntry]:
    """Entries of the records that share media. A call each for probing and measuring, for both may take their time;
    where measuring fails, each record is measured alone, so that one with a question without end costs only itself."""
    if seen is None:
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
        return failed(row, MediaError(error.cause, f"its text was not tokenised ({error})"), seen)
