"""What is to be run, in which order, and what is done already. Every stage is one of the project's own commands."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jvr1.errors import UserError

ENVIRONMENT = {"JAX_PLATFORMS": "cpu"} | os.environ | {"JVR1_EXIT_ON_PREEMPTION": "75"}
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
    def plain(self) -> Cell:
        """The same seed without a shortcut: where its cold start is."""
        return Cell(self.out, NO_SHORTCUT, self.seed)

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
    """A command and its log, which has that name only once the command has ended well."""

    name: str
    command: tuple[str, ...]
    log: Path

    @property
    def header(self) -> str:
        """The first line of the log, but for the commit."""
        return f"# {' '.join(self.command)} # "


def stages(cell: Cell, arms: Sequence[str]) -> Iterator[Stage]:
    """Data, cold start and arms of a cell. The cue is in the clips of RL alone: warm-up and SFT are those of the same
    seed without it (SFT on cued clips learns the cue outright, and leaves RL no order to improve on)."""
    plain = cell.plain
    yield data(plain)
    yield train(plain, "warmup", "train_sft", "tiny.py:warmup", plain.data / "tiny_model")
    yield train(plain, SFT, "train_sft", "tiny.py:sft", plain.workdir("warmup"))
    if cell != plain:
        yield data(cell)
    yield evaluate(cell, SFT, plain.workdir(SFT))
    for arm in arms:
        yield train(cell, arm, "train_rl", f"ablation.py:{arm}", plain.workdir(SFT))
        yield evaluate(cell, arm, cell.workdir(arm))


def data(cell: Cell) -> Stage:
    cue = () if cell.shortcut == NO_SHORTCUT else ("--shortcut", cell.shortcut)
    return _stage(cell, "data", "-m", "jvr1", "demo-data", cell.data, *SIZES, "--seed", cell.seed, *cue)


def train(cell: Cell, name: str, main: str, config: str, source: Path) -> Stage:
    return _stage(
        cell, name, "-m", f"jvr1.{main}", "--config", f"configs/{config}", f"--config.seed={cell.seed}",
        f"--config.data.root={cell.data}", f"--config.data.index={cell.index}",
        f"--config.model.source={source}", "--workdir", cell.workdir(name),
    )  # fmt: skip


def evaluate(cell: Cell, name: str, model: Path) -> Stage:
    return _stage(
        cell, f"eval-{name}", "-m", "jvr1.evaluate", "--model", model, "--suite", "temporal.json",
        "--data", cell.data, "--out", cell.evaluation(name), "--config", "configs/tiny.py:rl", "--index", cell.index,
        "--variants", "ordered,shuffled", "--frames-in-report", "0",
    )  # fmt: skip


def _stage(cell: Cell, name: str, *command: object) -> Stage:
    log = cell.folder / "logs" / f"{name}.log"
    return Stage(f"{cell.shortcut}/{cell.seed}/{name}", tuple(map(str, command)), log)


def commit() -> str:
    """Of this tree. Raises UserError where git does not say."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"git does not say which commit {ROOT} is at; the results name it") from None


def commit_of(stage: Stage) -> str | None:
    """The commit a stage was run at, None when it is still to be run. Raises UserError when it was another command."""
    if not stage.log.exists():
        return None
    first = stage.log.open().readline()
    if not first.startswith(stage.header):
        raise UserError(f"{stage.log} is of another command than {stage.name} now is; remove {stage.log.parents[1]}")
    return first.removeprefix(stage.header).strip()


def run(stage: Stage) -> None:
    """Runs a stage that was not run. Raises UserError with the end of its log, or when it is under way already."""
    if commit_of(stage) is not None:
        return
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    unfinished, begun = stage.log.with_suffix(".unfinished"), time.monotonic()
    with unfinished.open("a") as log:
        try:  # the command inherits the lock: one that outlived its driver still holds it
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{stage.name} is being run already, or still") from None
        log.truncate(0)
        log.write(f"{stage.header}{commit()}\n")
        log.flush()
        command = [sys.executable, *stage.command]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log, check=False)
    if done.returncode:
        tail = unfinished.read_text().splitlines()[-1:]
        raise UserError(f"{stage.name} ended with {done.returncode}: {' '.join(tail)}; all it printed: {unfinished}")
    unfinished.rename(stage.log)
    print(f"{stage.name}: {time.monotonic() - begun:.0f} s", flush=True)
