"""T-GRPO of Qwen2.5-VL-7B on longer videos: --config configs/tgrpo_7b_long.py:64 or :128 frames, at 2 a second

configs/tgrpo_7b.py but for frames and buckets, and remat full: activations of long prompts. Memory and time by number
of frames, counted: docs/pods.md, "Long video".
"""

from ml_collections import ConfigDict
from tgrpo_7b import BUCKETS, COMPLETION
from tgrpo_7b import get_config as of_16

from jvr1.errors import UserError

TEXT = 192
# tokens of a step by its windows, as in configs/tgrpo_7b.py
TOKENS = {8: 128, 12: 144, 14: 168}


def bucket(steps: int, windows: int) -> tuple[str, int, int, int, int]:
    return ("video", steps, windows, steps * TOKENS[windows] + TEXT, COMPLETION)


def get_config(frames: str = "64") -> ConfigDict:
    if frames not in ("64", "128"):
        raise UserError(f"configs/tgrpo_7b_long.py has 64 and 128 frames, not {frames}")
    steps = int(frames) // 2
    config = of_16()
    config.data.video.max_frames = int(frames)
    pictures = tuple(one for one in BUCKETS if one[0] == "image")
    shorter = (bucket(8, 14), bucket(steps // 2, 14))
    config.data.buckets = (*pictures, *shorter, *(bucket(steps, windows) for windows in TOKENS))
    config.model.remat = "full"
    return config
