"""A small T-GRPO step as shapes: sizes that no two parameters' and activations' shapes have in common."""

from __future__ import annotations

from ml_collections import ConfigDict

from jvr1.config import default
from jvr1.model.config import ModelConfig, TextConfig, VisionConfig

SMALL = ModelConfig(
    TextConfig(128, 5, 8, 4, 176, 528, mrope_section=(2, 3, 3)),
    VisionConfig(depth=4, hidden=64, heads=4, intermediate=112, out_hidden=128, full_blocks=(1, 3)),
    tied=False,
    image_token=520,
    video_token=521,
    vision_start_token=522,
    vision_end_token=523,
)
MID = ModelConfig(
    TextConfig(512, 8, 8, 2, 1408, 16_384, mrope_section=(8, 12, 12)),
    VisionConfig(depth=8, hidden=320, heads=8, intermediate=864, out_hidden=512, full_blocks=(3, 7)),
    tied=False,
    image_token=16_380,
    video_token=16_381,
    vision_start_token=16_382,
    vision_end_token=16_383,
)
MID_BUCKET = ("video", 8, 8, 1224, 384)


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
