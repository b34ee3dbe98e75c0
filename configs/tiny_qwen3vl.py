"""The demo's tiny Qwen3-VL: configs/tiny.py with its prompt, which tells the time of each step, and its larger tokens.
--config configs/tiny_qwen3vl.py:warmup, :sft, :rl or :bestofn (tools/demo.sh --family qwen3_vl)."""

from ml_collections import ConfigDict
from tiny import get_config as of_tiny


def get_config(stage: str = "rl") -> ConfigDict:
    config = of_tiny(stage)
    config.data.system = None
    # 8 frames of 64x64 are 4 steps of 2x2 merged tokens, each within its marks and after its time
    config.data.buckets = (("video", 4, 1, 96, 24), ("image", 1, 1, 52, 24), ("text", 0, 0, 52, 24))
    for pixels in (config.data.video_pixels, config.data.image_pixels):
        pixels.update({"min_pixels": 32 * 32, "max_pixels": 64 * 64})
    return config
