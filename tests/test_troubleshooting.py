"""The messages that docs/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
BLOCKS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
QUOTED = [line.removeprefix("error: ") for block in BLOCKS for line in block.splitlines()]
CAUSES = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", PAGE[PAGE.index("| cause |") : PAGE.index("## It is slow")], re.M)
GAP = "\0"


@cache
def templates() -> tuple[str, ...]:
    """Every text that the package can say, with GAP for what is filled in."""
    found = set()
    for path in (ROOT / "jvr1").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(p.value if isinstance(p, ast.Constant) else GAP for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def pieces(message: str) -> list[str]:
    """What stands between the gaps of a message, without blanks at the ends."""
    return [piece for piece in (part.strip() for part in message.split("..")) if len(piece) > 3]


def says(template: str, message: str) -> bool:
    at = 0
    for piece in pieces(message):
        at = template.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_of_the_code(message):
    assert sum(map(len, pieces(message))) > 12, "too little of it stands there to be told from others"
    assert any(says(template, message) for template in templates())


def test_messages_are_quoted_and_a_wrong_one_would_be_seen():
    assert len(QUOTED) > 20
    assert not any(says(template, "the workdir .. is haunted by another run") for template in templates())


def test_causes_of_dropped_records_are_those_of_the_code():
    causes = re.findall(r"`([\w-]+)`", " ".join(CAUSES))
    assert len(causes) > 8
    assert set(causes) <= set(templates())


def test_settings_that_the_page_names_exist():
    from jvr1.config import SETTINGS

    sections = {name.partition(".")[0] for name in SETTINGS}
    named = {
        name for name in re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", PAGE) if name.partition(".")[0] in sections
    }
    assert len(named) > 15
    assert named <= set(SETTINGS), named - set(SETTINGS)
