"""HF folders in and out: equal to the bit from either name scheme, loaded by transformers; bad folders named."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from jvr1.errors import UserError
from jvr1.model import hf, vision_language
from jvr1.model.families import from_hf, published, to_hf
from jvr1.model.qwen2_5_vl.weights import published_name
from jvr1.model.safetensors import SAFETENSORS_INDEX
from jvr1.sharding import make_mesh, param_shardings

RAW = oracle.raw_config(num_hidden_layers=2, vision_depth=2)


@pytest.fixture(scope="module")
def tensors():
    """The tensors of a torch model under the names it holds them by, fp32."""
    return {k: v.clone().contiguous() for k, v in oracle.torch_model(RAW).state_dict().items()}


def write(folder, tensors, shards=1, raw=RAW):
    """An HF folder of the given tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    names = sorted(tensors)
    parts = [names[i::shards] for i in range(shards)]
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    )
    for file, part in zip(files, parts, strict=True):
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        weight_map = {n: f for f, part in zip(files, parts, strict=True) for n in part}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder, param_dtype="float32", **mesh):
    config = hf.read_config(folder)
    _, shapes = vision_language.abstract(config, param_dtype=param_dtype)
    devices = jax.devices()[: int(np.prod(list(mesh.values()) or [1]))]
    return config, hf.load(folder, config, shapes, param_shardings(shapes, make_mesh(mesh, devices)))


def all_tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    ("scheme", "dtype", "shards", "mesh"),
    [
        ("published", "float32", 1, {}),
        ("published", "bfloat16", 3, {"fsdp": 2, "tensor": 2}),
        ("in memory", "float32", 3, {"data": 2, "fsdp": 4}),
        ("in memory", "bfloat16", 1, {}),
    ],
)
def test_round_trip_is_equal_to_the_bit(tensors, tmp_path, scheme, dtype, shards, mesh):
    given = {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}
    wanted = {published_name(k): v for k, v in given.items()}
    config, params = load(write(tmp_path / "in", given if scheme == "in memory" else wanted, shards), dtype, **mesh)
    hf.save(params, config, tmp_path / "out", carried={}, dtype=dtype, shard_bytes=60_000 if shards > 1 else 10**9)
    got = all_tensors(tmp_path / "out")
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    if shards == 1:
        assert files == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "out" / SAFETENSORS_INDEX).read_text())
        assert sorted(set(index["weight_map"].values())) == files
        assert len(files) > 1
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in wanted.values())


@pytest.mark.parametrize("tied", [False, True])
def test_the_export_loads_in_transformers(tmp_path, tied):
    model = oracle.torch_model(RAW | {"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path / "in")
    config, params = load(tmp_path / "in")
    assert config.tied == tied
    assert ("head" in params["text"]) != tied
    hf.save(params, config, tmp_path / "out", carried={"generation_config.json": b"{}"}, dtype="float32")
    loaded, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for (name, got), want in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want), name
    assert from_hf(json.loads((tmp_path / "out" / "config.json").read_text())) == config


def test_the_published_config_is_read_and_written():
    for size in ("3b", "7b", "32b", "72b"):
        config = published(size)
        assert from_hf(to_hf(config, "bfloat16")) == config
    raw = to_hf(published("7b"), "bfloat16")
    sparse = {"hidden_size": 1280, "out_hidden_size": 3584, "tokens_per_second": 2, "in_chans": 3}
    assert from_hf(raw | {"vision_config": sparse}) == published("7b")


def test_tying_is_read_from_either_level():
    """transformers 4.5x wrote it into text_config and left the outer default."""
    nested = {k: RAW[k] for k in ("model_type", "vision_config", "image_token_id", "video_token_id")}
    nested |= {"text_config": RAW | {"tie_word_embeddings": True}, "tie_word_embeddings": False}
    assert from_hf(nested).tied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; jvr1 reads 'qwen2_5_vl'"),
        ({"model_type": "qwen3_vl_moe"}, "model_type is 'qwen3_vl_moe'"),
        ({"hidden_size": None}, "config.json: "),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be at least 1"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 4]}}, "must add up to half the head size, 6"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"vision_config": {"temporal_patch_size": 1}}, "temporal_patch_size is 1; it must be 2"),
        ({"vision_config": "none"}, "config.json: "),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
    ],
)
def test_configs_that_cannot_be_are_refused(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(RAW | change))
    with pytest.raises(UserError, match=message) as error:
        hf.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "config.json does not exist"), ("{", "config.json is not valid JSON"), ("[]", "a JSON object is expected")],
)
def test_an_absent_or_broken_config_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        hf.read_config(tmp_path)


NORM = "model.layers.1.input_layernorm.weight"


def test_a_missing_shard_is_named(tensors, tmp_path):
    folder = write(tmp_path / "in", tensors, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors is missing; model.safetensors.index.json"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_a_truncated_file_is_named(tensors, tmp_path, keep):
    file = write(tmp_path / "in", tensors) / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(keep if keep >= 0 else file.stat().st_size + keep)
    with pytest.raises(UserError, match=r"model.safetensors is truncated"):
        load(file.parent)


@pytest.mark.parametrize("header", [b"[]", b"{]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}'])
def test_a_file_of_another_kind_is_named(tensors, tmp_path, header):
    file = write(tmp_path / "in", tensors) / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"model.safetensors is not a safetensors file"):
        load(file.parent)


def test_missing_misshapen_unexpected_and_integer_tensors_are_named(tensors, tmp_path):
    given = {published_name(k): v for k, v in tensors.items()}
    cases = {
        f"tensor {NORM} is missing": {k: v for k, v in given.items() if k != NORM},
        f"tensor {NORM} has shape \\(7,\\); config.json asks for \\(48,\\)": given | {NORM: torch.ones(7)},
        "1 unexpected tensors, the first extra.weight": given | {"extra.weight": torch.ones(2)},
        f"tensor {NORM} has dtype I64": given | {NORM: torch.ones(48, dtype=torch.int64)},
    }
    for i, (message, changed) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            load(write(tmp_path / str(i), changed))


def test_outputs_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"is not empty; name a new folder"):
        hf.claim_folder(hf.epath.Path(tmp_path))
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=r"cannot be written: "):
            hf.claim_folder(hf.epath.Path(out))
    assert os.listdir(tmp_path) == ["file"]
