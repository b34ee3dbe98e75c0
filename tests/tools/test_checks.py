"""What pre-commit and the workflow call: the tools and the script that there are, as CONTRIBUTING.md tells of them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "tools" / "test.sh").read_text()


def test_hooks_call_what_the_script_calls():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    called = set()
    for hook in local["hooks"]:
        program, *arguments = shlex.split(hook["entry"])
        assert Path(program).parent == Path(".venv/bin")
        assert (Path(sys.executable).parent / Path(program).name).is_file()
        called.add(" ".join([Path(program).name, *(a for a in arguments if a != "--force-exclude")]))
    checks = re.findall(r"^((?:ruff|mypy)[^\n]*?)(?: \.)?$", SCRIPT, re.M)
    assert called == set(checks)
    assert len(checks) == 3


def test_the_workflow_and_the_page_call_the_script_with_options_it_has():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    (tested,) = [step["run"] for step in steps if "tools/" in step.get("run", "")]
    pages = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "README.md")]
    options = set(re.findall(r"(--[a-z]+)\)", SCRIPT))
    named = {
        option for text in [tested, *pages] for option in re.findall(r"(?:tools/test\.sh[^|\n`]*?)(--[a-z]+)", text)
    }
    assert named == {"--all", "--quick"} < options
    cached = next(step["with"]["path"] for step in steps if "actions/cache" in step.get("uses", ""))
    assert workflow["jobs"]["test"]["env"]["JVR1_TEST_CACHE"] == cached
