"""Qwen3-VL counted: FLOPs beside XLA's count, what the backward pass keeps beside jax.vjp's residuals, plans."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import deep
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1 import config as settings
from jvr1.chips import chip_named
from jvr1.data.batch import Bucket, empty_example
from jvr1.model import vision_language
from jvr1.model.families import from_hf, published
from jvr1.model.flops import Trained, Walk
from jvr1.model.lora import LoRAConfig
from jvr1.model.qwen3_vl.tower import DeepTower
from jvr1.plan import memory
from jvr1.plan.planning import changed, counted_shapes, largest_bucket, make_plan, named_model
from jvr1.train.optimizer import combine

pytestmark = pytest.mark.optimised
ROOT = Path(__file__).parents[2]
CONFIGS = {name: str(ROOT / "configs" / f"{name}.py") for name in ("tgrpo_qwen3vl_8b", "tgrpo_qwen3vl_4b")}


def test_flops_of_the_tower_are_those_of_the_program(monkeypatch):
    """XLA's count, its layers one after the other."""
    config = from_hf(
        deep.raw_config(
            hidden_size=256, num_attention_heads=16, vision_hidden_size=256, vision_num_heads=4,
            vision_intermediate_size=1024, vision_out_hidden_size=256, vision_num_position_embeddings=64,
        )
    )  # fmt: skip
    bucket = Bucket("video", 2, 3, 8, 4)
    graphdef, params = vision_language.abstract(config)
    visual = empty_example(bucket, config).visual
    visual = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), visual)
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))

    def levels(params, visual):
        tower = vision_language.merge(graphdef, params).visual
        assert isinstance(tower, DeepTower)
        return tower.levels(visual)

    run = jax.jit(levels)
    walk = Walk(Trained())
    assert walk.tower(config, bucket.steps, bucket.windows)
    assert walk.sums.forward == pytest.approx(run.lower(params, visual).cost_analysis()["flops"], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_what_the_backward_pass_keeps_is_what_jax_keeps(remat):
    config = settings.from_file(CONFIGS["tgrpo_qwen3vl_4b"])
    model, bucket = published("qwen3-vl-4b"), largest_bucket(settings.buckets(config))
    step = counted_shapes(changed(config, {"mesh.fsdp": 1, "batch.micro": 1, "model.remat": remat}), model)

    def residuals(trainable, frozen, arrays, ids):
        def hidden(trainable):
            module = vision_language.merge(step.graphdef, combine(trainable, frozen))
            return module.complete(arrays.prompt, arrays.visual, ids)

        return jax.vjp(hidden, trainable)[1]

    def unplaced(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *np.shape(x)), np.asarray(x).dtype), empty_example(bucket, model)
    )
    ids = jax.ShapeDtypeStruct((1, config.rl.group, bucket.completion), jnp.int32)
    kept = jax.eval_shape(residuals, unplaced(step.state.params), unplaced(step.frozen), one, ids)
    blocks = [x.shape[1:] for x in jax.tree.leaves(step.params["visual"]["blocks"])]
    weights = {x.shape for x in jax.tree.leaves(step.params)} | {(6, *shape) for shape in blocks}
    expected = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept) if x.shape not in weights)
    assert memory.kept_bytes(step, bucket) == pytest.approx(expected, rel=0.12)


def test_its_configs_are_planned():
    """The 8B on eight H100 and on a v5p slice of eight chips."""
    config = changed(settings.from_file(CONFIGS["tgrpo_qwen3vl_8b"]), {"mesh.fsdp": 8})
    assert named_model(config.model.source) == published("qwen3-vl-8b")
    assert named_model("Qwen/Qwen3-VL-32B-Thinking") == published("qwen3-vl-32b")
    for chip in ("h100-80", "v5p"):
        plan = make_plan(config, published("qwen3-vl-8b"), chip_named(chip))
        assert plan.fits
        assert plan.memory[largest_bucket(settings.buckets(config))]["update"]["parameters"] == pytest.approx(
            4 * 8_767_123_696 / 8, rel=1e-3
        )


def test_adapters_are_of_its_linear_maps():
    maps = LoRAConfig(2, 4.0, ("text/layers/.*", "visual/blocks/mlp/.*", "visual/deepstack/merge_in"))
    _, shapes = vision_language.abstract(from_hf(deep.raw_config()), lora=maps)
    found = {
        jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }
    adapted = {path.removesuffix("/lora_a") for path in found if path.endswith("lora_a")}
    assert adapted == {
        *(f"text/layers/{name}" for name in ("q", "k", "v", "o", "mlp/gate", "mlp/up", "mlp/down")),
        "visual/blocks/mlp/up", "visual/blocks/mlp/down", "visual/deepstack/merge_in",
    }  # fmt: skip
