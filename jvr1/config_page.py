"""The settings as text: the table of docs/config.md, and what a training main's --help prints."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from jvr1.setting import Resume, Setting, section_helps, settings_of

BEGIN = "<!-- the settings, as `python tools/config_docs.py` writes them -->"
END = "<!-- the end of the settings -->"
RESUMED: dict[Resume, str] = {"fixed": "no", "tunable": "told", "free": "yes"}
"""Whether a setting may change when a run goes on, as the table says it."""
HELP_WIDTH = 100


def page(text: str, run: Any) -> str:
    """docs/config.md with the table of all settings between its two marks. run: the settings, as `RunSettings`."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{settings_table(run)}\n\n{END}{rest.partition(END)[2]}"


def settings_table(run: Any) -> str:
    """A row for each setting and for each section, in Markdown."""
    rows = ["| setting | default | values | may change | what it does |", "|---|---|---|---|---|"]
    helps, section = section_helps(run), ""
    for one in settings_of(run):
        within, dot, _ = one.name.partition(".")
        if dot and within != section:
            section = within
            rows.append(_row(f"**{section}**", "", "", "", helps[section]))
        rows.append(_row(f"`{one.name}`", f"`{one.value!r}`", one.values, _resumed(one), one.about.help))
    return "\n".join(rows)


def _row(*cells: str) -> str:
    linked = [re.sub(r"\bdocs/(\w+)\.md(#[\w-]+)?", r"[\1](\1.md\2)", cell.replace("|", r"\|")) for cell in cells]
    return f"| {' | '.join(linked)} |".replace("|  |", "| |").replace("|  |", "| |")


def _resumed(one: Setting) -> str:
    return RESUMED[one.about.resume or "fixed"]


def usage(run: Any, about: str, flags: Mapping[str, str]) -> str:
    """What --help prints: what the main does, its flags (name -> help), every setting with default, values and help."""
    lines = [_by_page(about.strip()), "", "flags:"]
    for name, told in flags.items():
        lines += [f"  --{name}", *_indented(told)]
    lines += ["", "settings, as --config.NAME=VALUE:"]
    for one in settings_of(run):
        lines += [f"  {one.name} = {one.value!r}  ({one.values})", *_indented(_by_page(one.about.help))]
    return "\n".join(lines)


def _by_page(text: str) -> str:
    """A help without paths of the repository, which an installed package has not."""
    return re.sub(r"\bdocs/(\w+)\.md(#[\w-]+)?", r"the docs' page \1", text)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
