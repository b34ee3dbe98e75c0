"""One way to open a model: HF folder, converted folder, workdir, checkpoint; what is wrong is said in one line."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import oracle
import orbax.checkpoint as ocp
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jvr1.errors import UserError
from jvr1.model import hf
from jvr1.model.families import from_hf, published
from jvr1.opening.models import locate, make_tokenizer, open_model, read_tokenizer, save_model
from jvr1.sharding import make_mesh, param_shardings

CONFIG = from_hf(oracle.raw_config(num_hidden_layers=2, vision_depth=2))


def tokenizer_files() -> dict[str, bytes]:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    return {"tokenizer.json": words.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


@pytest.fixture(scope="module")
def params():
    return oracle.random_model(CONFIG)[1]


@pytest.fixture(scope="module")
def root(params, tmp_path_factory):
    """All forms of one model: hf/, converted/, run/ (a workdir with steps 3 and 12)."""
    root = tmp_path_factory.mktemp("models")
    hf.save(params, CONFIG, root / "hf", carried=tokenizer_files(), dtype="float32")
    save_model(root / "converted", params, CONFIG, tokenizer_files())
    (root / "run" / "model").mkdir(parents=True)
    for name in ("config.json", *tokenizer_files()):
        shutil.copy(root / "converted" / name, root / "run" / "model" / name)
    with ocp.CheckpointManager(root / "run" / "checkpoints") as manager:
        for step, values in ((3, jax.tree.map(lambda x: 2 * x, params)), (12, params)):
            manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(values)))
    return root


@pytest.mark.parametrize(
    ("source", "factor"), [("hf", 1), ("converted", 1), ("run", 1), ("run/checkpoints/12", 1), ("run/checkpoints/3", 2)]
)
def test_every_form_opens_on_the_mesh(params, root, source, factor):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = open_model(root / source, mesh, param_dtype="float32")
    assert model.config == CONFIG
    assert model.carried == tokenizer_files()
    assert model.source == str(root / source)
    assert jax.tree.map(lambda x: x.sharding, model.params) == param_shardings(params, mesh)
    jax.tree.map(lambda got, want: np.testing.assert_array_equal(got, factor * want), model.params, params)


@pytest.mark.parametrize("source", ["hf", "converted"])
def test_parameters_take_the_dtype_asked_for(params, root, source):
    model = open_model(root / source, make_mesh({}, jax.devices()[:1]), param_dtype="bfloat16")
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype("bfloat16")), model.params, params)


def test_the_tokenizer_comes_from_the_carried_files(root):
    for source in ("hf", "converted", "run", "run/checkpoints/3"):
        assert read_tokenizer(root / source)("a b zzz")["input_ids"] == [0, 1, 2]


def test_tokenizers_that_cannot_be_read(root):
    with pytest.raises(UserError, match=r"^here holds no tokenizer.json"):
        make_tokenizer({}, published("7b"), "here")
    with pytest.raises(UserError, match=r"^here: the tokenizer files cannot be read: "):
        make_tokenizer({"tokenizer.json": b"{"}, published("7b"), "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", r"/nowhere/model does not exist; a model is an HF folder, a hub id"),
        ("nobody/no-such-model", r"nobody/no-such-model is no folder here, and cannot be fetched from the hub: .*"),
    ],
)
def test_models_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message) as error:
        locate(name)
    assert "\n" not in str(error.value)


def test_a_workdir_without_a_finished_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"checkpoints holds no finished checkpoint yet"):
        locate(tmp_path)
    (tmp_path / "checkpoints" / "7").mkdir()
    with pytest.raises(UserError, match=r"checkpoints/7/params does not exist"):
        locate(tmp_path / "checkpoints" / "7")


def change(root, folder, **fields):
    """The converted model with another config.json."""
    shutil.copytree(root / "converted", folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | fields))
    (folder / "checksums.json").unlink()
    return folder


def test_parameters_that_do_not_fit_config_json(root, tmp_path):
    mesh = make_mesh({}, jax.devices()[:1])
    cases = {
        r"parameter text/layers/mlp/down/kernel has shape \(2, 80, 48\); config.json asks for \(2, 81, 48\)":
            {"intermediate_size": 81},
        "1 unexpected parameters, the first text/head/kernel": {"tie_word_embeddings": True},
    }  # fmt: skip
    for i, (message, fields) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            open_model(change(root, tmp_path / str(i), **fields), mesh)
    broken = change(root, tmp_path / "broken")
    shutil.rmtree(broken / "params")
    (broken / "params").mkdir()
    with pytest.raises(UserError, match=r"params holds no readable parameters"):
        open_model(broken, mesh)


def test_a_tensor_axis_that_cannot_split_the_model(root):
    with pytest.raises(UserError, match=r"valid sizes are 1, 2, 4$"):
        open_model(root / "converted", make_mesh({"tensor": 8}))


def test_a_converted_model_is_not_overwritten(params, root):
    with pytest.raises(UserError, match=r"converted is not empty; name a new folder"):
        save_model(root / "converted", params, CONFIG, {})
