"""A small T-GRPO step as shapes: sizes that no two parameters' and activations' shapes have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from jvr1.config import default
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.qwen2_5_vl.config import MODEL_TYPE, VisionConfig
from jvr1.plan.hlo import Collective
from jvr1.sharding import is_stacked, path_name

SMALL = ModelConfig(
    MODEL_TYPE,
    TextConfig(128, 5, 8, 4, 176, 528, mrope_section=(2, 3, 3)),
    VisionConfig(depth=4, hidden=64, heads=4, intermediate=112, out_hidden=128, full_blocks=(1, 3)),
    tied=False,
    image_token=520,
    video_token=521,
    vision_start_token=522,
    vision_end_token=523,
)


def small_config(**changes) -> ConfigDict:
    """One video bucket, 8 rows; `changes` as {'section.name': value}."""
    config = default()
    config.model.source = "small"
    config.data.train = ("train.json",)
    config.data.buckets = (("video", 2, 1, 40, 24),)
    config.batch.update({"micro": 8, "per_step": 2})
    config.rl.update({"group": 3, "shuffled": 2})
    with config.unlocked():
        for name, value in changes.items():
            section, _, key = name.partition(".")
            config[section][key] = value
    return config


def parameters(params: dict) -> dict[int, str]:
    """Number of values of each parameter and of one layer of it -> its path."""
    sizes = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        sizes[math.prod(x.shape)] = name
        if is_stacked(name):
            sizes[math.prod(x.shape[1:])] = f"a layer of {name}"
    return sizes


def moved(collectives: Sequence[Collective], params: dict) -> set[str]:
    """Parameters that collectives carry, whole or a layer of them."""
    sizes = parameters(params)
    return {sizes[n] for one in collectives for shape in one.shapes if (n := math.prod(shape)) in sizes}
