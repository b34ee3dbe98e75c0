"""Writes docs/six_clips.md from the notebook beside it: python tools/notebook_page.py"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "six_clips.ipynb"
TOLD = f"(The notebook: [{NOTEBOOK.name}]({NOTEBOOK.name}). It runs in the tests.)"


def page_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """Text as it is, code in blocks; the first cell is the title's."""
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.startswith("!"):
            parts.append(f"```\n{source.removeprefix('!')}\n```")
        else:
            parts.append(f"```python\n{source}\n```")
    return "\n\n".join([parts[0], TOLD, *parts[1:]]) + "\n"


if __name__ == "__main__":
    NOTEBOOK.with_suffix(".md").write_text(page_of(json.loads(NOTEBOOK.read_text())["cells"]))
