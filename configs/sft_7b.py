"""Cold start of Qwen2.5-VL-7B on Video-R1-COT-165k: --config configs/sft_7b.py --config.data.root=DIR

As Video-R1's: one epoch, lr 1e-6 falling linearly, no decay, clip 5, its system prompt without a full stop.
Departs from it: the loss covers the answer only (sft.loss_on_prompt=True is its way), and several rows a step.
"""

from ml_collections import ConfigDict
from tgrpo_7b import BUCKETS

from jvr1.config import default

ROWS, STEP = 165_000, 32


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "Qwen/Qwen2.5-VL-7B-Instruct"
    config.data.train = ("Video-R1-COT-165k.json",)
    config.data.system = "You are a helpful assistant"
    config.data.buckets = BUCKETS
    config.batch.update({"micro": 8, "per_step": STEP // 8})
    steps = ROWS // STEP
    config.optimizer.update(
        {"learning_rate": 1e-6, "schedule": "linear", "steps": steps, "weight_decay": 0.0, "clip_norm": 5.0}
    )
    config.train.update({"steps": steps, "save_every": 200})
    return config
