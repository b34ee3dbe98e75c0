"""Writes the table of settings in docs/config.md anew, from the settings themselves: python tools/config_docs.py"""

from __future__ import annotations

from pathlib import Path

from jvr1.config_page import page
from jvr1.config_sections import RunSettings

PAGE = Path(__file__).parents[1] / "docs" / "config.md"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(), RunSettings()))


if __name__ == "__main__":
    main()
