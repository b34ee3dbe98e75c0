"""Every command in the documentation: its options are there, its configs and settings are read, its files exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jvr1 import config as settings
from jvr1.__main__ import COMMANDS, run
from jvr1.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
OURS = re.compile(r"^(?:\w+=\S+ )*(?:jvr1 [a-z-]|python |tools/\w+\.sh\b|launch/\w+\.sh\b)")


class Shown(NamedTuple):
    page: str
    line: str


def shown() -> list[Shown]:
    """The commands in fenced blocks: continued lines joined, prompts and comments taken off."""
    found = []
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if language not in ("", "bash"):
                continue
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                line = re.sub(r"\s{3,}(?:#|[A-Za-z]).*$| #.*$", "", line.strip().removeprefix("$ ")).strip()
                found += [Shown(page.name, one) for one in line.split(" && ") if OURS.match(one)]
    return found


LINES = shown()
USAGE = re.compile(r"\[|\.\.\.$|\|")
"""A line that says what can be given, not what is."""


class Parsed(BaseException):
    """A command line was read to its end."""

    def __init__(self, rest: list[str], config: str | None):
        self.rest, self.config = rest, config


@pytest.fixture
def only_read(monkeypatch):
    """Commands read their command line and do nothing."""
    known, parsed = argparse.ArgumentParser.parse_known_args, settings.parse

    def parse_known_args(self: Any, *args: Any, **how: Any) -> Any:
        namespace, rest = known(self, *args, **how)
        raise Parsed(rest, getattr(namespace, "config", None))

    def parse_args(self: Any, *args: Any, **how: Any) -> Any:
        _, rest = known(self, *args, **how)
        if rest:
            self.error(f"unrecognised: {rest}")
        raise Parsed([], None)

    def parse(*args: Any, **how: Any) -> Any:
        parsed(*args, **how)
        raise Parsed([], None)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(settings, "parse", parse)
    for entry in COMMANDS.values():
        module = importlib.import_module(entry.module)
        for name in ("run_distributed", "run_main"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda main, read=None: read() if read else main())
    monkeypatch.chdir(ROOT)


def read_command(words: list[str]) -> None:
    """Raises UserError or SystemExit for a command line of jvr1 that it would refuse."""
    given = ["tgrpo_7b" if word == "CONFIG" else word for word in words if word != "..."]
    try:
        run(given)
    except Parsed as end:
        if end.rest:
            settings.from_file(end.config or "tiny:rl", end.rest)
        return
    assert given[1:] == ["--chips"], f"{given} was not read"


def ours_in(line: str) -> list[str] | None:
    """The words of `jvr1 ..` in a line, after what starts it elsewhere; None: it is another program's."""
    words = [word for word in shlex.split(line.rpartition(" -- ")[2]) if not word.startswith(">")]
    at = next((i for i, word in enumerate(words) if word == "jvr1"), None)
    return None if at is None else words[at + 1 :]


def test_the_pages_show_commands():
    assert len(LINES) > 80
    assert {ours[0] for _, line in LINES if (ours := ours_in(re.sub(r"[\[\]|]", " ", line)))} >= {*COMMANDS} - {
        "train-bestofn"
    }


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if "jvr1 " in one.line and not USAGE.search(one.line)])
def test_a_command_of_jvr1_is_read(only_read, page, line):
    ours = ours_in(line)
    assert ours is not None
    read_command(ours)


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --model M --suite S --data D --outt O",
        "train-rl --config tgrpo_7b --config.rl.betta=1 --workdir W",
        "train-rl --config nosuch --workdir W",
        "plan --nosuch",
    ],
)
def test_one_that_jvr1_would_refuse_is_seen(only_read, line):
    with pytest.raises((UserError, SystemExit)):
        read_command(shlex.split(line))


@pytest.mark.parametrize(
    ("page", "line"), [one for one in LINES if USAGE.search(one.line) and one.line.startswith("jvr1 ")]
)
def test_a_usage_line_names_options_that_there_are(page, line):
    name = line.split()[1]
    assert name in COMMANDS
    file = ROOT / f"{COMMANDS[name].module.replace('.', '/')}.py"
    for option in re.findall(r"--[a-z][\w-]*", line):
        assert option == "--config" or has_option(file, option), f"{page}: {option}"


def imported_by(file: Path) -> list[Path]:
    """Files of ours that a Python file imports, at its top or in a function."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        for name in names:
            places = [folder / f"{name.replace('.', '/')}.py" for folder in (ROOT, ROOT / "tools", file.parent)]
            found += [place for place in places if place.is_file()]
    return found


def has_option(file: Path, option: str) -> bool:
    """Whether a script takes it: it or a module that it imports defines it, with argparse (--a-b) or absl (a_b)."""
    if file.suffix != ".py":
        return bool(re.search(rf"(?<![\w-]){option}(?![\w-])", file.read_text()))
    defined = rf"""["']{option}["']|DEFINE_\w+\(\s*["']{option[2:]}["']"""
    return any(re.search(defined, one.read_text()) for one in (file, *imported_by(file)))


@pytest.mark.parametrize(
    ("file", "own", "other"),
    [
        ("tools/random_checkpoint.py", "--shard-gb", "--topology"),
        ("tools/compile_tpu.py", "--topology", "--decode_tensor"),
        ("launch/tpu_pod.sh", "--zone", "--times"),
        ("launch/retry.sh", "--times", "--zone"),
        ("jvr1/commands/report.py", "--no-frames", "--topology"),
    ],
)
def test_an_option_of_another_tool_is_none_of_this(file, own, other):
    assert has_option(ROOT / file, own)
    assert not has_option(ROOT / file, other)
    assert not has_option(ROOT / file, own[:-1])


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if not one.line.startswith("jvr1 ")])
def test_a_tool_or_script_exists_and_has_the_options(page, line):
    before, _, _ = line.partition(" -- ")
    words = [word for word in shlex.split(before) if "=" not in word or word.startswith("--")]
    words = words[1:] if words[0] == "python" else words
    if words[0] in ("-m", "-c", "-"):
        return
    file = ROOT / words[0]
    assert file.is_file(), f"{page}: {words[0]}"
    for word in words[1:]:
        option = word.partition("=")[0]
        if option.startswith("--config."):
            settings.check_names([option.removeprefix("--config.")])
        elif option.startswith("--"):
            assert has_option(file, option), f"{page}: {option} of {words[0]}"
