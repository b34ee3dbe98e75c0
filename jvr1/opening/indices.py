"""The questions of a run: read, their media probed and measured before or now, put into buckets, and judged.

Two files are kept of a question file: what probing said of its media, which nothing but these changes, and what its
records measure with the config's sampling, sizes, tokenizer and template. Buckets are chosen from the second whenever a
run starts.
"""

from __future__ import annotations

import glob
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.data.batch import Bucket, Need
from jvr1.data.cache import MediaCache
from jvr1.data.encode import Encoder
from jvr1.data.fitting import Padding, fit_training, in_buckets, need_of, padding_of
from jvr1.data.index import Again, Measure, build_index, only_probed, unprobed, with_seconds
from jvr1.data.index_file import (
    IndexEntry,
    MediaKey,
    began_at,
    entry_line,
    file_stamp,
    index_header,
    index_sum,
    load_index,
    probed_media,
    save_index,
    settings_hash,
    with_places,
)
from jvr1.data.index_summary import keeps_them, summarise_index
from jvr1.data.inspection import Finding, counted_lines, doubtful_rows, inspect_entries, inspect_records
from jvr1.data.records import DATA_TYPES, Record, usable_records
from jvr1.errors import UserError
from jvr1.model.media import Probe
from jvr1.opening.places import local_cache
from jvr1.processes.peers import agree

PROBING = 1
"""To be raised when probing says something else of a file than before."""


class Questions(NamedTuple):
    """A question file: its usable records, with the lengths of their clips, and their entries in the index. trained:
    whether its rows carry the answer to learn. places: where the records stand in the file. fitted: whether buckets are
    made for them."""

    file: str
    records: list[Record]
    entries: list[IndexEntry]
    trained: bool
    places: list[int]
    fitted: bool


def measure_questions(
    file: str, config: ConfigDict, encoder: Encoder, workdir: epath.Path, *, again: Again = "nothing"
) -> Questions:
    """A file (relative to data.root) read and measured, its records in no buckets yet. again: as of `index_of`. All
    processes call it. Raises UserError."""
    found = usable_records(str(epath.Path(config.data.root) / file), settings.question_fields(config))
    records = list(found.values())
    entries = index_of(file, records, config, encoder, workdir, told=False, again=again)
    return Questions(file, with_seconds(records, entries), entries, encoder.targets, list(found), not encoder.buckets)


def put_in_buckets(
    questions: Questions, config: ConfigDict, encoder: Encoder, kinds: Collection[str] = DATA_TYPES
) -> Questions:
    """The same in the encoder's buckets, with a summary on stdout of what is dropped or doubtful. kinds: of
    media of the records that are asked for. Raises UserError where too many of these are dropped (`data.max_dropped`)
    or doubtful (`data.max_doubtful`)."""
    there = in_buckets_of(questions, encoder)
    findings, entries = findings_of(there), there.entries
    if jax.process_index() == 0:
        print("\n".join(summary_lines(there, findings, config, kinds, listed=False)), flush=True)
        if config.data.index and any(map(unprobed, there.records, entries)):
            print(
                "  data.index is set: media that were mended are probed again by jvr1 index, not by a run", flush=True
            )
    asked = {place: e for place, e, r in zip(there.places, entries, there.records, strict=True) if r.data_type in kinds}
    lost = Counter(str(entry.cause) for entry in asked.values() if entry.bucket is None)
    _refuse_above(config, "max_dropped", "dropped", questions.file, lost.total(), len(asked), lost)
    own = [one for one in findings if one.row in asked]
    doubtful = Counter(f"{f.field} {f.what}" for f in own if f.counted)
    rows = len(doubtful_rows(own))
    _refuse_above(config, "max_doubtful", "doubtful", questions.file, rows, len(asked), doubtful)
    return there


def in_buckets_of(questions: Questions, encoder: Encoder) -> Questions:
    """The same in the encoder's buckets."""
    return questions._replace(entries=in_buckets(questions.entries, encoder.buckets, encoder.model))


def summary_lines(
    questions: Questions,
    findings: Sequence[Finding],
    config: ConfigDict,
    kinds: Collection[str] | None = None,
    *,
    listed: bool = True,
) -> Iterator[str]:
    """What became of a file's records in the config's buckets: kept, dropped, why and what would keep them; what is
    doubtful of those kept. kinds: that are asked for; None: those that the config draws. listed: with the buckets and
    their padding."""
    drawn = [kind for kind in DATA_TYPES if config.data.modality[kind] > 0] if kinds is None else kinds
    buckets = settings.buckets(config)
    summary = summarise_index(with_places(questions.entries, questions.places), {b.name: b.prompt for b in buckets})
    yield f"{questions.file}: {summary.told('kept', buckets=listed)}"
    limits = config.data.auto.prompt, config.data.auto.completion
    yield from keeps_them(summary, buckets, *limits, drawn=drawn, fitted=questions.fitted, trained=questions.trained)
    yield from counted_lines([one for one in findings if not one.unusable])


def findings_of(questions: Questions) -> list[Finding]:
    """All that is wrong or doubtful of records that are in buckets, or in none, by their places in the file."""
    records = dict(zip(questions.places, questions.records, strict=True))
    found = inspect_records(records, thoughts=questions.trained)
    return found + inspect_entries(questions.records, with_places(questions.entries, questions.places))


def _refuse_above(
    config: ConfigDict, name: str, word: str, file: str, count: int, of: int, causes: Mapping[str, int]
) -> None:
    most = config.data[name]
    if count <= most * of:
        return
    told = ", ".join(f"{n} {cause}" for cause, n in sorted(causes.items(), key=lambda item: (-item[1], item[0]))[:3])
    raise UserError(
        f"{file}: {count} of {of} records are {word} ({told}), above data.{name}={most:g}; the lines above say what to "
        f"do, jvr1 check-data names each record, and a higher data.{name} starts all the same"
    )


# --- the index --------------------------------------------------------------------------------------------------------


def index_of(
    file: str,
    records: Sequence[Record],
    config: ConfigDict,
    encoder: Encoder,
    workdir: epath.Path,
    *,
    told: bool = True,
    again: Again = "nothing",
    stamp: Mapping[str, Any] | None = None,
) -> list[IndexEntry]:
    """What the records of a file measure, in no buckets yet: made before with the same settings, or now. told: whether
    a summary is printed when it is made. again: which media that could not be used are probed again; "changed": those
    that were written since, and those that were missing and are there. stamp: of what the records were read from; None:
    the file. All processes call it; the first makes it.

    A file's name carries the hash of the settings, so one made with others, or of other probes, is never taken; that of
    probes carries the hash of the media, so that another text or solution probes nothing anew, and further media are
    probed alone.
    """
    file = str(epath.Path(config.data.root) / file)
    folder = epath.Path(config.data.index) if config.data.index else workdir / "index"
    probing = {
        "media": settings_hash({"media": _media_of(records)}),
        "probed": PROBING,
        "max_decoded_mb": config.data.max_decoded_mb,
    }
    probes = folder / f"{epath.Path(file).stem}-media-{settings_hash(probing)}.jsonl"
    if jax.process_index() == 0:
        if probes.exists():
            _probe_again(probes, records, config, encoder, probing, again)
        else:
            _take_over(probes, epath.Path(file).stem, records, probing, workdir)
            _make(probes, records, config, encoder, probing, only_probed, None, workdir)
    _wait_for(f"media {probes}")
    measuring = {"records": dict(stamp or file_stamp(file)), **settings.question_fields(config).told}
    measuring |= probing | {"probes": index_sum(str(probes))} | encoder.fingerprint()
    path = folder / f"{epath.Path(file).stem}-{settings_hash(measuring)}.jsonl"
    if not path.exists() and jax.process_index() == 0:
        known = _load(probes, probing, len(records))
        entries = _make(path, records, config, encoder, measuring, encoder.measure, known, workdir)
        if told:
            print(f"{file}: {summarise_index(entries).told('measured')}")
    _wait_for(f"index {path}")
    return _load(path, measuring, len(records))


def _wait_for(what: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _probe_again(
    probes: epath.Path,
    records: Sequence[Record],
    config: ConfigDict,
    encoder: Encoder,
    probing: Mapping[str, Any],
    again: Again,
) -> None:
    """Writes the probes anew where media that could not be used can be now."""
    if again == "nothing":
        return
    known, since, began = _load(probes, probing, len(records)), began_at(str(probes)), time.time()
    failed = [entry.row for entry in known if unprobed(records[entry.row], entry)]
    if again == "changed":
        failed = [row for row in failed if _differs(known[row], records[row], encoder.media, since)]
    if failed:
        for path in {path for row in failed for path in records[row].paths}:
            encoder.media.forget(path)
        limits = config.data.timeout, config.data.max_decoded_mb
        workers, own = config.data.index_workers, [records[row] for row in failed]
        found = build_index(own, encoder.media, probing, only_probed, workers, None, *limits)
        for row, entry in zip(failed, found, strict=True):
            known[row] = replace(entry, row=row)
        save_index(str(probes), known, probing, {"began": began, "paths": _media_of(records)})


def _differs(entry: IndexEntry, record: Record, media: MediaCache, since: float) -> bool:
    """Whether media that could not be used may be usable now. What was missing is by any that is there: moved or linked
    to its place it may be older than the look that missed it."""
    if entry.cause == "missing":
        return all(media.written_since(path, -math.inf) for path in record.paths)
    return any(media.written_since(path, since) for path in record.paths)


def _media_of(records: Sequence[Record]) -> list[MediaKey]:
    return [(record.data_type, record.path) for record in records]


def _partial_of(path: epath.Path, workdir: epath.Path) -> Path:
    """Where an unfinished index lies."""
    folder = local_cache(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(folder / f"{path.name}.partial")


def _take_over(
    probes: epath.Path, stem: str, records: Sequence[Record], probing: Mapping[str, Any], workdir: epath.Path
) -> None:
    """Begins the probes of a file with what those of an earlier file of its name know of media that both have, so that
    new ones alone are probed."""
    partial = _partial_of(probes, workdir)
    if partial.exists() or not probes.parent.exists():
        return
    known: dict[MediaKey, tuple[Probe, ...]] = {}
    for kept in sorted(probes.parent.glob(f"{glob.escape(stem)}-media-*.jsonl"), key=lambda one: -one.stat().mtime):
        with suppress(UserError):  # a damaged one is made anew when it is wanted
            known = probed_media(str(kept), probing)
        if known:
            break
    rows = [(row, key) for row, key in enumerate(_media_of(records)) if key in known]
    lines = [entry_line(IndexEntry(row, known[key], 0, key[0], None)) for row, key in rows]
    if lines:
        partial.write_text("".join([index_header(probing, None, {"began": time.time()}), *lines]))


def _make(
    path: epath.Path,
    records: Sequence[Record],
    config: ConfigDict,
    encoder: Encoder,
    made_with: Mapping[str, Any],
    measure: Measure,
    known: Sequence[IndexEntry] | None,
    workdir: epath.Path,
) -> list[IndexEntry]:
    """An index file made, and its entries."""
    partial = _partial_of(path, workdir)
    limits = config.data.timeout, config.data.max_decoded_mb
    workers = config.data.index_workers
    entries = build_index(records, encoder.media, made_with, measure, workers, partial, *limits, known)
    further: dict[str, Any] = {"paths": _media_of(records)} if measure is only_probed else {}
    save_index(str(path), entries, made_with, further | {"began": began_at(partial)})
    partial.unlink()
    return entries


def _load(path: epath.Path, made_with: Mapping[str, Any], records: int) -> list[IndexEntry]:
    entries = load_index(str(path), made_with)
    if [entry.row for entry in entries] != list(range(records)):
        raise UserError(f"{path} is damaged: it has not one entry for each of {records} records; remove it")
    return entries


# --- buckets of a run's own -------------------------------------------------------------------------------------------


def fit_run(config: ConfigDict, trained: Sequence[Questions], validated: Sequence[Questions], encoder: Encoder) -> None:
    """Puts buckets into the config, as many and as large as its measured questions need under the limits of
    `data.auto`, and prints them. Kinds of media and files that are not drawn count for nothing. The same on all
    processes. Raises UserError where no question can be given one."""
    auto, weights = config.data.auto, config.data.weights or (1.0,) * len(trained)
    needs: Counter[Need] = Counter()
    for one, weight in [*zip(trained, weights, strict=True), *((one, None) for one in validated)]:
        for need in filter(None, map(need_of, one.entries)):
            asked = weight is None or weight * config.data.modality[need.kind] > 0
            needs[need] += asked and need.prompt <= auto.prompt and need.completion <= auto.completion
    needs = +needs
    if not needs:
        raise UserError(
            f"no question of {', '.join(one.file for one in trained)} can be given a bucket: none could be read, or "
            "all are longer than data.auto.prompt or data.auto.completion"
        )
    longest = max(need.completion for need in needs)
    completion = min(auto.completion, -(-longest // 64) * 64) if encoder.targets else auto.completion
    units = encoder.model.vision.units
    buckets = fit_training(needs, completion, units, auto.shapes, auto.padding)
    rows = tuple((b.kind, b.steps, b.windows, b.prompt, b.completion) for b in buckets)
    agree("buckets", {"data.buckets": [list(row) for row in rows]})
    config.data.buckets = rows
    if jax.process_index() == 0:
        print(told_buckets(buckets, padding_of(needs, buckets, units)), flush=True)


def told_buckets(buckets: Sequence[Bucket], padding: Padding) -> str:
    """What was fitted, as a config writes it."""
    rows = [f"  {(b.kind, b.steps, b.windows, b.prompt, b.completion)}," for b in buckets]
    shares = f"padding of prompt tokens {padding.prompt:.1%}, of windows {padding.visual:.1%}"
    return "\n".join([f"data.buckets=auto: {len(buckets)} shapes, {shares}", *rows])


def with_buckets(encoder: Encoder, config: ConfigDict) -> Encoder:
    """An encoder that was made before there were buckets."""
    return encoder if encoder.buckets else replace(encoder, buckets=settings.buckets(config))
