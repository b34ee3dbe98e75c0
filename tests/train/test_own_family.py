"""The family that docs/extending.md adds, Qwen2-VL: judged by transformers, converted, counted, trained, exported."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import oracle
import pytest
import torch
from runs import REPOSITORY, scalars
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen2VLForConditionalGeneration

import jvr1.model
from jvr1.commands import convert, export
from jvr1.data.batch import Bucket, empty_example
from jvr1.errors import UserError, run_main
from jvr1.model import families, hf, vision_language
from jvr1.model.families import from_hf, published, to_hf
from jvr1.model.flops import Trained, Walk
from jvr1.model.lora import LoRAConfig
from jvr1.opening.models import open_model
from jvr1.sharding import make_mesh, param_shardings, path_name
from tests.plan import test_memory

pytestmark = pytest.mark.slow
FILES = ("video_preprocessor_config", "generation_config")
TEXT = (REPOSITORY / "docs" / "extending.md").read_text()
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
VISION = {
    "depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 3, "hidden_size": 48, "in_chans": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu",
}  # fmt: skip
RAW = oracle.raw_config() | {
    "model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": VISION,
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the package as the page changes it."""
    root = tmp_path_factory.mktemp("changed")
    shutil.copytree(REPOSITORY / "jvr1", root / "jvr1", ignore=shutil.ignore_patterns("__pycache__"))
    (diff,) = re.findall(r"```diff\n(--- a/jvr1/model/families.py\n.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(["git", "apply"], input=diff, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = re.findall(r"```python\n# (jvr1/model/qwen2_vl/\w+\.py)\n(.*?)```", TEXT, re.DOTALL)
    assert len(files) == 2
    for name, content in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.fixture(scope="module")
def family(package):
    """The same in this process: its folder found beside the others, the table the changed one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jvr1.model, "__path__", [*jvr1.model.__path__, str(package / "jvr1" / "model")])
        importlib.import_module("jvr1.model.qwen2_vl")
        changed = ModuleType("changed_families")
        exec((package / "jvr1" / "model" / "families.py").read_text(), changed.__dict__)
        patch.setattr(families, "FAMILIES", changed.FAMILIES)
        yield families.FAMILIES["qwen2_vl"]
    for name in ("jvr1.model.qwen2_vl", "jvr1.model.qwen2_vl.tower"):
        sys.modules.pop(name, None)
    delattr(jvr1.model, "qwen2_vl")


@pytest.fixture(scope="module")
def theirs():
    return oracle.torch_model(RAW)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("qwen2_vl") / "hf"
    theirs.save_pretrained(out)
    return out


def prompts() -> list:
    rng = np.random.default_rng(0)
    item = oracle.Item
    return [
        [4, item(rng, 6, 8, 6), 3, item(rng, 1, 4, 10), 5],
        [2, item(rng, 1, 2, 22), item(rng, 3, 10, 6), 6],
    ]


def test_logits_and_positions_are_those_of_transformers(family, theirs, folder):
    config = hf.read_config(folder)
    assert config.family is family
    graphdef, shapes = vision_language.abstract(config)
    params = hf.load(folder, config, shapes, param_shardings(shapes, make_mesh({}, jax.devices()[:1])))

    def logits(params, prompt, visual):
        model = vision_language.merge(graphdef, params)
        return model.logits(model(prompt, visual))

    for parts in prompts():
        items = [part for part in parts if isinstance(part, oracle.Item)]
        ids = oracle.tokens(np.random.default_rng(1), *parts)
        given = oracle.torch_inputs(ids, items, config)
        kinds = torch.tensor(np.select([ids == oracle.IMAGE, ids == oracle.VIDEO], [1, 2]))[None]
        grids = {name: given[name] for name in given if "grid" in name}
        # the rule of transformers 5 is that of 4 for clips of no more steps than their longer side has tokens
        positions, delta = theirs.model.get_rope_index(given["input_ids"], kinds, **grids)
        np.testing.assert_array_equal(given["position_ids"], positions)
        prompt, visual = oracle.our_inputs(ids, items, config, len(ids) + 3, windows=4, steps=6)
        assert int(prompt.next_position[0]) == len(ids) + int(delta)
        with torch.no_grad():
            want = theirs(**given).logits[0].numpy()
        got = jax.jit(logits)(params, prompt, visual)[0, : len(ids)]
        np.testing.assert_allclose(got, want, **TOLERANCE)


def test_there_and_back_by_the_tools(family, folder, tmp_path, monkeypatch, capsys):
    for tool, arguments in (
        (convert, [folder, tmp_path / "converted", "--dtype=float32"]),
        (export, [tmp_path / "converted", tmp_path / "out", "--dtype=float32"]),
    ):
        monkeypatch.setattr(sys, "argv", ["jvr1", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_main(tool.main)
        assert end.value.code == 0, capsys.readouterr().err
    given, got = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "out"))
    given = {family.published_name(name): value for name, value in given.items()}
    assert set(given) == set(got)
    assert all(torch.equal(given[name], got[name]) for name in given)
    config = from_hf(RAW)
    assert from_hf(json.loads((tmp_path / "out" / "config.json").read_text())) == config
    written = AutoConfig.from_pretrained(tmp_path / "out")
    assert (written.model_type, written.vision_config.mlp_ratio) == ("qwen2_vl", 3)
    assert not (tmp_path / "out" / "text_positions.py").exists()
    with pytest.raises(UserError, match=r"^config.json: vision_config.hidden_act is \"gelu\"; it must be quick_gelu"):
        from_hf(RAW | {"vision_config": VISION | {"hidden_act": "gelu"}})


def test_every_parameter_is_known_and_linear_maps_take_adapters(family):
    config = from_hf(RAW)
    _, shapes = vision_language.abstract(config, lora=LoRAConfig(2, 4.0, ("visual/blocks/mlp/.*",)))
    ranks = {path_name(path): x.ndim for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    assert {path: len(families.known(path).axes) for path in ranks} == ranks
    assert {path.split("/")[-2] for path in ranks if path.endswith("lora_a")} == {"up", "down"}
    with pytest.raises(UserError, match="'visual/blocks/mlp/gate' matches no linear map of this model"):
        vision_language.abstract(config, lora=LoRAConfig(2, 4.0, ("visual/blocks/mlp/gate",)))
    assert to_hf(published("qwen2-vl-7b"), "bfloat16")["vision_config"]["embed_dim"] == 1280


def test_its_flops_are_those_of_the_program(family, monkeypatch):
    """XLA's count of the tower, its layers one after the other."""
    vision = VISION | {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 4}
    config, bucket = from_hf(RAW | {"vision_config": vision}), Bucket("video", 2, 3, 8, 4)
    graphdef, params = vision_language.abstract(config)
    visual = empty_example(bucket, config).visual
    visual = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), visual)
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    run = jax.jit(lambda params, visual: vision_language.merge(graphdef, params).visual(visual))
    walk = Walk(Trained())
    walk.tower(config, bucket.steps, bucket.windows)
    assert walk.sums.forward == pytest.approx(run.lower(params, visual).cost_analysis()["flops"], rel=0.03)


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_the_planner_counts_what_its_backward_pass_keeps(family, remat):
    test_memory.test_what_the_backward_pass_keeps_is_what_jax_keeps("qwen2-vl-2b", {"model.remat": remat})


def test_it_is_trained_and_exported(family, package, demo, tmp_path, monkeypatch, capsys):
    """Two steps of T-GRPO as a user starts them, on the demo's clips and with its tokenizer; transformers opens it."""
    raw = json.loads((demo.model / "config.json").read_text())
    raw |= {"model_type": "qwen2_vl", "vision_config": VISION | {"hidden_size": 128}}
    config, source = from_hf(raw), tmp_path / "source"
    hf.save(vision_language.init(config, 0)[1], config, source, carried=hf.read_carried(demo.model), dtype="float32")
    changes = {"model__source": source, "train__steps": 2, "train__validate_every": 0, "train__pictures_every": 1}
    command = [sys.executable, "-m", "jvr1.train_rl", *demo.arguments("rl", tmp_path / "run", **changes)]
    path = os.pathsep.join((str(package), str(REPOSITORY / "tests" / "train")))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == [1, 2]
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype=float32"])
    with pytest.raises(SystemExit) as end:
        run_main(export.main)
    assert end.value.code == 0, capsys.readouterr().err
    files = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in FILES}
    assert files["video_preprocessor_config"]["processor_class"] == "Qwen2VLProcessor"
    opened, told = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = open_model(tmp_path / "run", make_mesh({}, jax.devices()[:1]), param_dtype="float32").params
    mine = np.asarray(ours["visual"]["blocks"]["mlp"]["up"]["kernel"][1])
    np.testing.assert_array_equal(opened.model.visual.blocks[1].mlp.fc1.weight.detach().numpy().T, mine)
