"""What is to be run, in which order, and what is done already. Every stage is one of the project's own commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jvr1.errors import UserError

ENVIRONMENT = os.environ | {"JVR1_EXIT_ON_PREEMPTION": "75"}
"""A run that was stopped is no run that ended."""
ROOT = Path(__file__).parents[2]
SFT = "sft"
NO_SHORTCUT = "none"
SIZES = ("--train", "2048", "--valid", "256", "--test", "32", "--temporal", "400")


@dataclass(frozen=True)
class Cell:
    """One seed on one kind of training data: the folder of its data and of all that was trained on them."""

    out: Path
    shortcut: str
    seed: int

    @property
    def folder(self) -> Path:
        return self.out / f"shortcut-{self.shortcut}" / f"seed-{self.seed}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def index(self) -> Path:
        return self.folder / "index"

    def workdir(self, arm: str) -> Path:
        return self.folder / arm

    def evaluation(self, arm: str) -> Path:
        return self.folder / "eval" / arm


@dataclass(frozen=True)
class Stage:
    """A command, and the file that tells that it was run to its end."""

    name: str
    command: tuple[str, ...]
    log: Path

    @property
    def done(self) -> bool:
        return self.log.exists()


def stages(cell: Cell, arms: Sequence[str]) -> Iterator[Stage]:
    """Data, cold start and arms of a cell. The warm-up is of text alone: that of the same seed without a shortcut."""
    warm = Cell(cell.out, NO_SHORTCUT, cell.seed)
    yield data(warm)
    yield train(warm, "warmup", "train_sft", "tiny.py:warmup", warm.data / "tiny_model")
    if cell != warm:
        yield data(cell)
    yield train(cell, SFT, "train_sft", "tiny.py:sft", warm.workdir("warmup"))
    yield evaluate(cell, SFT)
    for arm in arms:
        yield train(cell, arm, "train_rl", f"ablation.py:{arm}", cell.workdir(SFT))
        yield evaluate(cell, arm)


def data(cell: Cell) -> Stage:
    cue = () if cell.shortcut == NO_SHORTCUT else ("--shortcut", cell.shortcut)
    return _stage(cell, "data", "tools/make_demo_data.py", cell.data, *SIZES, "--seed", cell.seed, *cue)


def train(cell: Cell, name: str, main: str, config: str, source: Path) -> Stage:
    return _stage(
        cell, name, "-m", f"jvr1.{main}", "--config", f"configs/{config}", f"--config.seed={cell.seed}",
        f"--config.data.root={cell.data}", f"--config.data.index={cell.index}",
        f"--config.model.source={source}", "--workdir", cell.workdir(name),
    )  # fmt: skip


def evaluate(cell: Cell, name: str) -> Stage:
    return _stage(
        cell, f"eval-{name}", "-m", "jvr1.evaluate", "--model", cell.workdir(name), "--suite", "temporal.json",
        "--data", cell.data, "--out", cell.evaluation(name), "--config", "configs/tiny.py:rl", "--index", cell.index,
        "--variants", "ordered,shuffled", "--frames-in-report", "0",
    )  # fmt: skip


def _stage(cell: Cell, name: str, *command: object) -> Stage:
    log = cell.folder / "logs" / f"{name}.log"
    return Stage(f"{cell.shortcut}/{cell.seed}/{name}", tuple(map(str, command)), log)


def run(stage: Stage) -> None:
    """Runs a stage that is not done; its log gets its name only at the end. Raises UserError with the log's tail."""
    if stage.done:
        return
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    unfinished, begun = stage.log.with_suffix(".unfinished"), time.monotonic()
    with unfinished.open("a") as log:
        code = subprocess.run(
            [sys.executable, *stage.command], cwd=ROOT, stdout=log, stderr=log, check=False
        ).returncode
    if code:
        tail = unfinished.read_text().splitlines()[-1:]
        raise UserError(f"{stage.name} ended with {code}: {' '.join(tail)}; all it printed: {unfinished}")
    unfinished.rename(stage.log)
    print(f"{stage.name}: {time.monotonic() - begun:.0f} s", flush=True)
