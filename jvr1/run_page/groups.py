"""Groups of completions of a run, from its rollout files: which are shown, and how. Pure but for reading the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jvr1.data.records import Record
from jvr1.questions.asking import VARIANTS
from jvr1.run_page.reading import RunFiles, lines_of

STEPS_SHOWN, GROUPS_SHOWN = 8, 3

Thumbnails = Callable[[Record], Sequence[str]]
"""A record -> its frames as addresses of pictures; none where they cannot be read."""


def shown_steps(steps: Sequence[int], most: int = STEPS_SHOWN) -> list[int]:
    """Evenly spread, the first and the last among them."""
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [steps[i] for i in dict.fromkeys(places.tolist())]


def groups_of(run: RunFiles, look: Thumbnails) -> Iterator[dict[str, Any]]:
    """Of some steps the groups whose rewards differ most: what they teach. The newest step first."""
    for step in reversed(shown_steps(list(run.rollouts))):
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for path in run.rollouts[step]:
            for row in lines_of(path):
                groups.setdefault((row["microbatch"], row["row"]), []).append(row)
        ranked = sorted(groups.values(), key=lambda rows: -reward_spread(rows))
        if ranked:
            shown = [shown_group(rows, look) for rows in ranked[:GROUPS_SHOWN]]
            yield {"step": step, "groups": shown, "of": len(ranked)}


def reward_spread(rows: Sequence[dict[str, Any]]) -> float:
    """Of the rewards of a group's ordered completions."""
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    return float(np.std(rewards)) if rewards else 0.0


def shown_group(rows: Sequence[dict[str, Any]], look: Thumbnails) -> dict[str, Any]:
    """A question with its completions, ordered ones first, the best first."""
    first = rows[0]
    ranked = sorted(rows, key=lambda r: (r["frames"] != VARIANTS[0], -(r["reward"] or 0.0), -(r["accuracy"] or 0.0)))
    largest = max((abs(row["advantage"]) for row in rows if row["advantage"] is not None), default=0.0) or 1.0
    return {
        "problem": first.get("problem", ""),
        "options": first.get("options") or (),
        "gold": first["solution"].replace("<answer>", "").replace("</answer>", "").strip(),
        "source": first["data_source"],
        "type": first["problem_type"],
        "signal": first["temporal_signal"],
        "pictures": look(rollout_record(first)) if first.get("path") else (),
        "completions": [completion_of(row, largest) for row in ranked],
    }


def completion_of(row: dict[str, Any], largest: float) -> dict[str, Any]:
    """As the page shows it; bar: the advantage as a share of the group's largest."""
    advantage = row["advantage"]
    right = row["accuracy"]
    return {
        "frames": row["frames"],
        "reward": row["reward"],
        "advantage": advantage,
        "bar": 0.0 if advantage is None else advantage / largest,
        "verdict": "right" if right == 1 else "wrong" if right == 0 else "partly",
        "accuracy": right,
        "format": row["format"],
        "own": row.get("rewards") or {},
        "tokens": row["tokens"],
        "ended": row["ended"],
        "answer": row["answer"],
        "text": row["completion"],
    }


def rollout_record(row: dict[str, Any]) -> Record:
    """The question of a rollout's row, as far as its media need it."""
    path = row["path"]
    return Record(
        problem_id=row["problem_id"],
        problem=row["problem"],
        data_type=row["data_type"],
        problem_type=row["problem_type"],
        options=tuple(row.get("options") or ()),
        solution=row["solution"],
        process=None,
        path=tuple(path) if isinstance(path, list) else path,
        data_source=row["data_source"],
        start=row.get("start"),
        end=row.get("end"),
    )
