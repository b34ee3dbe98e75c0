"""T-GRPO of Qwen2.5-VL-7B with LoRA on one GPU of 80 GB: --config configs/tgrpo_7b_lora.py --config.data.root=DIR

configs/tgrpo_7b.py but for what stands here: docs/lora.md. Start from the cold start merged or as it is:
--config.model.source=WORKDIR_OF_SFT.
"""

from ml_collections import ConfigDict
from tgrpo_7b import get_config as of_7b


def get_config() -> ConfigDict:
    config = of_7b()
    # all linear maps of the decoder; the vision tower stays as it is, and needs no backward pass
    config.lora.update({"rank": 32, "alpha": 64.0, "patterns": ("text/layers/.*",)})
    # ten times the rate of a full update, as is usual with adapters; not tuned here
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.0  # would pull the adapters towards the base, which KL does already
    # the same 32 prompts a step in smaller parts: 2 prompts with 8 completions each go through a pass at a time
    config.batch.update({"micro": 2, "per_step": 16})
    config.train.save_every = 100  # a checkpoint holds the base too
    return config
