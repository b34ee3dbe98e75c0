"""Runs of the mains on small demo data, as a user starts them: in processes of their own, on one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from forks import Fork
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jvr1.demo.dataset import Settings, write_dataset
from jvr1.demo.tiny_model import write_tiny_model

REPOSITORY = Path(__file__).parents[1]
TINY = f"--config={REPOSITORY / 'configs' / 'tiny.py'}:rl"
ALL = "--variants=ordered,shuffled,reversed,single"
AS_A_USER = ("env",)
"""Before a command that starts a Python of its own, as one of each main does."""
STEPS = 50
SETTINGS = {
    "train.steps": STEPS, "train.save_every": 7, "train.validate_every": 0, "train.pictures_every": 20,
    "train.stop_metric": "", "batch.micro": 3, "batch.per_step": 2, "optimizer.warmup_steps": 5,
}  # fmt: skip
OF_STAGE = {
    "sft": {},
    "rl": {
        "data.buckets": (("video", 4, 1, 66, 6), ("image", 1, 1, 54, 6)), "rl.group": 3, "rl.shuffled": 2,
        "reward.user": "own_reward:vowels", "optimizer.learning_rate": 1e-3, "train.validate_every": 25,
    },
    "bestofn": {
        "data.buckets": (("video", 4, 1, 66, 6),), "data.modality.image": 0.0, "rl.group": 8,
        "reward.user": "own_reward:vowels", "optimizer.learning_rate": 1e-3,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """A small data set with its tiny model, and the compiled programs that runs on it share."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "tiny_model"

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(str(p) for p in (REPOSITORY, REPOSITORY / "tests" / "train"))
        return os.environ | {"PYTHONPATH": path}

    def arguments(self, stage: str, workdir: Path, **changes: object) -> list[str]:
        """A command line of a main; `changes` name settings with __ for the dot."""
        places = {"data.root": self.root, "data.index": self.root / "index", "model.source": self.model}
        settings = places | SETTINGS | OF_STAGE[stage] | {k.replace("__", "."): v for k, v in changes.items()}
        config = REPOSITORY / "configs" / f"tiny.py:{stage}"
        return [f"--config={config}", *(f"--config.{k}={v}" for k, v in settings.items()), f"--workdir={workdir}"]

    def start(self, program: list[str], arguments: list[str], largest_file: int | None = None) -> Fork:
        """largest_file: KB above which the kernel refuses to write, as it does on a full disk."""
        return piped([*program, *arguments], self.environment, largest_file=largest_file)

    def main(self, stage: str, workdir: Path, largest_file: int | None = None, **changes: object) -> Fork:
        return self.start([f"-mjvr1.train_{stage}"], self.arguments(stage, workdir, **changes), largest_file)

    def together(
        self, stage: str, workdir: Path, count: int, devices: int, before: Sequence[str] = (), **changes: object
    ) -> list[subprocess.Popen]:
        """`count` processes of one run, each with simulated devices; `before` stands in front of each command."""
        environment = self.environment | {"JAX_NUM_CPU_DEVICES": str(devices), "JVR1_EXIT_ON_PREEMPTION": "75"}
        where = f"localhost:{free_port()}"
        command = [f"-mjvr1.train_{stage}", *self.arguments(stage, workdir, **changes)]
        return [
            piped([*command, *(peers if count > 1 else [])], environment, before)
            for peers in ([f"--coordinator={where}", f"--processes={count}", f"--process={i}"] for i in range(count))
        ]

    def finished(self, stage: str) -> Finished:
        """A run that nothing disturbed."""
        workdir, log = self.root / "runs" / stage, self.root / f"{stage}.compiled.json"
        program = [str(REPOSITORY / "tests" / "train" / "driver.py"), str(log), stage]
        out = self._once(f"{stage}.out", lambda: self.done(program, self.arguments(stage, workdir), AS_A_USER))
        return Finished(workdir, out, json.loads(log.read_text()))

    def exported(self) -> Path:
        """A trained model, whose answers differ from question to question, as an HF folder."""
        out = self.root / "exported"
        arguments = [str(self.finished("sft").workdir), str(out), "--dtype=float32"]
        self._once("exported.out", lambda: self.done(["-mjvr1", "export"], arguments))
        return out

    def evaluated(self) -> Path:
        """An evaluation of it in all variants, two questions at a time."""
        out = self.root / "evaluated"
        asked = [f"--model={self.exported()}", "--suite=valid.json", f"--data={self.root}", f"--out={out}"]
        arguments = [*asked, TINY, ALL, "--batch=2", "--workers=0"]
        self._once("evaluated.out", lambda: self.done(["-mjvr1.evaluate"], arguments, AS_A_USER))
        return out

    def _once(self, name: str, make: Callable[[], str]) -> str:
        """What `make` said, made by the worker that first asks for it."""
        said = self.root / name
        with FileLock(f"{said}.lock"):
            if not said.exists():
                said.write_text(make())
            return said.read_text()

    def done(self, program: list[str], arguments: list[str], before: Sequence[str] = ()) -> str:
        """What a program that must end well wrote to stdout."""
        process = piped([*program, *arguments], self.environment, before)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        return stdout


@dataclass(frozen=True)
class Finished:
    """compiled: (step, program -> how often XLA was asked to compile it until then) as steps were logged."""

    workdir: Path
    out: str
    compiled: list[tuple[int, dict[str, int]]]


def piped(
    command: Sequence[object], environment: Mapping[str, str], before: Sequence[str] = (), **how: Any
) -> subprocess.Popen:
    """A Python program, its outputs as text in pipes; with something in front of it a Python of its own."""
    whole = [*before, sys.executable, *map(str, command)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    return (subprocess.Popen if before else Fork)(whole, env=environment, **pipes, **how)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def make_demo(root: Path) -> Demo:
    write_dataset(root, Settings(train=32, valid=32, test=32, seed=1))
    write_tiny_model(root / "tiny_model", seed=1)
    return Demo(root)


def scalars(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, float32 value), as TensorBoard shows them."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def without_times(values: dict[str, list]) -> dict[str, list]:
    """What a second run must repeat to the bit."""
    return {k: v for k, v in values.items() if not k.startswith(("seconds/", "flops_", "tokens_per_second"))}
