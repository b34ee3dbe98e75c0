"""T-GRPO of Qwen3-VL-8B with LoRA on one GPU of 80 GB: configs/tgrpo_7b_lora.py with this model and its buckets."""

from ml_collections import ConfigDict
from tgrpo_7b_lora import get_config as of_7b
from tgrpo_qwen3vl_8b import set_media


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = "Qwen/Qwen3-VL-8B-Instruct"
    set_media(config)
    return config
