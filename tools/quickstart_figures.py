"""Writes the table of docs/quickstarts.md from the plan commands on that page: python tools/quickstart_figures.py"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from jvr1 import config as settings
from jvr1.chips import GIB, chip_named
from jvr1.commands.plan import read_arguments
from jvr1.plan.planning import RunPlan, changed, make_plan, named_model, read_mesh, stage_of

PAGE = Path(__file__).parents[1] / "docs" / "quickstarts.md"
BEGIN, END = "<!-- figures: written by tools/quickstart_figures.py -->\n", "<!-- end of figures -->"


def plan_of_command(line: str) -> tuple[str, RunPlan]:
    """The name of the config and the plan of 'jvr1 plan ...'."""
    args, rest = read_arguments(shlex.split(line)[2:])
    config = settings.from_file(args.config, rest)
    config = changed(config, {f"mesh.{axis}": size for axis, size in read_mesh(args.mesh).items()})
    model = named_model(args.model or config.model.source)
    return args.config, make_plan(
        config, model, chip_named(args.chip), args.tokens, args.stage or stage_of(args.config)
    )


def figures(page: str) -> Iterator[str]:
    """The table: a line for each plan command in a block of the page."""
    yield "| machine | run | memory a chip, GiB | of | a step at best, s | expected, s | expected for 1,000 steps |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0]
        for line in re.findall(r"^(jvr1 plan .*)$", part, re.MULTILINE):
            name, plan = plan_of_command(line)
            memory = f"{plan.peak()[0] / GIB:.1f} | {plan.chip.memory / GIB:.1f}"
            hours = plan.expected * 1000 / 3600
            yield f"| {title} | `{name}` | {memory} | {plan.seconds:.1f} | {plan.expected:.1f} | {hours:.1f} h |"


def with_figures(page: str) -> str:
    """The page with its table written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(figures(page))
    return f"{before}{BEGIN}{table}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_figures(PAGE.read_text()))
