"""Cold start of Qwen2.5-VL-7B with LoRA on one GPU of 48 GB: --config sft_7b_lora --config.data.root=DIR

configs/sft_7b.py but for what stands here: docs/lora.md.
"""

from ml_collections import ConfigDict
from sft_7b import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.lora.update({"rank": 32, "alpha": 64.0, "patterns": ("text/layers/.*",)})
    config.optimizer.learning_rate = 1e-5  # ten times the rate of a full update, as is usual; not tuned here
    config.batch.update({"micro": 4, "per_step": 8})
    return config
