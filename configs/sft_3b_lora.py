"""Cold start of Qwen2.5-VL-3B with LoRA on one GPU of 24 GB: configs/sft_7b_lora.py with the smaller model."""

from ml_collections import ConfigDict
from sft_7b_lora import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = "Qwen/Qwen2.5-VL-3B-Instruct"
    return config
