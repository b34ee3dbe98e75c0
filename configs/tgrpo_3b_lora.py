"""T-GRPO of Qwen2.5-VL-3B with LoRA on one GPU of 24 GB: --config tgrpo_3b_lora --config.data.root=DIR

configs/tgrpo_7b_lora.py with the smaller model, and 16 prompts sampled at a time: docs/quickstarts.md. There is no
published cold start of this size: run configs/sft_3b_lora.py first, then --config.model.source=WORKDIR_OF_SFT.
"""

from ml_collections import ConfigDict
from tgrpo_7b_lora import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = "Qwen/Qwen2.5-VL-3B-Instruct"
    config.rl.slots = 16
    return config
