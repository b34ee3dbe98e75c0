"""What is evaluated: the six benchmarks of Video-R1 in its published files, others as they are published themselves
(`eval.forms`), or any question files of Video-R1's form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etils import epath

from jvr1.data.index_file import file_stamp
from jvr1.data.records import Fault, Record, read_records
from jvr1.data.rows import FieldMap
from jvr1.errors import UserError
from jvr1.eval import breakdown
from jvr1.eval.breakdown import Breakdown
from jvr1.eval.forms import PUBLISHED_FORMS, read_form

CITATION = "Video-R1-7B, arXiv 2503.21776, Table 1"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. file: Video-R1's of it; none of a benchmark of `eval.forms`. paper: accuracy in % that CITATION
    gives, by most frames a video; paper_type: the problem type those rest on (None: all). mean_over_tasks: the
    benchmark's own score is the mean over its tasks. breakdown: the groups it reports (None: its tasks, which its file
    names, or none)."""

    title: str
    file: str = ""
    paper: Mapping[int, float] = field(default_factory=dict)
    paper_type: str | None = None
    mean_over_tasks: bool = False
    breakdown: Breakdown | None = None


BENCHMARKS = {
    "vsibench": Benchmark("VSI-Bench", "eval_vsibench.json", {16: 34.6, 32: 35.8, 64: 37.1}, mean_over_tasks=True),
    "videommmu": Benchmark(
        "VideoMMMU", "eval_videommmu.json", {16: 49.8, 32: 52.3, 64: 52.4}, breakdown=breakdown.TRACK
    ),
    "mmvu": Benchmark(
        "MMVU (mc)", "eval_mmvu.json", {16: 64.2, 32: 63.8, 64: 63.8}, paper_type="multiple choice",
        breakdown=breakdown.DISCIPLINE,
    ),
    "mvbench": Benchmark(
        "MVBench", "eval_mvbench.json", {16: 62.7, 32: 63.9, 64: 64.8}, breakdown=breakdown.MVBENCH_TASK
    ),
    "tempcompass": Benchmark(
        "TempCompass", "eval_tempcompass.json", {16: 72.6, 32: 73.2, 64: 73.2}, breakdown=breakdown.DIMENSION
    ),
    "videomme": Benchmark(
        "VideoMME (wo sub)", "eval_videomme.json", {16: 57.4, 32: 59.3, 64: 61.4}, breakdown=breakdown.DURATION
    ),
    "videoholmes": Benchmark("Video-Holmes", breakdown=breakdown.HOLMES_TYPE),
    "lvbench": Benchmark("LVBench", breakdown=breakdown.LVBENCH_TYPE),
    "longvideobench": Benchmark("LongVideoBench", breakdown=breakdown.DURATION_GROUP),
    "mlvu": Benchmark("MLVU", mean_over_tasks=True),
    "videomathqa": Benchmark("VideoMathQA", breakdown=breakdown.DURATION),
    "charades": Benchmark("Charades-STA"),
    "tvbench": Benchmark("TVBench", mean_over_tasks=True),
}  # fmt: skip

FOLDERS = ("", "Evaluation")
"""Where under --data the published files may lie."""


@dataclass(frozen=True)
class Suite:
    """The questions of one file, or of a benchmark's files. records: by their place; faults: what is no question.
    file: the first of them, relative to the root. stamp: of what was read."""

    name: str
    title: str
    file: str
    records: Mapping[int, Record]
    faults: Sequence[Fault]
    stamp: Mapping[str, object] = field(default_factory=dict)
    benchmark: Benchmark | None = None

    @property
    def size(self) -> int:
        return len(self.records) + len(self.faults)


def open_suites(names: Sequence[str], root: str, fields: FieldMap | None = None) -> list[Suite]:
    """The suites named (of BENCHMARKS, or files relative to `root`, whose fields `fields` names). Raises UserError; a
    faulty record is no error."""
    if not epath.Path(root).is_dir():
        raise UserError(f"--data {root} is no folder; name the root of the question files and their media")
    suites = [_open(name, root, fields) for name in names]
    for i, suite in enumerate(suites):
        if any(suite.name == other.name for other in suites[:i]):
            raise UserError(f"two suites have the name {suite.name!r}; evaluate them into different folders")
    if not any(suite.records for suite in suites):
        first = suites[0].faults[0]
        raise UserError(f"{suites[0].file} holds no question that can be asked; record {first.index}: {first.message}")
    return suites


def _open(name: str, root: str, fields: FieldMap | None) -> Suite:
    benchmark = BENCHMARKS.get(name)
    if benchmark is None and not name.endswith((".json", ".jsonl", ".parquet")):
        known = ", ".join(BENCHMARKS)
        raise UserError(
            f"there is no suite {name!r}; use {known}, or question files ending in .json, .jsonl or .parquet"
        )
    if benchmark is not None and name in PUBLISHED_FORMS:
        return _of_form(name, benchmark, root)
    file = name if benchmark is None else _published(benchmark, root)
    records, faults = read_records(str(epath.Path(root) / file), None if benchmark else fields)
    stem = epath.Path(name).stem if benchmark is None else name
    title = stem if benchmark is None else benchmark.title
    return Suite(stem, title, file, records, faults, file_stamp(str(epath.Path(root) / file)), benchmark)


def _of_form(name: str, benchmark: Benchmark, root: str) -> Suite:
    read = read_form(name, benchmark.title, root)
    if not read.records and not read.faults:
        raise UserError(f"{epath.Path(root) / read.files[0]} holds no questions")
    digest = hashlib.sha256("".join(f"{record}\n" for record in read.records.values()).encode()).hexdigest()
    stamp = {"questions": len(read.records), "sha256": digest}
    return Suite(name, benchmark.title, read.files[0], read.records, read.faults, stamp, benchmark)


def _published(benchmark: Benchmark, root: str) -> str:
    for folder in FOLDERS:
        file = f"{folder}/{benchmark.file}" if folder else benchmark.file
        if (epath.Path(root) / file).exists():
            return file
    raise UserError(
        f"{epath.Path(root) / benchmark.file} does not exist, nor {FOLDERS[1]}/{benchmark.file} there; "
        "it comes with Video-R1's evaluation data"
    )
