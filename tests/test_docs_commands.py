"""Every command in the documentation: its options are there, its configs and settings are read, its files exist."""

from __future__ import annotations

import argparse
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
    package = ROOT / "jvr1"
    text = "".join(path.read_text() for path in [*package.glob("*.py"), *(package / "commands").glob("*.py")])
    for option in re.findall(r"--[a-z][\w-]*", line):
        assert f'"{option}"' in text or option == "--config", f"{page}: {option}"


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if not one.line.startswith("jvr1 ")])
def test_a_tool_or_script_exists_and_has_the_options(page, line):
    before, _, _ = line.partition(" -- ")
    words = [word for word in shlex.split(before) if "=" not in word or word.startswith("--")]
    words = words[1:] if words[0] == "python" else words
    if words[0] in ("-m", "-c", "-"):
        return
    file = ROOT / words[0]
    assert file.is_file(), f"{page}: {words[0]}"
    text = (
        file.read_text()
        + "".join(
            path.read_text()
            for path in (ROOT / "tools").rglob("*.py")
            if path.parent != file.parent or path.suffix == ".py"
        )
        + (ROOT / "jvr1" / "plan" / "compiling.py").read_text()
    )
    for word in words[1:]:
        option = word.partition("=")[0]
        if option.startswith("--config."):
            settings.check_names([option.removeprefix("--config.")])
        elif option.startswith("--"):
            assert option in text or option.replace("-", "_") in text, f"{page}: {option} of {words[0]}"
