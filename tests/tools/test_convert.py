"""jvr1 convert and jvr1 export: HF folder -> converted -> HF folder; mistakes are one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch
from safetensors.torch import load_file

from jvr1.commands import convert, export
from jvr1.errors import run_main
from jvr1.model import hf
from jvr1.model.families import from_hf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOOLS = {"convert": convert, "export": export}
CONFIG = from_hf(oracle.raw_config(num_hidden_layers=2, vision_depth=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools") / "hf"
    _, params = oracle.random_model(CONFIG)
    files = {"preprocessor_config.json": b"{}", "generation_config.json": b"{}"}
    hf.save(params, CONFIG, folder, carried=files, dtype="bfloat16", shard_bytes=100_000)
    return folder


def run(tool: str, *args, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a tool, run in this process."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
    with pytest.raises(SystemExit) as end:
        run_main(TOOLS[tool].main)
    return end.value.code, *capsys.readouterr()


def test_there_and_back_in_processes_of_their_own(source, tmp_path):
    """Exactly as a user runs them; the export differs in nothing but the processor's limits and the shards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    steps = (
        ["convert", source, tmp_path / "converted"],
        ["export", tmp_path / "converted", tmp_path / "out", "--min-pixels", "3136", "--max-pixels", "100352"],
    )
    for tool, *args in steps:
        command = [sys.executable, "-m", "jvr1", tool, *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        line = done.stdout.strip().splitlines()
        assert (len(line) == 1) == (tool == "convert")  # the export says what to do elsewhere
        assert line[0].startswith(f"{args[0]} -> {args[1]}: ")
        assert "parameters" in line[0]
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["max_pixels"] == 100352
    assert (tmp_path / "out" / "config.json").read_text() == (source / "config.json").read_text()
    given, got = (tensors(folder) for folder in (source, tmp_path / "out"))
    assert given == got


def tensors(folder: Path) -> dict[str, bytes]:
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    return {name: value.view(torch.uint8).numpy().tobytes() for file in files for name, value in file.items()}


@pytest.mark.parametrize("tool", ["convert", "export"])
def test_mistakes_are_one_line_and_exit_code_2(tool, source, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    cases = [
        ((tmp_path / "absent", tmp_path / "o1"), "absent does not exist; a model is"),
        (("nobody/no-such-model", tmp_path / "o2"), "cannot be fetched from the hub"),
        ((tmp_path / "bad", tmp_path / "o3"), "model_type is 'qwen2_vl'"),
        ((source, tmp_path), "is not empty; name a new folder"),
        ((source, tmp_path / "file" / "out"), "cannot be written: Not a directory"),
    ]
    for args, message in cases:
        code, out, err = run(tool, *args, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err


def test_pixel_limits_must_be_a_range(source, tmp_path, monkeypatch, capsys):
    for limits in (("--min-pixels", 5), ("--min-pixels", 5, "--max-pixels", 4)):
        code, _, err = run("export", source, tmp_path / "o", *limits, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2
        assert "must both be given, 0 < min <= max" in err
    assert not (tmp_path / "o").exists()
