"""The wheel in an empty environment: all of jvr1 and nothing else, its commands run away from the source."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("jvr1", "tests", "tools", "configs", "launch", "docs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    wheel: Path
    python: Path
    folder: Path
    """Of the environment; commands run in it, outside of the source."""

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [self.python, *arguments], cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def pip(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Dependencies are those of the tests, found by a .pth file, which does not follow an editable install's own."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("jvr1-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    shutil.rmtree(source)
    return Installed(wheel, python, environment)


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    files = [p for p in (ROOT / "jvr1").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    configs = {f"jvr1/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    assert names - about == {str(p.relative_to(ROOT)) for p in files} | configs
    assert "jvr1/eval/report.html.jinja" in names
    assert {Path(name).name for name in about} >= {"METADATA", "LICENSE", "NOTICE"}


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


REFUSED: list[tuple[Sequence[str], str]] = [
    (["jvr1", "train"], "there is no command 'train'; did you mean 'train-rl'?"),
    (["jvr1", "train-rl", "--config=tgrpo_7", "--workdir=w"], "there is no config 'tgrpo_7'; did you mean tgrpo_7b"),
    (["jvr1", "train-rl", "--config=tgrpo_7b", "--workdir=w"], "data.train names Video-R1-260k.json, which is not in"),
    (["jvr1", "export", "nosuch", "out"], "nosuch does not exist"),
    (["jvr1.train_sft"], "both --config FILE and --workdir DIR are needed"),
    (["jvr1.train_bestofn"], "both --config FILE and --workdir DIR are needed"),
    (["jvr1.train_rl", "--config=nosuch.py", "--workdir=w"], "config file nosuch.py does not exist"),
    (["jvr1.evaluate", "--model=m"], "--suite"),
    (["jvr1.ask", "--model=nosuch", "--image=nosuch.png", "what is seen?"], "nosuch"),
    (["jvr1.annotate", "--no-such-option"], "--"),
]
HELP = ("train-rl", "evaluate", "index", "plan", "demo-data", "report")


def test_its_commands_run_where_there_is_no_source(installed):
    place = installed.start("-c", "import jvr1, jvr1.eval.page as p; print(jvr1.__file__, p.__file__, sep='\\n')")
    refusals = [installed.start("-m", *command) for command, _ in REFUSED]
    script = str(installed.python.with_name("jvr1"))
    helps = [installed.start(script, name, "--help") for name in HELP]
    code, out, error = ended(place)
    assert code == 0, error
    assert all(Path(line).is_relative_to(installed.folder) for line in out.split())
    for (command, said), process in zip(REFUSED, refusals, strict=True):
        code, out, error = ended(process)
        assert (code, out) == (2, ""), (command, out, error)
        assert error.count("\n") == 1, error
        assert error.startswith("error: "), error
        assert said in error, error
    for name, process in zip(HELP, helps, strict=True):
        code, out, error = ended(process)
        assert (code, error) == (0, ""), error
        assert f"jvr1 {name}" in out, out
        assert not re.search(r"\b(docs|tools|launch)/", out), out
