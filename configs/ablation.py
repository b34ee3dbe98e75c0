"""T-GRPO beside what it is compared with, on the demo's model: --config configs/ablation.py:ARM (tools/ablation.py).

All arms see the same prompts, sample as many completions on ordered and on shuffled frames, and take as many updates.
They differ in the temporal term alone; grpo has none and only logs its shuffled completions.
"""

from ml_collections import ConfigDict
from tiny import get_config as tiny

from jvr1.errors import UserError

ARMS = {
    "grpo": {"gate": "none", "alpha": 0.0},
    # the published bonus with its trainer's constants (configs/video_r1_7b.py); all else is as in the other arms
    "reference": {
        "gate": "reference",
        "factor": 0.8,
        "alpha": 0.0,
        "temporal_reward": 0.3,
        "correct_threshold": 0.1,
        "min_distinct_frames": 0,
    },
    "gap-0.3": {"gate": "gap", "alpha": 0.3},
    "gap-1": {"gate": "gap", "alpha": 1.0},
    "gap-3": {"gate": "gap", "alpha": 3.0},
}


def get_config(arm: str = "gap-0.3") -> ConfigDict:
    if arm not in ARMS:
        raise UserError(f"configs/ablation.py has no arm {arm!r}; use one of {', '.join(ARMS)}")
    config = tiny("rl")
    config.rl.update(ARMS[arm])
    config.train.update({"steps": 100, "validate_every": 20, "pictures_every": 0, "save_every": 100, "keep": 1})
    return config
