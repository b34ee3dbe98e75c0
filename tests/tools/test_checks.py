"""What pre-commit and the workflow call: the tools and the script that there are, as CONTRIBUTING.md tells of them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
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


FILES = ["jvr1/rl/snippet.py", "tools/snippet.py", "tests/rl/test_snippet.py"]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("file", FILES)
def test_the_linter_catches_an_undefined_name(file):
    body = "def f(x):\n    return x + undefined_thing\n"
    lint = [BIN / "ruff", "check", "--output-format=concise", f"--stdin-filename={file}", "-"]
    told = subprocess.run(lint, cwd=ROOT, input=body, capture_output=True, text=True)
    assert (told.returncode, "F821" in told.stdout) == (1, True), told


@pytest.mark.slow
def test_the_type_checker_catches_it_too_and_what_has_no_types(tmp_path):
    """In package, tools and tests, with the settings of pyproject.toml."""
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def f(x):\n    return x + undefined_thing\n")
    check = [BIN / "mypy", f"--config-file={ROOT / 'pyproject.toml'}", "--cache-dir=cache", *FILES]
    told = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 1, told
    caught = set(re.findall(r"^(\S+?):\d+: error: .*\[([a-z-]+)\]$", told.stdout, re.M))
    untyped = {(file, "no-untyped-def") for file in FILES if not file.startswith("tests")}
    assert caught == {(file, "name-defined") for file in FILES} | untyped
