"""What a run has left in its workdir so far; it may be written at this moment: what is not whole is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jvr1.errors import UserError

Values = dict[str, list[tuple[float | int, float | int]]]
"""Metric -> (step, value), in order."""


@dataclass(frozen=True)
class RunFiles:
    """config: the settings, {section: {name: value}}. validations: step -> lines of its file. rollouts: step -> paths
    of its files, one a process."""

    workdir: epath.Path
    config: dict[str, Any]
    values: Values
    validations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    rollouts: dict[int, list[epath.Path]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The last that was logged."""
        return int(max((points[-1][0] for points in self.values.values() if points), default=0))


def read_run(workdir: epath.PathLike) -> RunFiles:
    """Raises UserError where there is no run."""
    folder = epath.Path(workdir)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} holds no run: it has no config.json; name the --workdir of one") from None
    if not isinstance(config, dict) or "train" not in config:
        raise UserError(f"{folder} is no workdir of a training run; name the --workdir of one")
    return RunFiles(folder, config, read_values(folder), read_validations(folder), rollout_files(folder))


def read_values(workdir: epath.Path) -> Values:
    """All numbers of WORKDIR/tensorboard; what a resumed run wrote again replaces what was there."""
    if not (workdir / "tensorboard").is_dir():
        return {}
    sizes = {"scalars": 0, "tensors": 1, "images": 1, "histograms": 1}  # 0: all
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance=sizes)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_validations(workdir: epath.Path) -> dict[int, list[dict[str, Any]]]:
    found = numbered(workdir / "validation", r"step-(\d+)\.jsonl")
    return {step: list(lines_of(paths[0])) for step, paths in found.items()}


def rollout_files(workdir: epath.Path) -> dict[int, list[epath.Path]]:
    return numbered(workdir / "rollouts", r"step-(\d+)\.process-\d+\.jsonl")


def numbered(folder: epath.Path, pattern: str) -> dict[int, list[epath.Path]]:
    """Step -> files of a folder whose names have the pattern, in order."""
    found: dict[int, list[epath.Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
        if name := re.fullmatch(pattern, path.name):
            found.setdefault(int(name[1]), []).append(path)
    return dict(sorted(found.items()))


def lines_of(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines."""
    for line in path.read_text(encoding="utf-8").split("\n"):  # splitlines() breaks at U+2028, which JSON may hold
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
