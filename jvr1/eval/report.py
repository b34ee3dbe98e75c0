"""The numbers of an evaluation as JSON, as tables in Markdown, and as one page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from jvr1.eval.score import apart_key, benchmark_summary, metric_key, summarise_group
from jvr1.eval.suites import CITATION, Suite
from jvr1.problems.kinds import KINDS
from jvr1.questions.asking import Asking
from jvr1.questions.replies import SCORED_MODES, Question, task_of
from jvr1.questions.summary import TaskSummary, summarise

COLUMNS = ("task", "questions", "ordered", "shuffled", "format", "length", "failed")


class AskedSuite(NamedTuple):
    """A suite's questions that could be asked, by their place in its file."""

    suite: Suite
    questions: Mapping[int, Question]


# --- JSON -------------------------------------------------------------------------------------------------------------


def build(
    asked: Sequence[AskedSuite], asking: Asking, settings: Mapping[str, Any], mode: str, paper: int | None
) -> dict:
    """All numbers. mode: of `tasks`; paper: the most frames a video for which the paper's numbers are comparable."""
    everything = [q for one in asked for q in one.questions.values()]
    failed = [row for one in asked for row in failures(one)]
    report: dict[str, Any] = {
        "model": settings["model"],
        "suite": [one.suite.name for one in asked],
        "questions": sum(one.suite.size for one in asked),
        "answered": sum(q.error is None for q in everything),
        "benchmarks": {one.suite.name: _benchmark(one, asking, paper) for one in asked},
        "tasks": {task: s._asdict() for task, s in summarise(everything, mode).items()},
        "failure_causes": dict(Counter(f["cause"] for f in failed).most_common()),
        "failures": failed,
        "settings": dict(settings),
    }
    if len(asking.variants) > 1:
        report["temporal_reliance"] = summarise_group(everything, asking.variants, asking.samples).get("variants", {})
    return report


def _benchmark(one: AskedSuite, asking: Asking, paper: int | None) -> dict[str, Any]:
    of = one.suite.benchmark
    over_tasks = of is not None and of.mean_over_tasks
    breakdown = None if of is None else of.breakdown
    questions = list(one.questions.values())
    out: dict[str, Any] = {"title": one.suite.title, "file": one.suite.file}
    out |= benchmark_summary(questions, asking.variants, asking.samples, over_tasks=over_tasks, breakdown=breakdown)
    out["questions"] = one.suite.size
    if of is not None and paper is not None and paper in of.paper:
        rests_on = of.paper_type or "all questions"
        out["paper"] = {
            "value": round(of.paper[paper] / 100, 4),
            "frames": paper,
            "rests_on": rests_on,
            "source": CITATION,
        }
    return out


def failures(one: AskedSuite) -> list[dict[str, Any]]:
    """What could not be asked and why, in the order of the file; what is no question among it."""
    rows: list[dict[str, Any]] = [
        {"index": f.index, "problem_id": f.problem_id, "cause": "malformed", "error": f"malformed: {f.message}"}
        for f in one.suite.faults
    ] + [
        {"index": index, "problem_id": q.record.problem_id, "cause": q.cause, "error": q.error}
        for index, q in one.questions.items()
        if q.error is not None
    ]
    return [{"benchmark": one.suite.name, **row} for row in sorted(rows, key=lambda row: row["index"])]


def answer_lines(asked: Sequence[AskedSuite]) -> list[dict[str, Any]]:
    """One object a question, in the order of the files; what is no question among them."""
    lines = []
    for one in asked:
        found = {index: _answer_line(one.suite.name, index, q) for index, q in one.questions.items()}
        for fault in one.suite.faults:
            found[fault.index] = {
                "benchmark": one.suite.name, "index": fault.index, "number": None, "problem_id": fault.problem_id,
                "error": f"malformed: {fault.message}", "replies": [],
            }  # fmt: skip
        lines += [found[index] for index in sorted(found)]
    return lines


def _answer_line(benchmark: str, index: int, question: Question) -> dict[str, Any]:
    r = question.record
    return {
        "benchmark": benchmark, "index": index, "number": question.number, "problem_id": r.problem_id,
        "task": task_of(r), "problem_type": r.problem_type, "data_type": r.data_type, "path": r.path,
        "problem": r.problem, "options": r.options, "solution": r.solution, "error": question.error,
        "replies": [asdict(reply) for reply in question.replies],
    }  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A share with its interval, to be drawn; or, without one, its text. strong: one to look at."""

    text: str
    measure: Mapping[str, Any] | None = None
    strong: bool = False


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All tables of a report, for either form."""
    benchmarks = report["benchmarks"]
    out = [_headline(benchmarks)]
    if report.get("temporal_reliance"):
        out.append(_reliance(report))
    broken = [
        [Cell(b["title"]), Cell(name), *_numbers(group)] for b in benchmarks.values() for name, group in _groups(b)
    ]
    if broken:
        out.append(Table("As the benchmarks break it down", ("benchmark", "group", *_NUMBERS), broken))
    for name, part in (("Tasks", "tasks"), ("Problem types", "problem_types")):
        rows = [
            [Cell(b["title"]), Cell(task), *_numbers(group)]
            for b in benchmarks.values()
            for task, group in b[part].items()
        ]
        out.append(Table(name, ("benchmark", name.lower().removesuffix("s"), *_NUMBERS), rows))
    failures = [[Cell(cause), Cell(str(n))] for cause, n in report["failure_causes"].items()]
    if failures:
        out.append(Table("Failures by cause", ("cause", "questions"), failures, "Left out of every number above."))
    return out


def _groups(benchmark: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """'duration: short' and its numbers, ..."""
    found = benchmark.get("breakdown", {"by": "", "groups": {}})
    return [(f"{found['by']}: {name}", group) for name, group in found["groups"].items()]


_NUMBERS = ("answered", "eval-reference", "robust", "format", "tokens", "ended")


def _numbers(group: Mapping[str, Any]) -> list[Cell]:
    answered = Cell(f"{group['answered']} of {group['questions']}")
    length = Cell("" if group["tokens"] is None else f"{group['tokens']:.1f}")
    shares = [Cell("" if group[n] is None else percent(group[n])) for n in ("format", "ended")]
    return [answered, *(share(group["accuracy"][mode]) for mode in SCORED_MODES), shares[0], length, shares[1]]


def share(measure: Mapping[str, Any]) -> Cell:
    """'52.1 [47.9, 56.3]', in percent."""
    if measure["value"] is None:
        return Cell("")
    value, low, high = (percent(measure[name]) for name in ("value", "low", "high"))
    return Cell(f"{value} [{low}, {high}]", measure)


def gap(variant: Mapping[str, Any], mode: str) -> Cell:
    """'20.8: +33.1 [+29.8, +36.3]', the accuracy in percent and the gap in points."""
    measure, accuracy = variant["gap"][mode], variant["accuracy"][mode]["value"]
    if measure["value"] is None:
        return Cell("")
    value, low, high = (f"{100 * measure[name]:+.1f}" for name in ("value", "low", "high"))
    return Cell(f"{percent(accuracy)}: {value} [{low}, {high}]", strong=measure["low"] > 0 or measure["high"] < 0)


def extra() -> list[tuple[str, str]]:
    """Numbers of a benchmark beside its accuracy: key and title."""
    rows = [("mean_over_tasks", "mean over its tasks, as the benchmark defines its score")]
    for kind in KINDS.values():
        rows += [(metric_key(kind.name, m), f"its {kind.name} questions: {m.name}") for m in kind.metrics]
        rows += [(apart_key(kind.name), "its other questions: accuracy")] if kind.apart else []
    return [*rows, ("majority", "majority vote over the samples")]


def _headline(benchmarks: Mapping[str, Any]) -> Table:
    rows, with_paper = [], any("paper" in b for b in benchmarks.values())
    for b in benchmarks.values():
        paper = [_paper(b)] if with_paper else []
        pooled = f"{b['title']}, pooled" if "mean_over_tasks" in b else b["title"]
        rows.append([Cell(pooled), *_numbers(b), *paper])
        for key, name in extra():
            if key in b:
                cells = [Cell(str(b[key][SCORED_MODES[0]]["n"])), *(share(b[key][mode]) for mode in SCORED_MODES)]
                rows.append([Cell(f"{b['title']}, {name}"), *cells, *[Cell("")] * (3 + len(paper))])
    note = f"paper: {CITATION}, at the same frames, pixels and prompt." if with_paper else ""
    return Table("Benchmarks", ("benchmark", *_NUMBERS, *(["paper"] if with_paper else [])), rows, note)


def _paper(benchmark: Mapping[str, Any]) -> Cell:
    if "paper" not in benchmark:
        return Cell("")
    value, of = percent(benchmark["paper"]["value"]), benchmark["paper"]["rests_on"]
    return Cell(value if of == "all questions" else f"{value} ({of})")


def _reliance(report: Mapping[str, Any]) -> Table:
    """Ordered against every other order of the frames: all together, by benchmark, by task, by its own groups."""
    groups = [("all", "", report["temporal_reliance"])]
    for b in report["benchmarks"].values():
        groups.append((b["title"], "", b.get("variants", {})))
        parts = [*b["tasks"].items(), *_groups(b)]
        groups += [(b["title"], part, group.get("variants", {})) for part, group in parts]
    mode, variants = report["settings"]["primary_mode"], list(report["temporal_reliance"])
    rows = []
    for title, task, found in groups:
        first = next((v for v in found.values() if v["n"]), None)
        if first is not None:
            row = [Cell(title), Cell(task), Cell(str(first["n"])), share(first["ordered"][mode])]
            rows.append(row + [gap(found[name], mode) for name in variants])
    columns = ("benchmark", "task", "videos", "ordered", *(f"{name}: gap" for name in variants))
    note = (
        f"Videos only, scored in {mode} mode: accuracy on frames in another order, and how many points ordered frames "
        "give more, over the same questions. Bold: the interval does not hold 0."
    )
    return Table("Temporal reliance", columns, rows, note)


def markdown(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    lines = [f"# {report['model']}", "", rests_on(report), ""]
    for table in tables(report):
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else [])]
        lines += [_line(table.columns), "| " + " | ".join(["---"] * len(table.columns)) + " |"]
        lines += [_line([f"**{c.text}**" if c.strong else c.text for c in row]) for row in table.rows] + [""]
    lines += ["## Settings", "", "| setting | value |", "| --- | --- |"]
    lines += [_line([name, str(value)]) for name, value in report["settings"].items()]
    if report["failures"]:
        lines += ["", "## Failures", "", "| benchmark | record | problem_id | error |", "| --- | --- | --- | --- |"]
        lines += [
            _line([f["benchmark"], str(f["index"]), str(f["problem_id"]), f["error"]]) for f in report["failures"]
        ]
    return "\n".join([*lines, "", HOW, ""])


HOW = (
    "Accuracies in %, with 95% intervals: Wilson's where every question has one verdict, right or wrong; else "
    "percentiles of 10,000 bootstrap samples of questions (all samples of a question together). `eval-reference` is "
    "scored as Video-R1's evaluation scores, `robust` with its quirks mended; regression is mean relative accuracy in "
    "both. Questions that failed are left out and listed. The docs' page evaluation has the formulas."
)


def rests_on(report: Mapping[str, Any]) -> str:
    """On how many of how many questions the numbers rest."""
    missing = report["questions"] - report["answered"]
    failed = f"; {missing} could not be asked" if missing else ""
    return f"Rests on {report['answered']} of {report['questions']} questions{failed}."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |"


def as_table(summaries: Mapping[str, TaskSummary]) -> str:
    """A short Markdown table, one row a task: accuracies and format rate in percent, length in tokens."""
    rows = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1)]
    for task, s in summaries.items():
        shuffled = "" if s.shuffled is None else percent(s.shuffled)
        rows.append(
            (task, str(s.questions), percent(s.ordered), shuffled, percent(s.format), f"{s.length:.1f}", str(s.failed))
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
