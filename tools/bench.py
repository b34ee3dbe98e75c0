"""Measures a part of jvr1 on this machine: python tools/bench.py PART [--shape NAME] [--json FILE]

vision, prefill, decode, score, update, step: the step's parts alone (tools/benchmarks/phases.py).
growth: how their time grows with frames, group, completion length, prompts and layers, beside what is counted.
against: the step beside the usual way with transformers + torch (against.py; needs the test dependencies).
shared: the update beside one that repeats the prompt for each completion (shared.py).
queue: a batch kept full beside fixed batches (queue.py). data: decoding, preparing, padding (data.py).
video: reading frames beside decord (video.py; needs the test dependencies).
decoding: memory that decoding a medium takes beside what is counted from its header (decoding.py).
schedule: decode steps of an optimizer step on the published mixture, simulated (schedule.py).
frames: samples with and without decoded frames kept on disk (frames.py; needs the ffmpeg command).
answers: scores of numbers beside math-verify's (answers.py; needs the tests and math-verify).
suites: scores of answers beside those of the benchmarks' published code (suites.py; needs the tests).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from jvr1.errors import UserError, run_main

PHASES = ("vision", "prefill", "decode", "score", "update", "step")
SHAPED = ("growth", "against", "shared", "queue")
UNSHAPED = ("answers", "data", "decoding", "frames", "schedule", "suites", "video")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=(*PHASES, *SHAPED, *UNSHAPED), help="what is measured")
    parser.add_argument("--shape", help="sizes of the model and its input, for the parts that compute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    flags = parser.parse_args(arguments)
    if flags.json and not flags.json.resolve().parent.is_dir():
        raise UserError(f"--json {flags.json}: the folder {flags.json.resolve().parent} does not exist")
    report = {"part": flags.part, "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()} | measure(flags)
    print("\n".join(lines(report)))
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs a part. Each is imported only when asked for: they load different things, slowly."""
    part, shape = flags.part, flags.shape
    if part in UNSHAPED:
        if shape is not None:
            raise UserError(f"part {part} has no --shape")
        return import_module(f"benchmarks.{part}").run()
    if shape is None:
        raise UserError(f"part {part} needs --shape NAME, such as small")
    if part in SHAPED:
        module = import_module(f"benchmarks.{'phases' if part == 'growth' else part}")
        return (module.growth if part == "growth" else module.run)(shape)
    return import_module("benchmarks.phases").run(part, shape)


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def lines(report: Any, indent: str = "") -> Iterator[str]:
    """A nested report, one figure a line."""
    for name, value in report.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        else:
            yield (
                f"{indent}{name:<{max(1, 34 - len(indent))}} {value:.4g}"
                if isinstance(value, float)
                else (f"{indent}{name:<{max(1, 34 - len(indent))}} {value}")
            )


if __name__ == "__main__":
    run_main(main)
