"""One command for all: what it lists, what it imports, what it says of a mistake; configs by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY

from jvr1 import __main__ as console
from jvr1 import __version__
from jvr1.config import from_file
from jvr1.config_files import config_place, own_configs
from jvr1.errors import UserError


def test_each_command_is_listed_with_a_line(capsys):
    console.run([])
    lines = capsys.readouterr().out.splitlines()
    listed = {words[0]: words[1:] for line in lines if line.startswith("  ") and (words := line.split())}
    assert listed.keys() == console.COMMANDS.keys()
    assert all(len(words) > 3 for words in listed.values())
    console.run(["--version"])
    assert capsys.readouterr().out == f"jvr1 {__version__}\n"


def test_help_of_a_command_is_its_own(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jvr1"])
    told = []
    for arguments in (["help", "report"], ["report", "--help"]):
        with pytest.raises(SystemExit) as end:
            console.run(arguments)
        assert end.value.code == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "jvr1 report WORKDIR" in told[0]
    console.run(["help"])
    assert "usage: jvr1 COMMAND" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no command 'reprot'; did you mean 'report'"):
        console.run(["help", "reprot"])


def test_every_module_of_commands_and_every_main_is_a_command():
    package = REPOSITORY / "jvr1"
    modules = {f"jvr1.commands.{p.stem}" for p in (package / "commands").glob("*.py") if p.stem != "__init__"}
    for file in package.glob("*.py"):
        names = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
        modules |= {f"jvr1.{file.stem}"} if "command" in names else set()
    assert {entry.module for entry in console.COMMANDS.values()} == modules
    for name, entry in console.COMMANDS.items():
        assert f"jvr1 {name} " in (REPOSITORY / f"{entry.module.replace('.', '/')}.py").read_text().split('"""')[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train_rl", "there is no command 'train_rl'; did you mean 'train-rl'?"),
        ("evalaute", "there is no command 'evalaute'; did you mean 'evaluate'?"),
        ("xyzzy", "there is no command 'xyzzy'; jvr1 --help lists them"),
    ],
)
def test_an_unknown_command_names_the_nearest(name, told):
    with pytest.raises(UserError) as raised:
        console.run([name])
    assert str(raised.value) == told


def test_only_what_is_asked_for_is_imported():
    """The list of commands needs neither JAX nor anything else that takes seconds."""
    told = "from jvr1.__main__ import run; import sys; run(['--help']); print('imported', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.rpartition("imported ")[2].split())
    assert not {"jax", "numpy", "tensorflow", "transformers"} & imported
    assert "jvr1.errors" in imported
    assert not {entry.module for entry in console.COMMANDS.values()} & imported


def test_a_command_gets_its_arguments_and_its_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["jvr1"])
    assert console.run(["plan", "--chips"]) == 0
    assert "| v5p |" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"unrecognized arguments: --colour; jvr1 demo-data --help lists"):
        console.run(["demo-data", str(tmp_path / "d"), "--colour"])


# --- configs by name


def test_a_config_by_name_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert own_configs().keys() == {p.stem for p in (REPOSITORY / "configs").glob("*.py")}
    assert config_place("tiny:rl") == f"{REPOSITORY / 'configs' / 'tiny.py'}:rl"
    named, filed = from_file("tiny:rl"), from_file(str(REPOSITORY / "configs" / "tiny.py") + ":rl")
    assert named.to_json() == filed.to_json()


def test_a_file_of_one_s_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from jvr1.config import default\ndef get_config(name='x'): return default()\n")
    assert config_place("mine.py:y") == "mine.py:y"
    assert from_file("mine.py").seed == from_file("./mine.py:z").seed
    assert config_place("tgrpo_7b") == str(REPOSITORY / "configs" / "tgrpo_7b.py")


def test_what_lies_in_the_working_directory_does_not_hide_a_config(tmp_path, monkeypatch):
    """`--config tgrpo_7b --workdir tgrpo_7b` goes on."""
    monkeypatch.chdir(tmp_path)
    Path("tgrpo_7b").mkdir()
    Path("tiny").write_text("notes")
    Path("tiny:rl").mkdir()
    assert config_place("tgrpo_7b") == str(REPOSITORY / "configs" / "tgrpo_7b.py")
    assert config_place("tiny:rl") == f"{REPOSITORY / 'configs' / 'tiny.py'}:rl"
    assert config_place("tiny") == str(REPOSITORY / "configs" / "tiny.py")
    Path("sft_7b.py").write_text("def get_config(): ...")
    assert config_place("sft_7b.py") == "sft_7b.py"
    with pytest.raises(UserError, match="config file tgrpo_7b is a folder"):
        config_place("./tgrpo_7b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tgrpo_8b", "there is no config 'tgrpo_8b'; did you mean tgrpo_7b or tgrpo_3b or tgrpo_qwen3vl_8b?"),
        ("xyzzy:rl", "there is no config 'xyzzy'; there are ablation, bestofn_7b, .* and files of your own"),
        (
            "configs/tiny.py:rl",
            "config file configs/tiny.py does not exist; .* without folder: --config tiny:rl",
        ),
        ("mine.py", r"config file mine.py does not exist$"),
        ("folder", "config file folder is a folder; name a file in it"),
        ("text.json", r"config file text.json is no Python file; name one with a get_config\(\), or one of ablation"),
    ],
)
def test_what_is_no_config_is_said(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.json").write_text("{}")
    with pytest.raises(UserError, match=told):
        config_place(text)


def test_no_message_names_a_file_that_the_wheel_has_not():
    """Strings of the package but docstrings: a user without a checkout reads them. Help of settings is shown with the
    names of the docs' pages."""
    for file in (REPOSITORY / "jvr1").rglob("*.py"):
        if file.name in ("config_sections.py", "config_page.py", "objectives.py") or file.parent.name == "optimizers":
            continue
        tree = ast.parse(file.read_text())
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                assert not any(f"{folder}/" in node.value for folder in ("docs", "tools", "launch")), (file, node.value)
