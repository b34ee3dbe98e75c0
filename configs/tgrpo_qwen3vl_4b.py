"""T-GRPO of Qwen3-VL-4B: configs/tgrpo_qwen3vl_8b.py with the smaller model."""

from ml_collections import ConfigDict
from tgrpo_qwen3vl_8b import get_config as of_8b


def get_config() -> ConfigDict:
    config = of_8b()
    config.model.source = "Qwen/Qwen3-VL-4B-Instruct"
    return config
