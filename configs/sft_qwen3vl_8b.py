"""Cold start of Qwen3-VL-8B on Video-R1-COT-165k: configs/sft_7b.py with this model, its sizes and buckets."""

from ml_collections import ConfigDict
from sft_7b import get_config as of_7b
from tgrpo_qwen3vl_8b import set_media


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = "Qwen/Qwen3-VL-8B-Instruct"
    set_media(config)
    return config
