"""T-GRPO beside GRPO, with seeds: python tools/ablation.py OUT [--seeds 11,12] [--arms A,B] [--shortcuts none,0.8]

Makes data, cold starts and one run an arm, evaluates all of them, and writes OUT/results.json. Run again, it goes on
where it was; what is done is not done again. --page FILE.md writes the tables of that page anew, its figures and the
results beside it: docs/ablation.md is made so. With --results FILE.json ... instead of OUT nothing is run: results of
several calls, such as of other seeds on another machine, are joined.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

from ablations.collect import run_of
from ablations.report import draw_curves, draw_reliance, main_table, written
from ablations.stages import NO_SHORTCUT, ROOT, SFT, Cell, commit_of, run, stages

from jvr1.answering import Parser
from jvr1.config import from_file
from jvr1.demo.dataset import task_table
from jvr1.errors import UserError, run_main

ARMS = ("grpo", "reference", "gap-0.3", "gap-1", "gap-3")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    if flags.results:
        results = joined([read_results(file) for file in flags.results])
    else:
        cells = [Cell(flags.out.resolve(), shortcut, seed) for shortcut in flags.shortcuts for seed in flags.seeds]
        run_all(cells, flags.arms, flags.jobs)
        results = about(cells, flags) | {"runs": [run_of(cell, arm) for cell in cells for arm in (SFT, *flags.arms)]}
        (flags.out / "results.json").write_text(as_json(results))
    print(main_table(results))
    if flags.page:
        write_page(flags.page, results)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="tools/ablation.py", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder of the runs")
    parser.add_argument("--seeds", default="11,12,13,14,15", help="one run an arm for each")
    parser.add_argument("--arms", default=",".join(ARMS), help="of configs/ablation.py; grpo among them")
    parser.add_argument("--shortcuts", default=f"{NO_SHORTCUT},0.8", help="shares of RL's clips with the cue")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--results", type=Path, nargs="+", help="results.json of earlier calls: nothing is run")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables and figures are written anew")
    flags = parser.parse_args(arguments)
    if (flags.out is None) == (flags.results is None):
        raise UserError("name OUT, the folder of the runs, or --results FILE, not both")
    for path in (*(flags.results or ()), *([flags.page] if flags.page else ())):
        if not path.is_file():
            raise UserError(f"{path} is no file")
    if flags.out is not None and flags.out.exists() and not flags.out.is_dir():
        raise UserError(f"{flags.out} is no folder")
    if flags.jobs < 1:
        raise UserError(f"--jobs is {flags.jobs}; it must be at least 1")
    for name in ("seeds", "arms", "shortcuts"):
        values = getattr(flags, name).split(",")
        if len(set(values)) < len(values):
            raise UserError(f"--{name} is {','.join(values)}; each may come once")
        setattr(flags, name, values)
    if not all(seed.isdecimal() for seed in flags.seeds):
        raise UserError(f"--seeds is {','.join(flags.seeds)}; write numbers with commas")
    flags.seeds = [int(seed) for seed in flags.seeds]
    if not all(share == NO_SHORTCUT or is_share(share) for share in flags.shortcuts):
        raise UserError(f"--shortcuts is {','.join(flags.shortcuts)}; write {NO_SHORTCUT} and shares from 0 to 1")
    if "grpo" not in flags.arms:
        raise UserError(f"--arms is {','.join(flags.arms)}; grpo must be among them, the others are compared with it")
    for arm in flags.arms:
        from_file(f"{ROOT / 'configs' / 'ablation.py'}:{arm}")
    return flags


def is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def run_all(cells: Sequence[Cell], arms: Sequence[str], jobs: int) -> None:
    """All stages; a seed's one after the other, several seeds at a time. When one fails, no other is begun."""
    failed = Event()

    def one(seed: int) -> None:
        for cell in cells:
            for stage in stages(cell, arms) if cell.seed == seed else ():
                if failed.is_set():
                    return
                try:
                    run(stage)
                except BaseException:
                    failed.set()
                    raise

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(one, seed) for seed in dict.fromkeys(cell.seed for cell in cells)]
        try:
            for seed in running:
                seed.result()
        except BaseException:
            failed.set()
            raise


def about(cells: Sequence[Cell], flags: argparse.Namespace) -> dict[str, Any]:
    """What the numbers rest on, and the temporal tasks with their ceilings."""
    at = {commit_of(stage) for cell in cells for stage in stages(cell, flags.arms)}
    return {
        "commits": sorted(filter(None, at)),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "transformers")},
        "seeds_at_a_time": [flags.jobs],
        "tasks": {name: task for name, task in task_table().items() if task["temporal"]},
    }


def read_results(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text())
        main_table(joined([results]))
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{file} is no results.json of this tool") from None
    return results


def joined(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As if all runs had been made in one call. Raises UserError where a run is in two, or tasks or versions differ."""
    first, *others = several
    for other in others:
        for key in ("tasks", "versions"):
            if other[key] != first[key]:
                raise UserError(f"--results differ in their {key}: {other[key]} and {first[key]}")
    runs = [run for one in several for run in one["runs"]]
    places = [(run["shortcut"], run["seed"], run["arm"]) for run in runs]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise UserError(f"--results hold the run {'/'.join(map(str, twice))} twice")
    order = {arm: i for i, arm in enumerate(dict.fromkeys(place[2] for place in places))}
    runs.sort(key=lambda run: (run["shortcut"] != NO_SHORTCUT, run["shortcut"], run["seed"], order[run["arm"]]))
    united = {key: sorted({x for one in several for x in one[key]}) for key in ("commits", "seeds_at_a_time")}
    return first | united | {"date": max(one["date"] for one in several), "runs": runs}


def as_json(results: dict[str, Any]) -> str:
    """One run a line: a change of one shows as that."""
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    return head.removesuffix("\n}") + f',\n "runs": [\n{runs}\n]}}\n'


def write_page(page: Path, results: dict[str, Any]) -> None:
    """The page's tables, its figures in images/ and the results in ablation/, both beside it."""
    for folder in ("images", "ablation"):
        (page.parent / folder).mkdir(exist_ok=True)
    page.write_text(written(page.read_text(), results))
    draw_curves(results, page.parent / "images" / "ablation_curves.png")
    draw_reliance(results, page.parent / "images" / "ablation_reliance.png")
    (page.parent / "ablation" / "results.json").write_text(as_json(results))


if __name__ == "__main__":
    run_main(main)
