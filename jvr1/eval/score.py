"""From answers to numbers with intervals. Pure. docs/evaluation.md has the formulas."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jvr1.eval.breakdown import Breakdown
from jvr1.problems.kinds import KINDS, Metric, kind_of
from jvr1.questions.replies import SCORED_MODES, Question, Reply, grouped, task_of
from jvr1.rl.rewards import measured

RESAMPLES = 10_000
Z = 1.959963984540054  # of a 95% interval


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(successes: float | int, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927)."""
    p, z = successes / n, Z * Z / n
    centre, half = (p + z / 2) / (1 + z), Z * math.sqrt(p * (1 - p) / n + z / (4 * n)) / (1 + z)
    return centre - half if successes else 0.0, centre + half if successes < n else 1.0  # exact at the ends


def resampled_means(values: Sequence[float], rng: np.random.Generator) -> Float[np.ndarray, " R"]:
    """Means of RESAMPLES bootstrap samples: of n drawn values only how often each distinct one comes matters."""
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
    return drawn @ distinct / len(values)


def percentiles(means: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def measure(values: Sequence[float], samples: int = 1) -> dict[str, Any]:
    """Mean of a value a question with its 95% interval: Wilson where each is one verdict of 0 or 1, else the
    percentiles of a bootstrap over questions, so that several samples of a question count as one cluster."""
    n = len(values)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0, "interval": None}
    mean = math.fsum(values) / n
    if samples == 1 and all(v in (0.0, 1.0) for v in values):
        (low, high), name = wilson(sum(values), n), "wilson"
    else:
        (low, high), name = percentiles(resampled_means(values, np.random.default_rng(0))), "bootstrap"
    return {"value": mean, "low": low, "high": high, "n": n, "interval": name}


def paired_gap(ordered: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Mean of (ordered - other) over the same questions; 95% by a paired bootstrap over questions."""
    differences = [round(a - b, 9) for a, b in zip(ordered, other, strict=True)]
    if not differences:
        return {"value": None, "low": None, "high": None, "n": 0, "interval": None}
    low, high = percentiles(resampled_means(differences, np.random.default_rng(0)))
    mean = math.fsum(differences) / len(differences)
    return {"value": mean, "low": low, "high": high, "n": len(differences), "interval": "paired bootstrap"}


def mean_over(tasks: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Mean over tasks, each weighing the same, of the mean over a task's levels of their means; 95% by a bootstrap
    within each level."""
    rng = np.random.default_rng(0)
    means = [np.mean([resampled_means(level, rng) for level in levels], axis=0) for levels in tasks.values()]
    low, high = percentiles(np.mean(means, axis=0))
    each = [math.fsum(math.fsum(v) / len(v) for v in levels) / len(levels) for levels in tasks.values()]
    n = sum(len(level) for levels in tasks.values() for level in levels)
    interval = "bootstrap within tasks"
    return {"value": math.fsum(each) / len(each), "low": low, "high": high, "n": n, "interval": interval}


# --- questions --------------------------------------------------------------------------------------------------------


def replies(question: Question, variant: str) -> list[Reply]:
    return [r for r in question.replies if r.variant == variant]


def value(question: Question, variant: str, mode: str) -> float:
    """Mean accuracy over a question's samples: avg@k."""
    found = [r.accuracy[mode] for r in replies(question, variant)]
    return math.fsum(found) / len(found)


def majority(found: Sequence[Reply]) -> Reply:
    """The first reply that gave the most frequent answer. An answer is counted by its text without case and outer
    blanks; replies without one do not vote unless none has one. Ties: what came first."""
    votes = [(r.answer or "").strip().casefold() for r in found]
    counts = Counter(vote for vote in votes if vote) or Counter(votes)
    best = max(counts.values())
    return next(r for r, vote in zip(found, votes, strict=True) if counts[vote] == best)


def summarise_group(questions: Sequence[Question], variants: Sequence[str], samples: int) -> dict[str, Any]:
    """All numbers of a group of questions; those that failed are counted and left out of the rest."""
    answered = [q for q in questions if q.error is None]
    first = [r for q in answered for r in replies(q, "ordered")]
    out: dict[str, Any] = {
        "questions": len(questions),
        "answered": len(answered),
        "accuracy": {mode: measure([value(q, "ordered", mode) for q in answered], samples) for mode in SCORED_MODES},
        "format": _mean([r.format for r in first]),
        "ended": _mean([r.ended for r in first]),
        "tokens": _mean([r.length for r in first]),
        "longest": max((r.length for r in first), default=0),
    }
    if samples > 1:
        votes = [majority(replies(q, "ordered")) for q in answered]
        out["majority"] = {mode: measure([v.accuracy[mode] for v in votes]) for mode in SCORED_MODES}
    others = {variant: _against(answered, variant, samples) for variant in variants if variant != "ordered"}
    if others and any(o["n"] for o in others.values()):
        out["variants"] = others
    return out


def _against(answered: Sequence[Question], variant: str, samples: int) -> dict[str, Any]:
    """A variant's accuracy on the videos, that of the ordered frames on the same ones, and the gap."""
    both = [q for q in answered if replies(q, variant)]
    out: dict[str, Any] = {"n": len(both), "accuracy": {}, "ordered": {}, "gap": {}}
    for mode in SCORED_MODES:
        a, b = ([value(q, v, mode) for q in both] for v in ("ordered", variant))
        out["ordered"][mode], out["accuracy"][mode] = measure(a, samples), measure(b, samples)
        out["gap"][mode] = paired_gap(a, b)
    return out


def benchmark_summary(
    questions: Sequence[Question],
    variants: Sequence[str],
    samples: int,
    *,
    over_tasks: bool,
    breakdown: Breakdown | None = None,
) -> dict[str, Any]:
    """A benchmark's numbers: all together, by task, by problem type and by the groups of its own `breakdown`, where a
    record says any. over_tasks: the mean over tasks as well."""
    out = summarise_group(questions, variants, samples)
    tasks, types = grouped(questions, lambda q: task_of(q.record)), grouped(questions, lambda q: q.record.problem_type)
    out["tasks"] = {name: summarise_group(group, variants, samples) for name, group in tasks.items()}
    out["problem_types"] = {name: summarise_group(group, variants, samples) for name, group in types.items()}
    answered = [q for q in questions if q.error is None]
    out |= of_kinds(answered, samples)
    named = grouped([q for q in answered if q.record.task], lambda q: q.record.task)
    if over_tasks and named:
        out["mean_over_tasks"] = {mode: mean_over(_levels(named, mode)) for mode in SCORED_MODES}
    if breakdown and (parts := broken_down(questions, breakdown)):
        groups = {name: summarise_group(group, variants, samples) for name, group in parts.items()}
        out["breakdown"] = {"by": breakdown.by, "groups": groups}
    return out


def of_kinds(answered: Sequence[Question], samples: int) -> dict[str, Any]:
    """The metrics of the kinds there are, and the accuracy without one that stands apart."""
    out: dict[str, Any] = {}
    for name in (name for name in KINDS if any(q.record.problem_type == name for q in answered)):
        kind, own = KINDS[name], [q for q in answered if q.record.problem_type == name]
        for metric in kind.metrics:
            values = {mode: [metric_value(q, metric, mode) for q in own] for mode in SCORED_MODES}
            out[metric_key(name, metric)] = {mode: measure(values[mode], samples) for mode in SCORED_MODES}
        if kind.apart:
            rest = [q for q in answered if q.record.problem_type != name]
            out[apart_key(name)] = {
                mode: measure([value(q, "ordered", mode) for q in rest], samples) for mode in SCORED_MODES
            }
    return out


def metric_key(kind: str, metric: Metric) -> str:
    return metric.key or f"{kind}: {metric.name}"


def apart_key(kind: str) -> str:
    return f"accuracy_without_{kind}"


def metric_value(question: Question, metric: Metric, mode: str) -> float:
    """Mean over a question's samples."""
    if metric.of is None:
        return value(question, "ordered", mode)
    record = question.record
    given = kind_of(record.problem_type).given(record.options, record.further)
    found = [measured(metric.of, r.completion, record.solution, mode, given) for r in replies(question, "ordered")]
    return math.fsum(found) / len(found)


NO_GROUP = "not said"


def broken_down(questions: Sequence[Question], breakdown: Breakdown) -> dict[str, list[Question]]:
    """By group, in the benchmark's order, then those of which nothing says it; none where nothing says any."""
    found: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        said = breakdown.group(question.record)
        for name in (said,) if isinstance(said, str) else said or ("",):
            found[name].append(question)
    parts = {name: found[name] for name in breakdown.groups if name in found}
    return parts | ({NO_GROUP: found[""]} if parts and "" in found else {})


LEVELS = ("_easy", "_medium", "_hard")


def _levels(named: Mapping[str, Sequence[Question]], mode: str) -> dict[str, list[list[float]]]:
    """Values by task and level: VSI-Bench counts three levels of object_rel_direction as one task."""
    tasks: dict[str, list[list[float]]] = defaultdict(list)
    for name, group in named.items():
        suffix = next((level for level in LEVELS if name.endswith(level)), "")
        tasks[name.removesuffix(suffix)].append([value(q, "ordered", mode) for q in group])
    return tasks


def _mean(values: Sequence[float | int]) -> float | None:
    return math.fsum(values) / len(values) if values else None
