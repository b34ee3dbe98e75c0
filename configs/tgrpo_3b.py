"""T-GRPO of Qwen2.5-VL-3B: configs/tgrpo_7b.py with the smaller model."""

from ml_collections import ConfigDict
from tgrpo_7b import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = (
        "Qwen/Qwen2.5-VL-3B-Instruct"  # no published cold start of this size: run configs/sft_7b.py on it
    )
    return config
