"""A run as a page: curves, validations and what changed between them, groups with their frames. One file."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jvr1.data.cache import is_remote
from jvr1.pages import render_page
from jvr1.pages.curves import LINE_COLOURS, Points, curves
from jvr1.questions.asking import VARIANTS
from jvr1.run_page.groups import Thumbnails, groups_of
from jvr1.run_page.reading import RunFiles, Values

CHANGED_SHOWN = 12
CHARTS: tuple[tuple[str, tuple[str, ...], dict[str, float | int]], ...] = (
    ("Reward", ("reward", "reward/accuracy", "reward/format", "reward/best"), {"least": 0}),
    ("Rewards of your own", ("reward/user/*",), {}),
    ("Validation, ordered frames", ("valid/*/ordered",), {"least": 0, "most": 1}),
    ("Validation, shuffled frames", ("valid/*/shuffled",), {"least": 0, "most": 1}),
    ("Accuracy in training", ("accuracy", "accuracy/*"), {"least": 0, "most": 1}),
    ("Order of frames", ("temporal/ordered", "temporal/shuffled", "temporal/gap"), {}),
    ("Groups", ("all_right", "all_wrong", "zero_variance"), {"least": 0, "most": 1}),
    ("Tokens of completions", ("completion/length", "completion/max"), {"least": 0}),
    ("Loss", ("loss",), {}),
    ("KL", ("loss/kl",), {"least": 0}),
    ("Entropy", ("loss/entropy",), {"least": 0}),
    ("Gradient norm", ("update/gradient_norm",), {"least": 0}),
    ("Sampled against scored", ("loss/logprob_gap", "loss/logprob_gap_max"), {"least": 0}),
    ("Learning rate", ("update/learning_rate",), {"least": 0}),
    ("Seconds a step", ("seconds/step", "seconds/generate", "seconds/reward", "seconds/update", "seconds/data"),
     {"least": 0}),
    ("Tokens a second", ("tokens_per_second",), {"least": 0}),
)  # fmt: skip
"""Title, metrics (with * for any name), what the axis reaches."""
TILES = {
    "reward": "reward", "accuracy": "accuracy", "temporal/gap": "gap to shuffled", "loss": "loss", "loss/kl": "KL",
    "completion/length": "tokens", "update/gradient_norm": "gradient norm", "seconds/step": "seconds a step",
}  # fmt: skip


def run_html(run: RunFiles, changed: Mapping[str, Any], look: Thumbnails, now: float | None = None) -> str:
    """The page. changed: settings that are not as by default, name -> value. now: seconds of the epoch."""
    steps = run.config["train"]["steps"]
    tasks, table = validation_table(run)
    return render_page(
        Path(__file__).parent / "run.html.jinja",
        title=title_of(str(run.workdir)),
        workdir=str(run.workdir),
        source=run.config["model"]["source"],
        step=run.step,
        steps=steps,
        done=run.step >= steps,
        ended_by=ended_by(run),
        made=time.strftime("%d %B %Y, %H:%M", time.localtime(now)),
        tiles=list(tiles(run.values)),
        charts=list(charts(run.values)),
        tasks=tasks,
        table=table,
        changes=validation_changes(run.validations),
        groups=list(groups_of(run, look)),
        settings=changed,
        variants=VARIANTS,
    )


def title_of(workdir: str) -> str:
    """Name of the folder, be it written as `.`."""
    place = workdir if is_remote(workdir) else os.path.abspath(workdir)
    return place.rstrip("/").rpartition("/")[2] or place


def ended_by(run: RunFiles) -> str:
    """The measure that ended the run before its last step, with its value; '' where none has."""
    name, least = run.config["train"].get("stop_metric"), run.config["train"].get("stop_value")
    points = [(step, value) for step, value in run.values.get(f"valid/{name}", ()) if step]
    if not name or not points or points[-1][1] < np.float32(least):  # as a log keeps it
        return ""
    return f"{name} is {shown_number(points[-1][1])}, at least {least}"


def tiles(values: Values) -> Iterator[tuple[str, str]]:
    """(label, value) of the last step."""
    for name, label in TILES.items():
        if points := values.get(name):
            yield label, shown_number(points[-1][1])


def charts(values: Values) -> Iterator[dict[str, Any]]:
    """Those of which there is something to show: title, SVG, the lines' names with their last values,
    and how many more there are than are drawn."""
    for title, patterns, reach in CHARTS:
        found = chosen(values, patterns)
        series = dict(list(found.items())[:LINE_COLOURS])
        if series:
            legend = [(name, shown_number(points[-1][1])) for name, points in series.items()]
            more = len(found) - len(series)
            yield {"title": title, "svg": curves(series, **reach), "legend": legend, "more": more}


def chosen(values: Values, patterns: Sequence[str]) -> dict[str, Points]:
    """Curves by the part of their name that tells them apart."""
    found: dict[str, Points] = {}
    for pattern in patterns:
        before, star, after = pattern.partition("*")
        for name in sorted(values):
            middle = name.removeprefix(before).removesuffix(after)
            if name == pattern or (star and name.startswith(before) and name.endswith(after) and "/" not in middle):
                found.setdefault(middle if star else name.rpartition("/")[2], values[name])
    return found


def shown_number(value: float | int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# --- validations


def validation_table(run: RunFiles) -> tuple[list[str], list[dict[str, Any]]]:
    """Tasks, and of each validation its accuracies, (ordered, shuffled) a task, None where there is none."""
    tasks = sorted(chosen(run.values, ["valid/*/ordered"]))
    by_step: dict[int, dict[tuple[str, str], float]] = {}
    for task in tasks:
        for variant in VARIANTS:
            for step, value in run.values.get(f"valid/{task}/{variant}", ()):
                by_step.setdefault(int(step), {})[task, variant] = value
    rows = [
        {"step": step, "cells": [[found.get((task, variant)) for variant in VARIANTS] for task in tasks]}
        for step, found in sorted(by_step.items())
    ]
    return tasks, rows


def validation_changes(validations: Mapping[int, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was answered better and worse on ordered frames: from each validation to the next as counts, and from the
    first to the last with the questions."""
    steps = list(validations)
    pairs = list(pairwise(steps))
    if len(steps) > 2:
        pairs.append((steps[0], steps[-1]))
    return [turned(validations, *pair, listed=pair == (steps[0], steps[-1])) for pair in pairs]


def by_question(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each question of a validation by what it is, wherever it stands in its file: problem, options and media, and the
    how manieth of such it is."""
    seen: Counter[str] = Counter()
    for one in lines:
        key = json.dumps([one.get(name) for name in ("problem", "options", "path")])
        yield (key, seen[key]), one
        seen[key] += 1


def turned(
    validations: Mapping[int, Sequence[dict[str, Any]]], before: int, after: int, *, listed: bool
) -> dict[str, Any]:
    """Questions whose accuracy rose and fell."""
    then = dict(by_question(validations[before]))
    gained, lost = [], []
    for key, one in by_question(validations[after]):
        was = then.get(key)
        if was is None or VARIANTS[0] not in one["replies"] or VARIANTS[0] not in was["replies"]:
            continue
        old, new = was["replies"][VARIANTS[0]], one["replies"][VARIANTS[0]]
        entry = {**one, "old": old, "new": new}
        if new["accuracy"] > old["accuracy"]:
            gained.append(entry)
        elif new["accuracy"] < old["accuracy"]:
            lost.append(entry)
    every = ((("answered better", "right"), gained), (("answered worse", "wrong"), lost))
    kinds = [{"title": t, "class": c, "count": len(of), "questions": of[:CHANGED_SHOWN]} for (t, c), of in every]
    return {"before": before, "after": after, "listed": listed, "kinds": kinds}
