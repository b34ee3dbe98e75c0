"""Best-of-n fine-tuning of Qwen2.5-VL-7B on Video-R1-260k (jvr1.train_bestofn): the prompts and shapes of
configs/tgrpo_7b.py, and the sum of log-probabilities of one completion a prompt. Not tuned here.
"""

from ml_collections import ConfigDict
from tgrpo_7b import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    config.rl.update({"group": 8, "shuffled": 0, "gate": "none"})
    config.bestofn.threshold = 1.5
    return config
