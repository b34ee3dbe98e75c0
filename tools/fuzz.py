"""Hostile files: python tools/fuzz.py [--seed N] [--media 500] [--records 300] [--models 150] [--only media:17]

Makes files that are harmed at random from a seed and reads each as jvr1 does: media are indexed and decoded, questions
loaded and indexed, model folders opened and converted. Each must come to what it holds or to a refusal in a line: no
traceback, no hang, no crash, nothing opened outside of the case's folder, memory within its bound, and all the same
when it is made and read again. Prints what they came to, and those that fail with what was done to them; exit code 1
where one does. Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.index import IndexEntry, VisualTokens, build_index
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.errors import MediaError, UserError, run_main
from jvr1.model.media import PixelLimits, VideoSampling
from tools.fuzzing import media, models, records
from tools.fuzzing.watch import Canaries, Watched

KINDS = ("media", "records", "models")
MEMORY_MB = {"media": 512, "records": 512, "models": 2048}
"""What a process may grow by for one case."""
SECONDS = {"media": 30.0, "records": 60.0, "models": 120.0}
LONGEST_LINE = 1000
MEASURE = VisualTokens(VideoSampling(), PixelLimits(784, 64 * 784), PixelLimits(784, 64 * 784))


@dataclass
class Case:
    """One harmed file. path: under the root of its kind; done: what was done to it; outcome: what it came to;
    faults: what must not be."""

    kind: str
    number: int
    path: str = ""
    data_type: str = ""
    done: str = ""
    outcome: str = ""
    peak: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ground:
    """What all cases are made of, and what lies beside them."""

    files: dict[str, bytes]
    model: Path
    canaries: Canaries


def main(arguments: list[str] | None = None) -> int:
    flags = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        with_model = flags.counts["models"] > 0
        os.environ |= {"TMPDIR": str(folder / "tmp"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
        os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        (folder / "tmp").mkdir()
        ground = prepare(folder, with_model)
        failed = 0
        try:
            for kind in KINDS:
                numbers = flags.numbers(kind)
                if numbers:
                    failed += report(kind, *twice(kind, numbers, flags.seed, folder, ground, flags.keep), flags)
        finally:
            ground.canaries.close()
    return 1 if failed else 0


def prepare(folder: Path, with_model: bool) -> Ground:
    for name in ("sources", "good"):
        (folder / name).mkdir()
    files = media.sources(folder / "sources")
    if with_model:
        models.make(folder / "good" / "model")
    secret = {name: files[name] for name in ("h264.mp4", "h264.ts", "rgb.png", "base.jpg")}
    return Ground(files, folder / "good" / "model", Canaries(folder / "outside", secret))


def twice(
    kind: str, numbers: list[int], seed: int, folder: Path, ground: Ground, keep: str | None
) -> tuple[list[Case], float]:
    """All cases of a kind, made and read two times, and the seconds that took."""
    begun = time.perf_counter()
    passes = []
    for _ in range(2):
        root = folder / "cases"
        root.mkdir()
        cases = [make(kind, number, seed, root, ground) for number in numbers]
        ground.canaries.noticed()  # copies made by us
        READERS[kind](cases, str(root), ground.canaries)
        passes.append(cases)
        if keep:
            shutil.copytree(root, keep, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root)
    first, second = passes
    for one, two in zip(first, second, strict=True):
        if (one.done, one.outcome) != (two.done, two.outcome):
            one.faults.append(f"then came to {two.outcome} ({two.done})")
        one.faults += [fault for fault in two.faults if fault not in one.faults]
        one.peak = max(one.peak, two.peak)
    return first, time.perf_counter() - begun


def make(kind: str, number: int, seed: int, root: Path, ground: Ground) -> Case:
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    case = Case(kind, number)
    folder = root / f"{number:05d}"
    folder.mkdir()
    if kind == "media":
        name, case.data_type, case.done = media.write(rng, folder, ground.files, ground.canaries)
    elif kind == "records":
        name, case.done = records.write(rng, folder, ground.files["rgb.png"], ground.canaries)
    else:
        name, case.done = models.write(rng, folder, ground.model, ground.canaries)
    case.path = f"{folder.name}/{name}"
    return case


# ------------------------------------------------------------------------------------------------------- reading


def attempt(case: Case, helper: Sandbox, root: str, canaries: Canaries, *arguments: Any) -> Any:
    """One call for a case: its result, or None where it was refused. Faults are noted in the case."""
    result = None
    try:
        result = helper(case.path, *arguments)
    except (MediaError, UserError) as error:
        case.outcome = str(error).replace(root, "")
        case.faults += wrong_refusal(case)
    except RuntimeError as error:
        case.outcome = str(error).strip().rpartition("\n")[2].replace(root, "")
        case.faults.append(f"a traceback: {str(error).replace(root, '')[-1500:]}")
    case.peak, opened = helper()
    case.faults += [f"opened {name}" for name in dict.fromkeys([*opened, *canaries.noticed()])]
    if case.peak > MEMORY_MB[case.kind]:
        case.faults.append(f"took {case.peak:.0f} MB of {MEMORY_MB[case.kind]}")
    return result


def wrong_refusal(case: Case) -> list[str]:
    lines = case.outcome.split("\n")
    found = []
    if case.kind != "records" and len(lines) > 1:
        found.append("a refusal of several lines")
    if max(map(len, lines)) > LONGEST_LINE:
        found.append(f"a refusal of {max(map(len, lines))} characters")
    if case.outcome.startswith(("timeout", "crashed")) or "Traceback" in case.outcome:
        found.append("no refusal but an end")
    return found


def read_media(cases: list[Case], root: str, canaries: Canaries) -> None:
    """Indexed as jvr1 index does, and decoded."""
    most, limits = MEMORY_MB["media"], MEASURE.video_limits
    rows = [Record(case.number, "?", case.data_type, "free-form", (), "x", None, case.path, "fuzz") for case in cases]
    entries = indexed(rows, root, SECONDS["media"], most)
    seen = canaries.noticed()
    cases[0].faults += [f"while the cases were indexed, opened {name}" for name in seen]
    reader = Watched(MediaReader(MediaCache(root), most), root)
    with Sandbox(reader, SECONDS["media"], most) as helper:
        for case, entry in zip(cases, entries, strict=True):
            got = attempt(case, helper, root, canaries, case.data_type, MEASURE.sampling, limits, MEASURE.rules)
            if got is not None:
                digest = hashlib.sha256(got.frames.tobytes() + got.timestamps.tobytes()).hexdigest()[:12]
                case.outcome = f"read {got.frames.shape} {digest}"
            if entry.cause in ("timeout", "crashed"):
                case.faults.append(f"in the index: {entry.error}")
            case.outcome += f"; in the index {(entry.error or entry.media)!s}".replace(root, "")


def indexed(rows: list[Record], root: str, seconds: float, most: int) -> list[IndexEntry]:
    return build_index(rows, root, {}, MEASURE, 1, timeout=seconds, max_decoded_mb=most)


def read_records(cases: list[Case], root: str, canaries: Canaries) -> None:
    """Loaded, and all that is good indexed together."""
    rows: list[Record] = []
    of: list[Case] = []
    with Sandbox(Watched(records.Reading(root), root), SECONDS["records"], MEMORY_MB["records"]) as helper:
        for case in cases:
            got = attempt(case, helper, root, canaries)
            if got is None:
                continue
            found, digest = got
            case.outcome = f"read {len(found)} {digest}"
            folder = case.path.partition("/")[0]
            for record in found:
                moved = tuple(f"{folder}/{path}" for path in record.paths)
                rows.append(replace(record, path=None if not moved else moved if len(moved) > 1 else moved[0]))
                of.append(case)
    entries = indexed(rows, root, SECONDS["media"], MEMORY_MB["media"])
    for case, entry in zip(of, entries, strict=True):
        case.outcome += f"; {(entry.error or entry.media)!s}".replace(root, "")
        if entry.cause in ("timeout", "crashed"):
            case.faults.append(f"in the index: {entry.error}")
    cases[0].faults += [f"while records were indexed, opened {name}" for name in canaries.noticed()]


def read_models(cases: list[Case], root: str, canaries: Canaries) -> None:
    """Opened and converted, in one process: what XLA compiles for one case serves the others."""
    with Sandbox(Watched(models.Opening(root), root), SECONDS["models"]) as helper:
        for case in cases:
            got = attempt(case, helper, root, canaries)
            if got is not None:
                case.outcome = f"read {got}"


READERS: dict[str, Callable[[list[Case], str, Canaries], None]] = {
    "media": read_media, "records": read_records, "models": read_models,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- telling


def report(kind: str, cases: list[Case], seconds: float, flags: Flags) -> int:
    """Prints what the cases came to; the number that failed."""
    failed = [case for case in cases if case.faults]
    read = sum(case.outcome.startswith("read") for case in cases)
    peak = max(case.peak for case in cases)
    print(
        f"{kind}: {len(cases)} cases of seed {flags.seed}, twice: {read} read, {len(cases) - read} refused, "
        f"{len(failed)} failed; at most {peak:.0f} MB of {MEMORY_MB[kind]}, {seconds:.0f} s"
    )
    if kind == "media":
        causes = Counter(case.outcome.partition(":")[0] for case in cases if not case.outcome.startswith("read"))
        print("  refused: " + ", ".join(f"{cause} {count}" for cause, count in causes.most_common()))
    for case in failed:
        print(f"  --seed {flags.seed} --only {kind}:{case.number}  {case.done}\n    came to {case.outcome[:300]}")
        for fault in case.faults:
            print(f"    {fault}")
    if flags.only:
        print(f"  {cases[0].done}\n  {cases[0].outcome}")
    return len(failed)


@dataclass(frozen=True)
class Flags:
    seed: int
    counts: dict[str, int]
    only: tuple[str, int] | None
    keep: str | None

    def numbers(self, kind: str) -> list[int]:
        if self.only:
            return [self.only[1]] if self.only[0] == kind else []
        return list(range(self.counts[kind]))


def parse(arguments: list[str] | None) -> Flags:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    for kind, count in zip(KINDS, (500, 300, 150), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"cases of this kind (default: {count})")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case again")
    parser.add_argument("--keep", metavar="DIR", help="copy the cases there")
    args = parser.parse_args(arguments)
    kind, _, number = (args.only or "").partition(":")
    if args.only and (kind not in KINDS or not number.isdecimal()):
        raise UserError(f"--only is {args.only!r}; write KIND:NUMBER with one of {', '.join(KINDS)}")
    only = (kind, int(number)) if args.only else None
    counts = {each: getattr(args, each) if only is None or only[0] == each else 0 for each in KINDS}
    return Flags(args.seed, counts if only is None else {**counts, kind: 1}, only, args.keep)


if __name__ == "__main__":
    run_main(main)
