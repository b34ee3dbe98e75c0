"""Rows to microbatches through grain: worker processes, this process's share, failures kept in their place."""

from __future__ import annotations

import functools
import json
import queue
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from absl import flags
from etils import epath

from jvr1.data.batch import Arrays, Bucket, Microbatch, Row, empty_example, stack_examples
from jvr1.data.encode import Encoder
from jvr1.data.records import Record
from jvr1.data.schedule import MicrobatchPlan
from jvr1.data.share import ALONE, Share
from jvr1.data.shared_memory import SHARED_MEMORY, own_name, prepare_worker, remove_leftovers, room, rows_ahead
from jvr1.data.store import RecordStore
from jvr1.errors import UserError

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long who stops reading waits for what was read ahead to be let go: workers, and rows in shared memory."""


@runtime_checkable
class Planner(Protocol):
    """What names the rows of microbatch m: `schedule.Schedule` or `schedule.Sequential`."""

    batch: int

    def micro(self, number: int) -> MicrobatchPlan: ...


class _Rows:
    """Random access to (microbatch, place) from microbatch `first` on: what grain's workers index."""

    def __init__(self, planner: Planner, share: Share, first: int, count: int):
        self.planner, self.first, self.count = planner, first, count
        self.places = share.places(planner.batch)

    def __len__(self) -> int:
        return self.count * len(self.places)

    def __getitem__(self, index: int) -> tuple[int, int, Bucket, int]:
        micro, at = divmod(index, len(self.places))
        plan = self.planner.micro(self.first + micro)
        return self.first + micro, self.places[at], plan.bucket, int(plan.rows[self.places[at]])


@dataclass(frozen=True)
class _Load(grain.transforms.Map):
    """Reads and encodes one row. `failed` are the (microbatch, place) that failed before: they fail again."""

    encoder: Encoder
    store: RecordStore
    failed: dict[tuple[int, int], str]
    seed: int
    per_step: int
    batch: int

    def map(self, element: tuple[int, int, Bucket, int]) -> tuple[Row, Arrays]:
        micro, place, bucket, number = element
        empty = empty_example(bucket, self.encoder.model)
        if number < 0:
            return Row(micro, place, None), self._numbered(empty, micro, place)
        record, error = self.store[number], self.failed.get((micro, place))
        arrays = None
        if error is None:
            order = np.random.default_rng((self.seed, micro, place, 2))
            arrays, error = self.encoder.try_encode(record, bucket, order)
        return Row(micro, place, record, error, number), self._numbered(arrays or empty, micro, place)

    def _numbered(self, arrays: Arrays, micro: int, place: int) -> Arrays:
        return arrays._replace(number=np.int32(micro % self.per_step * self.batch + place))


class Pipeline:
    """Microbatches in the order of a plan, from any microbatch on, the same rows whatever the workers and processes.

    per_step: microbatches of an optimizer step; a row's `number` counts within it. ahead: steps whose rows are read
    before their turn. Raises UserError where shared memory is too small for the workers.
    """

    def __init__(
        self,
        planner: Planner,
        store: RecordStore,
        encoder: Encoder,
        *,
        seed: int,
        per_step: int,
        workers: int,
        share: Share = ALONE,
        ahead: int = 2,
    ):
        self.planner, self.store, self.encoder, self.share = planner, store, encoder, share
        self.seed, self.per_step, self.workers = seed, per_step, workers
        own = len(share.places(planner.batch))
        self.buffered = max(2, ahead * per_step * own)
        remove_leftovers()
        if workers:
            row = max(room(empty_example(bucket, encoder.model)) for bucket in encoder.buckets)
            self.buffered = rows_ahead(row, workers, own, max(1, self.buffered // workers))

    def microbatches(
        self, first: int, count: int, failed: dict[tuple[int, int], str]
    ) -> Generator[Microbatch, None, None]:
        """Microbatches first, first + 1, ... `count` of them."""
        rows = _Rows(self.planner, self.share, first, count)
        load = _Load(self.encoder, self.store, failed, self.seed, self.per_step, self.planner.batch)
        loaded = grain.MapDataset.source(rows).map(load)
        own = len(rows.places)
        if self.workers:
            _parse_flags()
            options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=self.buffered)
            iterator = loaded.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
            start = functools.partial(prepare_worker, own_name() if SHARED_MEMORY.is_dir() else None)
            iterator = iter(iterator.mp_prefetch(options, start))
        else:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.buffered)
            iterator = iter(loaded.to_iter_dataset(options))
        try:
            for micro in range(first, first + count):
                taken = [next(iterator) for _ in range(own)]
                bucket = self.planner.micro(micro).bucket
                made = Microbatch(
                    bucket, stack_examples([arrays for _, arrays in taken]), tuple(row for row, _ in taken)
                )
                del taken  # its shared memory, while the microbatch is worked on
                yield made
        finally:
            iterator.close()

    def steps(
        self, first: int, last: int, failed: dict[tuple[int, int], str]
    ) -> Generator[list[Microbatch], None, None]:
        """The microbatches of optimizer steps first, ..., last - 1."""
        m = self.per_step
        with closing(self.microbatches(first * m, (last - first) * m, failed)) as stream:
            for _ in range(first, last):
                yield [next(stream) for _ in range(m)]


def _parse_flags() -> None:
    """grain's worker processes want absl's flags parsed, also where a notebook or a test never parses any."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def ahead(items: Generator[T, None, None], size: int) -> Generator[T, None, None]:
    """Makes the next `size` items in a thread while the caller works on one. Errors come out where they belong;
    when the caller stops early, `items` is closed."""
    made: queue.Queue = queue.Queue(size)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))
        finally:
            items.close()  # in its own thread: a generator that runs cannot be closed from another

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join(CLOSE_SECONDS)


class FailureJournal:
    """Rows that failed in this run, each written down before its step is taken: a resumed run fails them alike.

    One small file a step that had failures, whole, so that a bucket can hold it; keyed by (microbatch, place), which
    no number of processes changes. Above `max_share` failed rows (of at least `enough`) there is an `excess`.
    known: rows that a checkpoint names, as `rows` gives them: what is not in the files, when one of those was lost.
    Errors: UserError naming a file that is damaged.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        process: int,
        max_share: float,
        enough: int = 64,
        known: Sequence[Sequence[Any]] = (),
    ):
        self.folder, self.process = epath.Path(workdir) / "journal", process
        self.max_share, self.enough = max_share, enough
        self.failed: dict[tuple[int, int], str] = {(m, p): cause for m, p, cause in known}
        self.seen, self.causes = 0, Counter[str]()
        if self.folder.exists():
            for path in sorted(self.folder.glob("*.json")):
                self.failed |= {(m, p): cause for m, p, cause, _ in _read_failures(path)}

    def rows(self) -> list[tuple[int, int, str]]:
        """(microbatch, place, cause) of each row that failed, in order."""
        return [(m, p, cause) for (m, p), cause in sorted(self.failed.items())]

    def note(self, step: int, microbatches: Sequence[Microbatch]) -> list[Row]:
        """Takes down a step's failures; returns them."""
        rows = [row for micro in microbatches for row in micro.rows if row.record is not None]
        failures = [row for row in rows if row.error is not None]
        self.seen += len(rows)
        self.causes.update(row.cause or "" for row in failures)
        fresh = [r for r in failures if (r.micro, r.place) not in self.failed]
        if fresh:
            self.failed |= {(r.micro, r.place): r.error or "" for r in fresh}
            self._write(step, fresh)
        return failures

    @property
    def excess(self) -> str | None:
        """Why the run must end, where more rows failed than are allowed."""
        if self.seen >= self.enough and sum(self.causes.values()) > self.max_share * self.seen:
            return self.summary() + f"; data.max_failed allows {self.max_share:.1%}"
        return None

    def _write(self, step: int, failures: Sequence[Row]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:07d}.process-{self.process}.json"
        # before a restart with another number of processes, this one may have written for rows now another's
        known = _read_failures(path) if path.exists() else []
        lines = known + [(r.micro, r.place, r.error, _identity(r.record)) for r in failures]
        partial = self.folder / f".{path.name}.partial"
        partial.write_text(json.dumps(lines))
        partial.replace(path)

    def summary(self) -> str:
        """How many of how many rows failed, by cause."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common())
        return f"{sum(self.causes.values())} of {self.seen} rows could not be read ({causes})"


def _read_failures(path: epath.Path) -> list[tuple[int, int, str, Any]]:
    """(microbatch, place, cause, problem_id) of a step's failures. Raises UserError."""
    try:
        read = json.loads(path.read_text())
        if not isinstance(read, list):
            raise TypeError(type(read))
        rows = [(int(m), int(p), str(cause), name) for m, p, cause, name in read]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; remove it: the last checkpoint knows its rows too") from None
    return rows


def _identity(record: Record | None) -> str | int | None:
    return None if record is None else record.problem_id
