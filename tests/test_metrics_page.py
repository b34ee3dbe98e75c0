"""Every name that a run logs is on docs/metrics.md, and the page has no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import scalars

from jvr1.data.records import DATA_TYPES
from jvr1.demo.questions import TASKS
from jvr1.problems.kinds import KINDS
from jvr1.questions.summary import TaskSummary

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
ROWS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
NAMES = [name for row in ROWS for name in re.findall(r"`([^`]+)`", row)]
PLACES = r"NAME|TYPE|CAUSE|GROUP|TASK"
BY_UPDATE = r"loss/\w+/\d+"


FILLED = "something"
"""What stands for a part of a name that the code fills in."""
FILLS = "|".join(map(re.escape, {*KINDS, *DATA_TYPES, *(task.name for task in TASKS)}))
"""What a run of the demo puts in such a part: problem types, kinds of media, sources."""


def as_named_by_code(name: str) -> str:
    return re.sub(PLACES, FILLED, name)


def as_logged(name: str) -> re.Pattern[str]:
    """Of a reward's name and a failure's cause any; these have folders of their own."""
    return re.compile(re.sub(PLACES, f"(?:{FILLS})", re.sub("NAME|CAUSE", r"\\w+", re.escape(name))))


ON_THE_PAGE = [name for name in NAMES if name.count(".") == 0]
OF_CODE = {as_named_by_code(name) for name in ON_THE_PAGE}
OF_RUNS = [as_logged(name) for name in ON_THE_PAGE]


def is_shown(name: str) -> bool:
    """Whether a name that a run logged is on the page: as it is, or with a part filled in as such runs fill it."""
    return any(one.fullmatch(name) for one in OF_RUNS) or bool(re.fullmatch(BY_UPDATE, name))


LOGGED_IN = {
    "jvr1/rl/tgrpo.py": {"group_statistics": ""},
    "jvr1/rl/objectives.py": {"_kl_statistics": "loss/", "_ratio_statistics": "loss/"},
    "jvr1/rl/credit.py": {"credit_statistics": ""},
    "jvr1/train/rollouts.py": {"score_sums": "", "score_maxima": "", "user_failures": ""},
    "jvr1/train/policy.py": {"compare": "", "_score": "", "_entropy_moves": ""},
    "jvr1/train/loop.py": {"_log": "", "_count_rows": "", "update": ""},
    "jvr1/train/steps.py": {"losses": "", "gradients": "loss/"},
    "jvr1/train_bestofn.py": {"best_sums": ""},
}
"""Functions that name numbers, and what is put before those names. A function that is gone fails the test."""
NO_NAMES = {
    "entropy",
    "entropy_weight",
    "advantage_square",
    "completion/tokens",
    "flops",
    "total",
    "loss/loss/entropy",
    "loss/loss/answer_logprob",
}
"""Sums that others are made of, what a checkpoint keeps, and SFT's `gradients`, whose names have their prefix."""


def named_in(function: ast.AST) -> Iterator[str]:
    """Keys of dictionaries, of subscripts that are assigned, and first arguments of `add`; {..} is anything."""
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            yield from filter(None, (text(key) for key in node.keys))
        elif isinstance(node, ast.DictComp):
            yield from filter(None, [text(node.key)])
        elif isinstance(node, ast.Assign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Subscript):
                    yield from filter(None, [text(target.slice)])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add":
            yield from filter(None, [text(node.args[0])])


def text(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else FILLED for part in node.values)
    return None


def test_what_the_code_logs_is_on_the_page():
    for file, functions in LOGGED_IN.items():
        tree = ast.parse((ROOT / file).read_text())
        for name, prefix in functions.items():
            found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
            assert found, f"{file} has no function {name}"
            names = {prefix + said for one in found for said in named_in(one)} - NO_NAMES
            assert names, f"{file} {name} names nothing"
            missing = names - OF_CODE - {f"seconds/{FILLED}"}
            assert not missing, f"{file} {name}: {missing} are not on docs/metrics.md"


def test_phases_and_what_validation_gives_are_on_the_page():
    sources = "".join(path.read_text() for path in (ROOT / "jvr1").rglob("train*.py")) + "".join(
        path.read_text() for path in (ROOT / "jvr1" / "train").glob("*.py")
    )
    phases = set(re.findall(r"\.phase\(\"(\w+)\"\)", sources))
    assert phases >= {"data", "generate", "reward", "update"}
    assert all(f"seconds/{name}" in NAMES for name in phases)
    assert all(f"valid/TASK/{name}" in NAMES for name in TaskSummary._fields)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_what_a_run_logs_is_on_the_page(demo, stage):
    logged = scalars(demo.finished(stage).workdir)
    assert {"loss", "seconds/step", "update/gradient_norm", "data/padding"} < set(logged)
    assert not {name for name in logged if not is_shown(name)}


def test_a_filled_in_part_stands_for_no_other_name():
    """Or the row of `accuracy/GROUP` would do for any number that begins so."""
    assert {"accuracy/something", "valid/something/ordered"} <= OF_CODE
    assert not {"accuracy/best", "reward/median", "data/failed_twice"} & OF_CODE
    assert all(map(is_shown, ("accuracy/order", "reward/multiple choice", "valid/order/shuffled", "loss/kl/1")))
    assert not any(map(is_shown, ("accuracy/best", "reward/median", "valid/order/median", "accuracy/order/more")))


def test_the_page_names_no_metric_twice_in_its_tables():
    tables = PAGE[PAGE.index("## Reward and accuracy") :]
    names = [
        n
        for line in tables.splitlines()
        if line.startswith("| `")
        for n in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(names) == len(set(names))
    assert len(names) > 60
