"""Tables and figures of an ablation, from its results.json alone. Pure but for the two that draw.

Intervals are Student's over seeds (a seed is one run: its data, warm-up, cold start and RL). Tests between arms are
paired: both arms of a pair began at the same cold start and saw the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jvr1.errors import UserError

from .collect import MAIN
from .stages import NO_SHORTCUT, SFT

Run = Mapping[str, Any]
Value = Callable[[Run], float]
BASE = "grpo"


def ordered(task: str) -> Value:
    return lambda run: 100 * run["accuracy"][task]["ordered"]


def shuffled(task: str) -> Value:
    return lambda run: 100 * run["accuracy"][task]["shuffled"]


def gap(task: str) -> Value:
    return lambda run: ordered(task)(run) - shuffled(task)(run)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float, float]:
    """Of values by seed: mean of the differences, half its 95% interval, and the p of a paired t test (not corrected
    for their number); p is 1 where all are equal. Raises UserError when the seeds are not the same."""
    if first.keys() != second.keys():
        raise UserError(f"seeds {sorted(first)} cannot be paired with {sorted(second)}")
    differences = [first[seed] - second[seed] for seed in first]
    mean, half = interval(differences)
    if len(differences) < 2:
        return mean, half, float("nan")
    p = 1.0 if not any(differences) else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return mean, half, p


def select(runs: Sequence[Run], shortcut: str, arm: str) -> list[Run]:
    found = [run for run in runs if run["shortcut"] == shortcut and run["arm"] == arm]
    return sorted(found, key=lambda run: run["seed"])


def by_seed(runs: Sequence[Run], value: Value) -> dict[int, float]:
    return {run["seed"]: value(run) for run in runs}


def names(runs: Sequence[Run], key: str) -> list[str]:
    """In the order they first come."""
    return list(dict.fromkeys(run[key] for run in runs))


def main_table(results: Mapping[str, Any]) -> str:
    """The main task by arm: accuracy on ordered and on shuffled frames and their gap, and what the first and the last
    are above plain GRPO's of the same seed."""
    runs = results["runs"]
    lines = [
        ["training clips", "arm", "seeds", "ordered", "shuffled", "gap", "ordered − GRPO's", "p", "gap − GRPO's", "p"]
    ]
    for shortcut in names(runs, "shortcut"):
        base = select(runs, shortcut, BASE)
        for arm in names(runs, "arm"):
            own = select(runs, shortcut, arm)
            values = (ordered(MAIN), shuffled(MAIN), gap(MAIN))
            cells = [with_interval(*interval([value(run) for run in own])) for value in values]
            for value in (ordered(MAIN), gap(MAIN)):
                if arm in (SFT, BASE):
                    cells += ["", ""]
                    continue
                mean, half, p = paired(by_seed(own, value), by_seed(base, value))
                cells += [with_interval(mean, half, sign=True), probability(p)]
            lines.append([clips(shortcut), arm, str(len(own)), *cells])
    return table(lines, text=2)


def task_table(results: Mapping[str, Any]) -> str:
    """Every temporal task by arm, ordered / shuffled: means over seeds, beside the time-blind ceiling."""
    runs, arms = results["runs"], names(results["runs"], "arm")
    lines = [["training clips", "task", "questions", "ceiling", *arms]]
    for shortcut in names(runs, "shortcut"):
        for task, about in results["tasks"].items():
            own = [select(runs, shortcut, arm) for arm in arms]
            means = [[np.mean([value(task)(run) for run in of]) for value in (ordered, shuffled)] for of in own]
            count = str(own[0][0]["accuracy"][task]["questions"])
            cells = [f"{first:.1f} / {second:.1f}" for first, second in means]
            lines.append([clips(shortcut), task, count, f"{100 * about['ceiling']:.1f}", *cells])
    return table(lines, text=2)


def advantage_table(results: Mapping[str, Any]) -> str:
    """What the advantages of the temporal questions were made of, in % of the groups (`collect.advantage_statistics`):
    means over seeds, but for the largest difference. The last two are of the published bonus alone."""
    runs = [run for run in results["runs"] if run["arm"] != SFT]
    shares = ("silent", "mixed", "signalled", "cancelling", "changed", "share_of_size")
    head = [
        "silent",
        "mixed",
        "signal",
        "cancels",
        "changed",
        "of the size",
        "changed where it cancels",
        "largest there",
    ]
    lines = [["training clips", "arm", "groups", *head]]
    for shortcut in names(runs, "shortcut"):
        for arm in names(runs, "arm"):
            own = [run["advantages"] for run in select(runs, shortcut, arm)]
            cells = [f"{100 * np.mean([one[key] for one in own]):.1f}" for key in shares]
            last = ["", ""]
            if select(runs, shortcut, arm)[0]["signal"]["temporal_reward"] > 0:
                changed = np.mean([one["changed_where_cancels"] for one in own])
                last = [f"{100 * changed:.1f}", f"{max(one['largest_where_cancels'] for one in own):.1e}"]
            lines.append([clips(shortcut), arm, str(sum(one["groups"] for one in own)), *cells, *last])
    return table(lines, text=2)


def cost_table(results: Mapping[str, Any]) -> str:
    """Median seconds of a step, by phase: the middle one of the seeds."""
    runs = [run for run in results["runs"] if run["arm"] != SFT]
    phases = ("generate", "reward", "update", "step")
    lines = [["arm", *phases]]
    for arm in names(runs, "arm"):
        own = [run["seconds_per_step"] for run in runs if run["arm"] == arm]
        lines.append([arm, *(f"{np.median([one[phase] for one in own]):.2f}" for phase in phases)])
    return table(lines, text=1)


TABLES = {"main": main_table, "tasks": task_table, "advantages": advantage_table, "cost": cost_table}


def written(page: str, results: Mapping[str, Any]) -> str:
    """The page with what stands between `<!-- NAME -->` and `<!-- end -->` replaced by that table of the results.

    Raises UserError where the page lacks a table's place.
    """
    for name, make in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (mark and end):
            raise UserError(f"the page has no '<!-- {name} -->' with '<!-- end -->' after it")
        page = f"{before}{mark}{make(results)}\n{end}{after}"
    return page


def clips(shortcut: str) -> str:
    return "no shortcut" if shortcut == NO_SHORTCUT else f"border right in {float(shortcut):.0%}"


def with_interval(mean: float, half: float, *, sign: bool = False) -> str:
    shown = f"{mean:{'+' if sign else ''}.1f}"
    return shown if np.isnan(half) else f"{shown} ± {half:.1f}"


def probability(p: float) -> str:
    return "" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def table(lines: Sequence[Sequence[str]], text: int) -> str:
    """Markdown; the first `text` columns are words, the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(lines[0]) - text)
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_curves(results: Mapping[str, Any], path: Path) -> None:
    """Validation accuracy of the main task by step: mean over seeds, for ordered frames with its 95% interval."""
    runs = [run for run in results["runs"] if run["arm"] != SFT]
    figure, axes = _panels(names(runs, "shortcut"))
    for ax, shortcut in zip(axes, names(runs, "shortcut"), strict=True):
        for number, arm in enumerate(names(runs, "arm")):
            for variant, style in (("ordered", "-"), ("shuffled", ":")):
                points = [run["curve"][variant] for run in select(runs, shortcut, arm)]
                steps = [step for step, _ in points[0]]
                values = 100 * np.array([[value for _, value in curve] for curve in points])
                label = arm if variant == "ordered" else None
                ax.plot(steps, values.mean(axis=0), style, color=f"C{number}", label=label)
                if variant == "ordered" and len(values) > 1:
                    mean, half = np.array([interval(column) for column in values.T]).T
                    ax.fill_between(steps, mean - half, mean + half, color=f"C{number}", alpha=0.12, linewidth=0)
        ax.set(title=clips(shortcut), xlabel="optimizer step", ylim=(0, 100))
    axes[0].set_ylabel(f"validation accuracy on '{MAIN}', %")
    axes[0].legend(frameon=False, title="ordered; dotted: shuffled")
    figure.savefig(path, dpi=110)


def draw_reliance(results: Mapping[str, Any], path: Path) -> None:
    """Each run: accuracy on ordered frames against the gap to shuffled ones, on the main task of the test."""
    runs = results["runs"]
    figure, axes = _panels(names(runs, "shortcut"))
    for ax, shortcut in zip(axes, names(runs, "shortcut"), strict=True):
        for arm in names(runs, "arm"):
            own = select(runs, shortcut, arm)
            colour = "grey" if arm == SFT else f"C{names(runs, 'arm').index(arm) - 1}"
            ax.plot(
                [ordered(MAIN)(r) for r in own], [gap(MAIN)(r) for r in own], "o", color=colour, label=arm, alpha=0.8
            )
        ax.set(title=clips(shortcut), xlabel=f"'{MAIN}' on ordered frames, %")
    axes[0].set_ylabel("ordered − shuffled, points")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def _panels(shortcuts: Sequence[str]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(shortcuts), figsize=(4.6 * len(shortcuts), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    return figure, axes[0]
