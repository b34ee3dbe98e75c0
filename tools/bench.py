"""Measures a part of jvr1 on this machine: python tools/bench.py PART [--shape NAME] [--json FILE]

PART: data (tools/bench_data.py), step (tools/bench_step.py) or decode (tools/bench_decode.py); --shape names the sizes
of the latter two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jvr1.errors import UserError, run_main


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("data", "step", "decode"), help="what is measured")
    parser.add_argument("--shape", help="the size of the model and its input, for parts step and decode")
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
    if flags.part in ("step", "decode"):
        if flags.shape is None:
            raise UserError(f"part {flags.part} needs --shape NAME; tools/bench_{flags.part}.py lists the names")
        if flags.part == "step":
            from bench_step import run
        else:
            from bench_decode import run
        return run(flags.shape)
    if flags.shape is not None:
        raise UserError("--shape is for parts step and decode; part data has none")
    from bench_data import run as run_data

    return run_data()


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
