"""The reference's run, switch for switch: T-GRPO as Video-R1's trainer does it, quirks included (docs/deviations.md).

For comparison, not for use. What stays ours even here: no substitution of failed samples, no truncated prompt,
visual placeholders never sampled, both end ids known, and a microbatch of one bucket rather than of one prompt.
"""

from ml_collections import ConfigDict
from tgrpo_7b import get_config as ours


def get_config() -> ConfigDict:
    config = ours()
    config.data.real_seconds = False  # second_per_grid_ts is 1.0 throughout its training
    config.data.special_tokens_in_text = True  # its processor reads them so
    config.sampling.update({"temperature": 1.0, "top_p": 0.95, "top_k": 50})  # 50: its library's default
    config.reward.mode = "reference"
    config.rl.update(
        {
            "gate": "reference",
            "factor": 0.8,  # the paper: 1.0
            "min_distinct_frames": 0,
            "alpha": 0.0,
            "temporal_reward": 0.3,
            "correct_threshold": 0.1,  # the paper: 0.5
            "length_reward": 0.2,
            "length_min": 320,
            "length_max": 512,
            "length_all_right": True,
        }
    )
    config.batch.update({"micro": 8, "per_step": 1})  # 8 devices, one prompt each
    config.optimizer.update({"warmup_steps": 0, "weight_decay": 0.01, "clip_norm": 5.0, "steps": 32_500})
    config.model.param_dtype = "bfloat16"  # it trains in pure bf16
    return config
