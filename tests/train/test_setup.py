"""What a run cannot start with is said in one line, before anything is written."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from runs import REPOSITORY

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.train.setup import files_of, open_run


def opening(demo, workdir, **changes) -> str:
    """What `open_run` objects to. Eight devices: microbatches of eight rows."""
    config, folder, *_ = settings.parse(["sft", *demo.arguments("sft", workdir, **({"batch__micro": 8} | changes))])
    with pytest.raises(UserError) as error:
        open_run(config, folder, targets=True)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch__micro": 12}, "batch.micro=12 rows cannot be split 8 ways"),
        ({"mesh__fsdp": 3}, "does not fit 8 devices"),
        ({"mesh__tensor": 8, "mesh__fsdp": 1}, "mesh.tensor=8 cannot split 4 query heads"),
        ({"optimizer__schedule": "cosine", "optimizer__steps": 9}, "optimizer.steps=9 ends the cosine schedule before"),
        ({"optimizer__freeze": "vision/.*"}, "matches no parameter"),
        ({"model__source": "/no/such/model"}, "/no/such/model does not exist; a model is"),
        ({"data__root": "/no/such/root"}, "/no/such/root"),
        ({"data__train": "other.json"}, "other.json"),
        ({"data__train": "broken.json"}, "broken.json"),
        ({"data__buckets": (("image", 1, 1, 9, 9),)}, "records are dropped"),
    ],
)
def test_what_cannot_be_opened_is_said_and_leaves_no_settings(demo, tmp_path, changes, message):
    (demo.root / "broken.json").write_text('[{"problem_id": 1,')
    said = opening(demo, tmp_path / "run", **changes)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "run" / "config.json").exists()
    if "data__buckets" not in changes:  # an index was made, and says why no row fits
        assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be(demo, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"{tmp_path / 'file'} is a file" in opening(demo, workdir)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_that_is_none(demo, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in opening(demo, tmp_path / "run", model__source=tmp_path / "empty")


def test_the_command_line_ends_with_code_2_and_one_line(demo, tmp_path):
    command = [sys.executable, "-m", "jvr1.train_rl", *demo.arguments("rl", tmp_path / "run", data__root="/no/root")]
    done = subprocess.run(command, env=demo.environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "/no/root" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("validate_every", [0, 3])
def test_the_files_that_processes_must_find_alike(tmp_path, validate_every):
    """Those of validation where there is one; of a model what describes it."""
    contents = {"a.json": b"[1]", "b.json": b"[2]", "held.json": b"[3]", "other.json": b"[4]", "config.json": b"{}"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    config = settings.default()
    config.data.root = config.model.source = str(tmp_path)
    config.data.train, config.data.valid = ("a.json", "b.json"), ("held.json", "other.json")
    config.train.validate_every = validate_every
    there = ["a.json", "b.json", *(["held.json", "other.json"] if validate_every else []), "config.json"]
    hashes = {name: hashlib.sha256(contents[name]).hexdigest()[:12] for name in there}
    hashes["model.source/config.json"] = hashes.pop("config.json")
    assert files_of(config) == hashes | {"model.source/model.safetensors.index.json": None}
