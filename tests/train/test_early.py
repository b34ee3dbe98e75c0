"""Cheap mistakes are said before a model is looked for."""

from __future__ import annotations

import sys

import pytest

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.train.early import check_data_files
from jvr1.train.setup import open_run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__root": "/no/root"}, "data.train names rl.json, which is not in data.root /no/root"),
        ({"data__train": "other.json"}, "data.train names other.json, which is not in data.root"),
        ({"data__valid": "other.json"}, "data.valid names other.json, which is not in data.root"),
        ({"data__train": "early_broken.json"}, "early_broken.json"),
        ({"data__root": ""}, "data.train names rl.json, which is not in this folder: data.root is empty"),
        ({"reward__user": "no_such_module:reward"}, "no_such_module"),
        ({"train__wandb": "video"}, "train.wandb is 'video' but wandb is not installed"),
    ],
)
def test_before_the_model_is_opened(demo, tmp_path, monkeypatch, changes, message):
    """The model is none: whoever opened it first would say that."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    (demo.root / "early_broken.json").write_text('[{"problem_id": 1,')
    changes = {"batch__micro": 8, "model__source": "/no/such/model", "reward__user": ""} | changes
    config, workdir, *_ = settings.parse(["rl", *demo.arguments("rl", tmp_path / "run", **changes)])
    with pytest.raises(UserError, match=r".") as raised:
        open_run(config, workdir, targets=False)
    assert message in str(raised.value)
    assert "/no/such/model" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ['{"frage": "Which?"}\n{"frage": "When?"}\n', '[{"frage": "Which?"}]'])
def test_files_of_other_forms_and_fields_pass(tmp_path, text):
    """Whether their records are whole is said when they are read, under the names of data.fields."""
    (tmp_path / "own.json").write_text(text)
    changes = {"root": str(tmp_path), "train": ("own.json",), "fields": ("problem=frage",)}
    config = settings.default()
    config.data.update(changes)
    config.train.validate_every = 0
    check_data_files(config)


def test_a_file_of_validation_is_not_needed_where_there_is_none(demo, tmp_path):
    changes = {"batch__micro": 8, "model__source": "/no/such/model", "reward__user": "", "train__validate_every": 0}
    config, workdir, *_ = settings.parse(
        ["rl", *demo.arguments("rl", tmp_path / "run", data__valid="no.json", **changes)]
    )
    with pytest.raises(UserError, match="/no/such/model does not exist"):
        open_run(config, workdir, targets=False)
