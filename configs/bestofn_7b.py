"""Best-of-n fine-tuning of Qwen2.5-VL-7B on Video-R1-260k: jvr1.train_bestofn --config configs/bestofn_7b.py

Prompts, shapes and optimizer are those of configs/tgrpo_7b.py, and so is the number of completions. Not tuned here.
"""

from ml_collections import ConfigDict
from tgrpo_7b import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.rl.update({"shuffled": 0, "gate": "none", "beta": 0.0})  # there are none
    config.bestofn.threshold = 1.5
    return config
