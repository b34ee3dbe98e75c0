"""T-GRPO of Qwen3-VL-8B on Video-R1-260k: --config configs/tgrpo_qwen3vl_8b.py --config.data.root=DIR

configs/tgrpo_7b.py but for what stands here. Its budget of tokens, 128 of a video's step and 256 of a picture, is
carried over to tokens of 32 x 32 pixels. There is no published cold start: configs/sft_qwen3vl_8b.py makes one.
"""

from ml_collections import ConfigDict
from tgrpo_7b import COMPLETION
from tgrpo_7b import get_config as of_7b

TOKEN = 32 * 32
# A window is 16 tokens in whatever shape: 8 of a step, 16 of a picture. A step of 5, 9 or 13 frames may be a little
# larger, for the processor counts 4, 8 and 12 of them. Each step has 8 to 10 tokens for its time and its marks.
BUCKETS = (
    ("image", 1, 16, 448, COMPLETION),
    ("image", 1, 16, 544, COMPLETION),
    ("image", 1, 16, 832, COMPLETION),
    ("video", 5, 8, 896, COMPLETION),
    ("video", 5, 10, 960, COMPLETION),
    ("video", 8, 8, 1296, COMPLETION),
    ("video", 8, 9, 1536, COMPLETION),
)


def set_media(config: ConfigDict) -> None:
    """Sizes and buckets of this family's tokens."""
    config.data.video_pixels.update({"min_pixels": 4 * TOKEN, "max_pixels": 128 * TOKEN})
    config.data.image_pixels.update({"min_pixels": 4 * TOKEN, "max_pixels": 256 * TOKEN})
    config.data.buckets = BUCKETS


def get_config() -> ConfigDict:
    config = of_7b()
    config.model.source = "Qwen/Qwen3-VL-8B-Instruct"
    set_media(config)
    return config
