"""The documentation as a site: built without a warning, every page in its navigation, generated parts up to date."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jvr1.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_the_site_is_built_without_a_warning(site):
    pages = {path.parent.name for path in site.rglob("index.html")}
    assert {"quickstarts", "metrics", "troubleshooting", "api", "config", "changelog"} < pages


def test_every_page_is_in_the_navigation_of_six_groups():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert [next(iter(group)) for group in nav] == [
        "Start", "Your data", "Recipes", "How it works", "Reference", "Science",
    ]  # fmt: skip
    named = re.findall(r"[\w/]+\.md", str(nav))
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_api_page_has_docstrings(site):
    page = (site / "api" / "index.html").read_text()
    for name in re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in page
    assert "share of the peaks" in page or "Bytes, phase and bucket of the most a chip ever holds" in page


def test_the_changelog_is_the_repository_s(site):
    page = (site / "changelog" / "index.html").read_text()
    told = re.findall(r"^- ([^`(\[*_\"'&<>\n]{25,60})", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(told) > 20
    assert all(line.strip() in page for line in told)


def test_links_of_files_outside_the_site_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / name).read_text()):
            assert target.startswith("http") or (ROOT / target).exists(), f"{name}: {target}"


def test_the_commands_page_is_written_anew():
    written = runpy.run_path(str(ROOT / "tools" / "commands_page.py"))["commands_page"]
    page = (DOCS / "commands.md").read_text()
    assert written(page) == page, "run python tools/commands_page.py"
    assert all(f"`jvr1 {name}`" in page for name in COMMANDS)


def test_the_quickstarts_figures_are_counted_anew():
    """Memory and time of every machine are what `jvr1 plan` counts now, and each run fits."""
    tool = runpy.run_path(str(ROOT / "tools" / "quickstart_figures.py"))
    page = (DOCS / "quickstarts.md").read_text()
    assert tool["with_figures"](page) == page, "run python tools/quickstart_figures.py"
    plans = [tool["plan_of_command"](line)[1] for line in re.findall(r"^jvr1 plan .*$", page, re.MULTILINE)]
    plans = [plan for plan in plans if plan is not None]
    assert len(plans) == 12
    for plan in plans:
        assert plan.peak()[0] < 0.87 * plan.chip.memory  # the count may be 15% too low
        batch = plan.step.config.batch
        assert batch.micro * batch.per_step == 32
