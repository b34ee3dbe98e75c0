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


@pytest.mark.parametrize("module", ["jvr1.rl.snippet", "tools.snippet", "tests.rl.test_snippet"])
def test_an_undefined_name_is_caught_in_package_tools_and_tests(module):
    """By both checkers with their settings of pyproject.toml, in a function without types too."""
    body = "def f(x):\n    return x + undefined_thing\n"
    file = module.replace(".", "/") + ".py"
    bin_ = Path(sys.executable).parent
    lint = [bin_ / "ruff", "check", "--output-format=concise", f"--stdin-filename={file}", "-"]
    told = subprocess.run(lint, cwd=ROOT, input=body, capture_output=True, text=True)
    assert (told.returncode, "F821" in told.stdout) == (1, True), told
    types = runtime_types(module)
    assert types["check_untyped_defs"]
    assert "name-defined" not in types["disabled"]


def runtime_types(module: str) -> dict:
    """What mypy makes of pyproject.toml for a module."""
    from mypy.config_parser import parse_config_file
    from mypy.options import Options

    options = Options()
    parse_config_file(options, lambda: None, str(ROOT / "pyproject.toml"))
    own = options.clone_for_module(module)
    return {"check_untyped_defs": own.check_untyped_defs, "disabled": own.disable_error_code}
