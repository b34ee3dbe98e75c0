"""Export of adapters: merged into the weights, and as a folder for `peft`; transformers and peft give our logits."""

from __future__ import annotations

import json
import warnings

import jax
import numpy as np
import oracle
import peft
import pytest
import torch
from oracle import Item, our_inputs, tokens, torch_inputs
from test_convert import run, tensors
from transformers import Qwen2_5_VLForConditionalGeneration

from jvr1.model import hf, vision_language
from jvr1.model.lora import ADAPTERS, LoRAConfig
from jvr1.model.qwen2_5_vl.weights import published_name
from jvr1.opening.models import open_model, save_model
from jvr1.sharding import make_mesh, param_shardings
from jvr1.train.optimizer import combine, partition

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
CASES = {
    "everywhere": LoRAConfig(4, 6.0, (".*",)),
    "attention of the tower, MLP of the decoder": LoRAConfig(
        3, 4.0, ("visual/blocks/(qkv|proj)", "text/layers/mlp/.*")
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A torch model and its folder."""
    folder = tmp_path_factory.mktemp("base")
    model = oracle.torch_model(oracle.raw_config())
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module", params=CASES)
def adapted(request, base, tmp_path_factory):
    """A model folder of that base with trained adapters, as a workdir has them, and how its adapters are."""
    lora, folder = CASES[request.param], tmp_path_factory.mktemp("adapted") / "model"
    config = hf.read_config(base[1])
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    _, shapes = vision_language.abstract(config)
    params = hf.load(base[1], config, shapes, param_shardings(shapes, mesh))
    adapters, _ = partition(oracle.random_model(config, lora=lora)[1], (), ADAPTERS)
    save_model(folder, combine(adapters, params), config, {}, lora)
    return folder, lora


def exported(adapted, out, *arguments, monkeypatch, capsys):
    code, line, err = run("export", adapted[0], out, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    return line


def inputs():
    rng = np.random.default_rng(1)
    items = [Item(rng, 4, 4, 6, 1.0), Item(rng, 1, 4, 4)]
    return tokens(rng, 3, *items, 6), items


def logits(model) -> np.ndarray:
    config = hf.from_hf(oracle.raw_config())
    with torch.no_grad():
        return model(**torch_inputs(*inputs(), config)).logits[0].numpy()


def our_logits(folder) -> np.ndarray:
    opened = open_model(folder, make_mesh({"data": 1}, jax.devices()[:1]), dtype="float32", param_dtype="float32")
    model = vision_language.merge(opened.graphdef, opened.params)
    return np.asarray(jax.jit(lambda m, p, v: m.logits(m(p, v)))(model, *our_inputs(*inputs(), opened.config)))[0]


def onto_base(base, folder) -> peft.PeftModel:
    """The adapters on a fresh copy of the base, with no word of keys that are missing or too many."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base[1], dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(adapter|keys).*")
        adapted = peft.PeftModel.from_pretrained(model, folder)
    said = adapted.load_adapter(folder, "again")
    assert said.unexpected_keys == []
    assert [key for key in said.missing_keys if "again" in key] == []
    return adapted.eval()


def test_merged_and_peft_give_the_logits_that_we_give(base, adapted, tmp_path, monkeypatch, capsys):
    exported(adapted, tmp_path / "merged", "--dtype=float32", monkeypatch=monkeypatch, capsys=capsys)
    exported(adapted, tmp_path / "peft", "--peft", monkeypatch=monkeypatch, capsys=capsys)
    ours = our_logits(adapted[0])
    merged, said = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    there = logits(onto_base(base, tmp_path / "peft"))
    assert np.abs(there - logits(base[0])).max() > 0.1  # the adapters do something
    np.testing.assert_allclose(logits(merged.eval()), there, **TOLERANCE)
    np.testing.assert_allclose(ours, there, **TOLERANCE)
    np.testing.assert_allclose(our_logits(tmp_path / "merged"), there, **TOLERANCE)


def test_the_peft_folder_names_every_adapted_module_and_no_other(base, adapted, tmp_path, monkeypatch, capsys):
    folder, lora = adapted
    line = exported(adapted, tmp_path / "peft", "--peft", monkeypatch=monkeypatch, capsys=capsys)
    written = {p.name for p in (tmp_path / "peft").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "checksums.json"}
    config = peft.PeftConfig.from_pretrained(tmp_path / "peft")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (lora.rank, lora.alpha, 0.0, "none")
    written = tensors(tmp_path / "peft")
    model = onto_base(base, tmp_path / "peft")
    modules = {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert set(written) == {f"{name}.lora_{x}.weight" for name in modules for x in "AB"}
    count = sum(len(x) for x in written.values()) // 4
    assert f" {count:,} parameters, " in line
    adapters, _ = partition(open_model(folder, make_mesh({}, jax.devices()[:1])).params, (), ADAPTERS)
    assert count == sum(x.size for x in jax.tree.leaves(adapters))


def test_merged_weights_are_the_sum_rounded_once(base, adapted, tmp_path, monkeypatch, capsys):
    """In bfloat16 too; what has no adapter is as it was. The oracle is `merge_and_unload`."""
    exported(adapted, tmp_path / "merged", monkeypatch=monkeypatch, capsys=capsys)
    exported(adapted, tmp_path / "peft", "--peft", monkeypatch=monkeypatch, capsys=capsys)
    merged = onto_base(base, tmp_path / "peft").merge_and_unload()
    reader = hf.ShardReader(hf.epath.Path(tmp_path / "merged"), rename=str)
    before = dict(base[0].named_parameters())
    for name, want in merged.named_parameters():
        got = np.asarray(reader.read(published_name(name)), np.float32)
        want = want.detach()
        rounded = want.to(torch.bfloat16).float().numpy()
        if torch.equal(want, before[name]):
            np.testing.assert_array_equal(got, rounded, err_msg=name)
        # sums in another order may round to the neighbour
        assert np.abs(got - want.numpy()).max() <= 2**-8 * np.abs(want.numpy()).max(), name
        assert np.mean(got != rounded) < 1e-3, name
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_without_adapters_there_is_nothing_to_export_for_peft(base, tmp_path, monkeypatch, capsys):
    arguments = (base[1], tmp_path / "out", "--peft")
    code, out, err = run("export", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err == f"error: {base[1]} has no adapters, so --peft has nothing to write; leave it out\n"
    assert not (tmp_path / "out").exists()


def test_a_converted_model_keeps_its_adapters(adapted, tmp_path, monkeypatch, capsys):
    code, _, err = run(
        "convert", adapted[0], tmp_path / "again", "--dtype=float32", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0, err
    np.testing.assert_array_equal(our_logits(tmp_path / "again"), our_logits(adapted[0]))
