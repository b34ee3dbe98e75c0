"""The demo's tiny model on two CPU cores: --config configs/tiny.py:warmup, :sft or :rl (tools/demo.sh runs all three),
or :bestofn.

warmup  text only: which letter stands before a colour. Without it SFT names the colour and guesses the letter.
sft     chains of thought over clips and pictures, stopped at a validation accuracy that leaves RL something to do.
rl      T-GRPO from there.
bestofn jvr1.train_bestofn from there instead, on the same rows.
grounding_sft, grounding_rl    when a square is blue, on files of make_demo_data --grounding; the reward is the IoU.
"""

from ml_collections import ConfigDict

from jvr1.config import default
from jvr1.errors import UserError


def get_config(stage: str = "rl") -> ConfigDict:
    config = default()
    config.model.update({"dtype": "float32", "remat": "none"})
    config.data.train = (f"{stage}.json",)
    config.data.valid = ("valid.json",)
    config.data.template = "plain"
    config.data.suffixes = False
    config.data.system = ""
    # 8 frames of 56x56 are 4 steps of 2x2 merged tokens in one window
    config.data.buckets = (("video", 4, 1, 66, 24), ("image", 1, 1, 54, 24), ("text", 0, 0, 54, 24))
    config.data.video.frames = 8
    for pixels in (config.data.video_pixels, config.data.image_pixels):
        pixels.update({"min_pixels": 28 * 28, "max_pixels": 56 * 56})
    config.data.workers = 0
    config.batch.update({"micro": 32, "per_step": 1})
    config.optimizer.update({"schedule": "constant", "clip_norm": 1.0})
    config.train.update({"save_every": 50, "keep": 2})
    if stage not in STAGES:
        raise UserError(f"configs/tiny.py has no stage {stage!r}; use one of {', '.join(STAGES)}")
    STAGES[stage](config)
    return config


def _warmup(config: ConfigDict) -> None:
    config.batch.micro = 48
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 50})
    config.train.update({"steps": 350, "validate_every": 0})


def _sft(config: ConfigDict) -> None:
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 50})
    config.train.update(
        {"steps": 3000, "validate_every": 5, "stop_metric": "order/ordered", "stop_value": 0.48, "pictures_every": 0}
    )


def _rl(config: ConfigDict) -> None:
    config.rl.update({"group": 8, "shuffled": 4, "alpha": 0.3, "beta": 0.04, "length_reward": 0.0})
    config.rl.packing = 4  # of 192 tokens in steps of 48: few programs, which take longer to compile than a step does
    config.optimizer.update({"learning_rate": 2e-4})
    config.train.update({"steps": 175, "validate_every": 50, "pictures_every": 50})


def _bestofn(config: ConfigDict) -> None:
    config.data.train = ("rl.json",)
    config.rl.update({"group": 8})
    config.optimizer.update({"learning_rate": 2e-4})
    config.train.update({"steps": 175, "validate_every": 50})


def _grounding_sft(config: ConfigDict) -> None:
    config.data.valid = ("grounding_valid.json",)
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 50})
    config.train.update(
        {"steps": 1000, "validate_every": 5, "stop_metric": "blue/ordered", "stop_value": 0.6, "pictures_every": 0}
    )


def _grounding_rl(config: ConfigDict) -> None:
    _rl(config)
    config.data.valid = ("grounding_valid.json",)
    config.train.update({"steps": 60, "validate_every": 20})


STAGES = {
    "warmup": _warmup, "sft": _sft, "rl": _rl, "bestofn": _bestofn, "grounding_sft": _grounding_sft,
    "grounding_rl": _grounding_rl,
}  # fmt: skip
