"""From what the runs wrote to numbers: accuracies, learning curves, times, and what the advantages were made of."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from jvr1.errors import UserError

from .stages import SFT, Cell

STD_EPS = 1e-4  # of the group's normalisation, in both GRPO's and the reference's code
MAIN = "order"


class Group(NamedTuple):
    """The ordered completions of one prompt, and their advantages as they entered the loss."""

    accuracy: np.ndarray
    format: np.ndarray
    advantage: np.ndarray
    signal: float
    is_video: bool


def run_of(cell: Cell, arm: str) -> dict[str, Any]:
    """All numbers of one run."""
    tasks = _read(cell.evaluation(arm) / "report.json")["tasks"]
    accuracy = {task: {key: tasks[task][key] for key in ("questions", "ordered", "shuffled")} for task in sorted(tasks)}
    found: dict[str, Any] = {"shortcut": cell.shortcut, "seed": cell.seed, "arm": arm, "accuracy": accuracy}
    scalars = _scalars(cell.workdir(arm) / "tensorboard")
    found["curve"] = {
        variant: [[step, round(value, 6)] for step, value in scalars.get(f"valid/{MAIN}/{variant}", [])]
        for variant in ("ordered", "shuffled")
    }
    if arm != SFT:
        found["seconds_per_step"] = {
            phase: round(median(value for _, value in scalars[f"seconds/{phase}"]), 3)
            for phase in ("generate", "reward", "update", "step")
        }
        found["advantages"] = advantage_statistics(groups(cell.workdir(arm) / "rollouts"))
    return found


def groups(folder: Path) -> Iterator[Group]:
    """Groups of all steps, from the completions that training keeps."""
    files = sorted(folder.glob("step-*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no completions; was the run ended?")
    for file in files:
        rows: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
        for line in file.read_text().splitlines():
            row = json.loads(line)
            rows[row["microbatch"], row["row"]].append(row)
        for members in rows.values():
            ordered = [row for row in members if row["frames"] == "ordered"]
            columns = [np.array([row[key] for row in ordered], float) for key in ("accuracy", "format", "advantage")]
            yield Group(*columns, ordered[0]["temporal_signal"], len(ordered) < len(members))


def plain_advantage(group: Group) -> np.ndarray:
    """GRPO's advantage of the same completions, without any temporal term: (r - mean) / (std + eps), r = a + f."""
    reward = group.accuracy + group.format
    return (reward - reward.mean()) / (reward.std(ddof=1) + STD_EPS)


def cancels(group: Group) -> bool:
    """Whether a bonus for the correct ones is divided away: a 0/1 accuracy, and one reward on each side."""
    reward = group.accuracy + group.format
    binary = set(group.accuracy) <= {0.0, 1.0}
    return binary and all(len(set(reward[group.accuracy == side])) <= 1 for side in (0.0, 1.0))


def advantage_statistics(of: Iterator[Group]) -> dict[str, Any]:
    """Shares are of all groups of videos. `changed`: the advantages are not GRPO's, by more than the eps does (1e-3).

    largest_where_cancels: the largest |A - A of GRPO| over groups where DESIGN's argument says that none is left.
    share_of_size: mean |A - A of GRPO| over mean |A|.
    """
    total = silent = signalled = mixed = cancelling = changed = 0
    largest, difference, size = 0.0, 0.0, 0.0
    for group in of:
        if not group.is_video:
            continue
        gap = np.abs(group.advantage - plain_advantage(group))
        right = int((group.accuracy > 0.5).sum())
        total += 1
        silent += bool(np.all(group.advantage == 0.0))
        mixed += 0 < right < len(group.accuracy)
        signalled += group.signal > 0.0
        changed += bool(gap.max() > 1e-3)
        difference, size = difference + gap.sum(), size + np.abs(group.advantage).sum()
        if cancels(group) and group.signal > 0.0 and 0 < right < len(group.accuracy):
            cancelling += 1
            largest = max(largest, float(gap.max()))
    return {
        "groups": total,
        "silent": silent / total,
        "mixed": mixed / total,
        "signalled": signalled / total,
        "cancelling": cancelling / total,
        "changed": changed / total,
        "largest_where_cancels": largest,
        "share_of_size": difference / size if size else 0.0,
    }


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run tools/ablation.py first") from None


def collect(cells: Sequence[Cell], arms: Sequence[str]) -> list[dict[str, Any]]:
    return [run_of(cell, arm) for cell in cells for arm in (SFT, *arms)]
