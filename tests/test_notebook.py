"""The notebook runs from its first cell to its last, as Jupyter runs it, and the page shows its cells."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import Fork

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "six_clips.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def command(line: str, folder: Path) -> str:
    """What a line `!jvr1 ...` prints. It must end with 0."""
    name, *words = shlex.split(line.removeprefix("!").replace("\\\n", " "))
    assert name == "jvr1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = Fork([sys.executable, "-mjvr1", *words], env=environment, cwd=folder, **pipes)
    out, error = process.communicate()
    assert process.returncode == 0, f"{line}\n{error}"
    return out


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}
    said = []
    for cell in CELLS:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if source.startswith("!"):
            said.append(command(source.strip(), tmp_path))
        else:
            exec(source, given)
    assert given["accuracy"]("before") < 0.5 < given["accuracy"]("after")
    assert "<answer>" in said[-2]  # of `ask`
    assert (tmp_path / "six_clips" / "hf" / "model.safetensors").exists()


def test_cells_have_no_outputs_and_the_page_is_made_of_them():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    tool = runpy.run_path(str(ROOT / "tools" / "notebook_page.py"))
    assert tool["page_of"](CELLS) == (ROOT / "docs" / "six_clips.md").read_text(), "run python tools/notebook_page.py"
