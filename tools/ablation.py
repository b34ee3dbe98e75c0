"""T-GRPO beside GRPO, with seeds: python tools/ablation.py OUT [--seeds 1,2,3,4,5] [--arms A,B] [--shortcuts none,0.8]

Makes data, cold starts, one T-GRPO run an arm and evaluates all of them, then writes OUT/results.json. Run again, it
goes on where it was; what is done is not done again. --page FILE.md sets the tables and figures of that page, the
results beside it; with --results FILE.json instead of OUT, from there and without any run. docs/ablation.md is made so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ablations.collect import collect
from ablations.report import draw_curves, draw_reliance, main_table, written
from ablations.stages import NO_SHORTCUT, ROOT, Cell, run, stages

from jvr1.config import from_file
from jvr1.demo.dataset import task_table
from jvr1.errors import UserError, run_main

ARMS = ("grpo", "reference", "gap-0.3", "gap-1", "gap-3")
SWITCHES = (
    "gate",
    "factor",
    "alpha",
    "temporal_reward",
    "correct_threshold",
    "min_distinct_frames",
    "group",
    "shuffled",
)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    if flags.results:
        results = json.loads(flags.results.read_text())
    else:
        cells = [Cell(flags.out.resolve(), shortcut, seed) for shortcut in flags.shortcuts for seed in flags.seeds]
        run_all(cells, flags.arms, flags.jobs)
        results = about(flags) | {"runs": collect(cells, flags.arms)}
        (flags.out / "results.json").write_text(as_json(results))
    print(main_table(results))
    if flags.page:
        write_page(flags.page, results)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/ablation.py", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder of the runs")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="one run an arm for each")
    parser.add_argument("--arms", default=",".join(ARMS), help="of configs/ablation.py; GRPO among them")
    parser.add_argument("--shortcuts", default=f"{NO_SHORTCUT},0.8", help="shares of training clips with the cue")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--results", type=Path, help="results.json of an earlier call: nothing is run")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables and figures are written anew")
    flags = parser.parse_args(arguments)
    if (flags.out is None) == (flags.results is None):
        raise UserError("name OUT, the folder of the runs, or --results FILE, not both")
    for path in (flags.results, flags.page):
        if path and not path.is_file():
            raise UserError(f"{path} is no file")
    flags.arms, flags.shortcuts = flags.arms.split(","), flags.shortcuts.split(",")
    try:
        flags.seeds = [int(seed) for seed in flags.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds is {flags.seeds}; write numbers with commas") from None
    if "grpo" not in flags.arms:
        raise UserError(f"--arms is {','.join(flags.arms)}; grpo must be among them, the others are compared with it")
    for arm in flags.arms:
        arm_settings(arm)
    return flags


def run_all(cells: Sequence[Cell], arms: Sequence[str], jobs: int) -> None:
    """All stages; a seed's one after the other, without and with the cue, several seeds at a time."""
    seeds = {cell.seed: [other for other in cells if other.seed == cell.seed] for cell in cells}

    def one(of: Sequence[Cell]) -> None:
        for cell in of:
            for stage in stages(cell, arms):
                run(stage)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(one, of) for of in seeds.values()]:
            done.result()


def arm_settings(arm: str) -> dict[str, Any]:
    """What an arm's config says of the temporal signal. Raises UserError where there is no such arm."""
    config = from_file(f"{ROOT / 'configs' / 'ablation.py'}:{arm}")
    return {name: config.rl[name] for name in SWITCHES}


def about(flags: argparse.Namespace) -> dict[str, Any]:
    """What the numbers rest on, and the temporal tasks with their ceilings."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": git.stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "transformers")},
        "seeds": flags.seeds,
        "arms": {arm: arm_settings(arm) for arm in flags.arms},
        "tasks": {name: task for name, task in task_table().items() if task["temporal"]},
    }


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
