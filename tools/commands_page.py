"""Writes the tables of docs/commands.md: python tools/commands_page.py"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from jvr1.__main__ import COMMANDS
from jvr1.config_files import own_configs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"


def command_rows() -> Iterator[str]:
    """Each command with what it does."""
    yield "| command | what it does |"
    yield "|---|---|"
    for name, entry in COMMANDS.items():
        yield f"| `jvr1 {name}` | {entry.about} |"


def command_texts() -> Iterator[str]:
    """What each command's module says of it, its usage among that."""
    for name, entry in COMMANDS.items():
        told = ast.get_docstring(ast.parse((ROOT / f"{entry.module.replace('.', '/')}.py").read_text()))
        yield f"### {name}\n\n```text\n{told}\n```\n"


def config_rows() -> Iterator[str]:
    """Each config with the first sentence of its file."""
    yield "| config | what it is |"
    yield "|---|---|"
    for name, file in own_configs().items():
        told = (ast.get_docstring(ast.parse(file.read_text())) or "").partition(": --config")[0]
        first = " ".join(told.partition("\n\n")[0].split())
        yield f"| `{name}` | {first} |"


def with_tables(page: str, tables: Mapping[str, Iterator[str]]) -> str:
    """The page with each table between its marks written anew."""
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: written by tools/commands_page.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2]
    return page


def commands_page(page: str) -> str:
    return with_tables(page, {"commands": command_rows(), "configs": config_rows(), "texts": command_texts()})


if __name__ == "__main__":
    PAGE.write_text(commands_page(PAGE.read_text()))
