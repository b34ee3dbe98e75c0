"""What a public repository shows beside its code: workflows, templates, citation, versions."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from jvr1 import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_has_what_it_needs(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow[True] is not None  # `on`, which YAML reads as true
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    extras = re.findall(r"-e \"\.\[([\w,]+)\]\"", file.read_text())
    assert all(extra in PROJECT["optional-dependencies"] for one in extras for extra in one.split(","))


def test_docs_and_wheel_are_built_by_workflows():
    texts = {file.stem: file.read_text() for file in WORKFLOWS}
    assert "mkdocs build --strict" in texts["docs"]
    assert "python -m build" in texts["release"]
    assert "jvr1 --version" in texts["release"]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": "The jvr1 authors"}]
    first, *older = re.findall(r"^## (\S+?)(?:,| |$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == __version__
    assert older == sorted(older, key=lambda v: [int(n) for n in v.split(".")], reverse=True)


def test_issue_templates_are_forms():
    forms = [file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config"]
    assert len(forms) == 2
    for file in forms:
        form = yaml.safe_load(file.read_text())
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))


def test_only_what_draws_needs_matplotlib():
    """It is an extra; nothing imports it but when it draws."""
    assert not any(name.startswith("matplotlib") for name in PROJECT["dependencies"])
    for file in [*(ROOT / "jvr1").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        assert not re.search(r"^(?:import|from) matplotlib", file.read_text(), re.MULTILINE), file
    assert importlib.util.find_spec("matplotlib") is not None  # of the tests


@pytest.mark.parametrize("file", ["launch/tpu_pod.sh", "docs/launch.md"])
def test_what_is_copied_elsewhere_can_be_installed_there(file):
    """To the hosts of a slice, into an image: setup.py says which packages there are, configs is one of them."""
    (line,) = re.findall(
        r"^.*\bpyproject\.toml\b.*\bREADME\.md\b.*(?:\n.*){0,3}", (ROOT / file).read_text(), re.MULTILINE
    )
    assert {"setup.py", "LICENSE", "NOTICE", "jvr1", "configs"} <= set(re.findall(r"[\w.]+", line))
