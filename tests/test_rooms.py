"""Who may import whom: docs/architecture.md draws it. A line too many here is a decision to be made, not a slip."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from runs import REPOSITORY

PACKAGE = REPOSITORY / "jvr1"
BELOW: dict[str, set[str]] = {
    "errors": {"mistakes"},
    "setting": {"errors"},
    "model": {"errors", "setting"},
    "sharding": {"errors", "model"},
    "optimizers": {"errors", "setting", "model", "sharding"},
    "problems": {"errors"},
    "data": {"errors", "setting", "lifeline", "model", "problems"},
    "processes": {"errors", "data"},
    "rollout": {"errors", "model", "sharding", "data", "processes"},
    "rl": {"errors", "setting", "lifeline", "data", "processes", "rollout", "problems"},
    "questions": {"errors", "data", "processes", "rollout", "rl", "problems"},
    "config_sections": {"setting", "model", "optimizers", "data", "rl"},
    "config_checks": {"errors"},
    "config_files": {"errors"},
    "config_page": {"setting"},
    "config": {
        "errors", "setting", "config_sections", "config_checks", "config_files", "config_page", "problems", "model",
        "sharding", "optimizers", "data", "processes", "rl",
    },
    "opening": {"errors", "config", "model", "sharding", "data", "processes", "rl"},
    "train": {
        "errors", "chips", "config", "model", "sharding", "optimizers", "data", "processes", "rollout", "rl",
        "questions", "opening", "problems",
    },
    "pages": set(),
    "run_page": {"errors", "data", "questions", "pages"},
    "eval": {"", "errors", "config", "model", "data", "processes", "rl", "questions", "problems", "pages"},
    "plan": {"errors", "chips", "config", "model", "sharding", "data", "rollout", "opening", "train"},
    "demo": {"errors", "model"},
    "commands": {
        "errors", "command_line", "chips", "config", "setting", "problems", "model", "sharding", "data", "processes",
        "rl", "opening", "plan", "demo", "eval", "run_page",
    },
    "command_line": {"errors"},
    "chips": {"errors"},
    "mistakes": set(),
    "lifeline": set(),
}  # fmt: skip
"""Of each room, a folder or a file of jvr1, those it stands on; "" is `jvr1/__init__.py`. Whatever else there is at the
top is a main, which may import all, or what mains share."""


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(file: Path) -> set[str]:
    """Modules of jvr1 that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "jvr1"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jvr1":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {n for n in names if (REPOSITORY / n.replace(".", "/")).with_suffix(".py").exists()}
            inner |= {n for n in names if (REPOSITORY / n.replace(".", "/")).is_dir()}
            found |= inner | ({str(node.module)} if names - inner else set())
    return found


@pytest.mark.parametrize("name", BELOW)
def test_a_room_imports_only_what_it_stands_on(name):
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).rglob("*.py"))
    used = {(file.name, module) for file in files for module in imported(file) if room(module) != name}
    allowed = BELOW[name]
    assert {(f, m) for f, m in used if room(m) not in allowed} == set()


def test_rooms_stand_on_each_other_without_a_circle():
    assert len(list(TopologicalSorter(BELOW).static_order())) > len(BELOW)


def test_every_folder_is_a_room():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(BELOW)


@pytest.mark.parametrize("name", ["problems", "data", "questions", "eval", "demo"])
def test_rooms_of_numpy_import_no_jax(name):
    for file in (PACKAGE / name).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("jax", "flax") for n in names), (file, names)


def imports_at_once(file: Path) -> set[str]:
    """Modules that importing a file imports: not those of its functions, nor those for types alone."""
    nodes = list(ast.parse(file.read_text()).body)
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | {name for name in names if file_of(name) is not None}
    return found


def file_of(module: str) -> Path | None:
    path = REPOSITORY / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def test_what_reads_and_encodes_media_imports_no_jax():
    """However far its imports go in jvr1: all of data/ and problems/, and what they ask of a model's family."""
    waiting = {f"jvr1.{room}.{file.stem}" for room in ("data", "problems") for file in (PACKAGE / room).glob("*.py")}
    seen: set[str] = set()
    while waiting - seen:
        module = (waiting - seen).pop()
        seen.add(module)
        parts = module.split(".")
        waiting |= {".".join(parts[:n]) for n in range(1, len(parts))}  # packages that it lies in
        if (file := file_of(module)) is not None:
            waiting |= {name for name in imports_at_once(file) if name.startswith("jvr1")}
            assert not {name for name in imports_at_once(file) if name.split(".")[0] in ("jax", "flax")}, file
    assert "jvr1.model.families" in seen


def test_files_and_functions_can_be_read_at_a_sitting():
    files = {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}
    assert {name for name, text in files.items() if text.count("\n") > 400} == set()
    functions = [
        (name, node.name, int(node.end_lineno or 0) - node.lineno + 1)
        for name, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    long = {(file, function) for file, function, lines in functions if lines > 60 and function != "main"}
    assert long == set()


IN_SEVERAL = {
    "main": "each command has one",
    "command": "of each main: what the command line runs",
    "options": "of each command that has argparse's",
    "SHOWN": "of each training main: the statistics in its progress bar",
    "attend_packed": "one operation, by XLA and by the kernel for TPUs",
}
"""Names at the top of several modules that mean one thing in each."""


def named_at_the_top(file: Path) -> set[str]:
    """Public functions, types and constants that a module makes; not what it imports."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        found |= {each.id for each in names if isinstance(each.ctx, ast.Store)}
    return {name for name in found if not name.startswith("_")}


def test_a_name_means_one_thing():
    """Families may have the same names, each in its folder: what they are asked for is called alike."""
    homes: dict[str, list[tuple[str, str]]] = {}
    for file in PACKAGE.rglob("*.py"):
        folder, own, *_ = *file.relative_to(PACKAGE).parts, ""
        family = own if folder == "model" and (PACKAGE / folder / own).is_dir() else ""
        for name in named_at_the_top(file):
            homes.setdefault(name, []).append((family, str(file.relative_to(PACKAGE))))
    several = {}
    for name, found in homes.items():
        of = Counter(family for family, _ in found)
        if of.pop("", 0) + max(of.values(), default=0) > 1:
            several[name] = found
    assert several.keys() == IN_SEVERAL.keys(), several
