"""From what the runs wrote to numbers: accuracies, learning curves, times, and what the advantages were made of."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from jvr1.demo.dataset import task_table
from jvr1.errors import UserError

from .stages import SFT, Cell

STD_EPS = 1e-4  # of the group's normalisation, in both GRPO's and the reference's code
TELLS = 1e-3
MAIN = "order"
TEMPORAL = frozenset(name for name, task in task_table().items() if task["temporal"])
SWITCHES = ("gate", "factor", "alpha", "temporal_reward", "correct_threshold", "min_distinct_frames")


class Group(NamedTuple):
    """The ordered completions of one prompt, and their advantages as they entered the loss."""

    task: str
    accuracy: np.ndarray
    format: np.ndarray
    advantage: np.ndarray
    signal: float


def run_of(cell: Cell, arm: str) -> dict[str, Any]:
    """All numbers of one run. An SFT run is that of the seed without a shortcut, evaluated on the cell's questions."""
    tasks = _read(cell.evaluation(arm) / "report.json")["tasks"]
    kept = ("questions", "failed", "ordered", "shuffled")
    accuracy = {task: {key: tasks[task][key] for key in kept} for task in sorted(tasks)}
    found: dict[str, Any] = {"shortcut": cell.shortcut, "seed": cell.seed, "arm": arm, "accuracy": accuracy}
    workdir = (cell.plain if arm == SFT else cell).workdir(arm)
    scalars = _scalars(workdir / "tensorboard")
    found["steps"] = len(scalars["seconds/step"])
    found["curve"] = {
        variant: [[step, round(value, 6)] for step, value in scalars.get(f"valid/{MAIN}/{variant}", [])]
        for variant in ("ordered", "shuffled")
    }
    if arm != SFT:
        found["signal"] = {name: _read(workdir / "config.json")["rl"][name] for name in SWITCHES}
        found["seconds_per_step"] = {
            phase: round(median(value for _, value in scalars[f"seconds/{phase}"]), 3)
            for phase in ("generate", "reward", "update", "step")
        }
        found["same"] = drawn(workdir / "rollouts")
        found["advantages"] = advantage_statistics(groups(workdir / "rollouts"), TEMPORAL)
    return found


def drawn(folder: Path) -> dict[str, Any]:
    """What all arms of a cell must have in common: prompts and their order, completions, steps."""
    digest, counts = hashlib.sha256(), {"ordered": 0, "shuffled": 0}
    for step, rows in _steps(folder):
        for row in rows:
            digest.update(f"{step} {row['microbatch']} {row['problem_id']} {row['frames']};".encode())
            counts[row["frames"]] += 1
    return {"prompts": digest.hexdigest()[:12], **counts}


def groups(folder: Path) -> Iterator[Group]:
    """Groups of all steps, from the completions that training keeps. Raises UserError where there are none."""
    for _, kept in _steps(folder):
        rows: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
        for row in kept:
            if row["frames"] == "ordered":
                rows[row["microbatch"], row["row"]].append(row)
        for ordered in rows.values():
            accuracy, form, advantage = (
                np.array([row[key] for row in ordered], float) for key in ("accuracy", "format", "advantage")
            )
            yield Group(ordered[0]["data_source"], accuracy, form, advantage, ordered[0]["temporal_signal"])


def _steps(folder: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    files = {int(file.name.split("-")[1].split(".")[0]): file for file in folder.glob("step-*.process-0.jsonl")}
    if not files:
        raise UserError(f"{folder} holds no completions; was the run ended?")
    for step, file in sorted(files.items()):
        yield step, [json.loads(line) for line in file.read_text().splitlines()]


def plain_advantage(group: Group) -> np.ndarray:
    """GRPO's advantage of the same completions, without any temporal term: (r - mean) / (std + eps), r = a + f."""
    reward = group.accuracy + group.format
    return (reward - reward.mean()) / (reward.std(ddof=1) + STD_EPS)


def cancels(group: Group) -> bool:
    """Whether DESIGN's argument holds: accuracies of 0 and 1, and one reward for all right ones, above that of all
    wrong ones. A bonus for the right ones then changes the distance of two values, which the normalisation undoes."""
    reward, right = group.accuracy + group.format, group.accuracy == 1.0
    if set(group.accuracy) != {0.0, 1.0}:
        return False
    return len(set(reward[right])) == 1 and len(set(reward[~right])) == 1 and reward[right][0] > reward[~right][0]


def advantage_statistics(of: Iterator[Group], tasks: Collection[str]) -> dict[str, Any]:
    """Of the groups of these tasks, as shares of their number:

    silent: no advantage at all. mixed: right and wrong completions. signalled: mixed, and the temporal signal is on.
    cancelling: signalled, and `cancels`. changed: an advantage is not GRPO's, by more than eps can do (1e-3).
    changed_where_cancels: the same among the cancelling ones, and largest_where_cancels the largest difference there.
    share_of_size: mean |A - A of GRPO| over mean |A|.
    """
    total, counts = 0, dict.fromkeys(("silent", "mixed", "signalled", "cancelling", "changed"), 0)
    changed = cancelling = 0
    largest, difference, size = 0.0, 0.0, 0.0
    for group in of:
        if group.task not in tasks:
            continue
        gap = np.abs(group.advantage - plain_advantage(group))
        mixed = 0 < (group.accuracy > 0.5).sum() < len(group.accuracy)
        signalled = mixed and group.signal > 0.0
        total += 1
        counts["silent"] += bool(np.all(group.advantage == 0.0))
        counts["mixed"] += mixed
        counts["signalled"] += signalled
        counts["changed"] += bool(gap.max() > TELLS)
        difference, size = difference + float(gap.sum()), size + float(np.abs(group.advantage).sum())
        if signalled and cancels(group):
            cancelling += 1
            changed += bool(gap.max() > TELLS)
            largest = max(largest, float(gap.max()))
    counts["cancelling"] = cancelling
    return {
        "groups": total,
        **{name: count / max(total, 1) for name, count in counts.items()},
        "changed_where_cancels": changed / max(cancelling, 1),
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
