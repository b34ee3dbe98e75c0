"""How questions are put when no training run says: as Video-R1 evaluates; changes to it; what a report says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jvr1 import __version__
from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.eval.suites import Suite
from jvr1.model.families import FACTOR, TOKEN_PIXELS
from jvr1.model.media import VideoSampling
from jvr1.questions.asking import Asking
from jvr1.questions.replies import SCORED_MODES, mode_of

PIXELS, MOST_FRAMES, TOKENS = 256 * TOKEN_PIXELS, 64, 1024
QUESTIONS_A_BATCH = 8
MIN_VIDEO_PIXELS = 128 * TOKEN_PIXELS
PROMPTS = {"think": "reference-eval", "direct": "plain"}


def reference_settings() -> ConfigDict:
    """Video-R1's evaluation: up to 64 frames at 2 a second and 256 tokens, its thinking prompt, 1,024 new tokens,
    bf16. Its temperature of 0.1 at top-p 0.001 leaves the best token alone: greedy here."""
    config = settings.default()
    config.model.param_dtype = "bfloat16"
    config.data.template = PROMPTS["think"]
    config.reward.mode = "eval-reference"
    config.rl.update({"shuffled": 0, "gate": "none"})
    config.batch.micro = QUESTIONS_A_BATCH
    _set_frames(config, MOST_FRAMES)
    _set_pixels(config, PIXELS)
    return config


def with_changes(
    config: ConfigDict,
    *,
    frames: int | None,
    max_pixels: int | None,
    prompt: str | None,
    max_tokens: int | None,
    fit: bool,
) -> bool:
    """Changes the settings in place; returns whether buckets must be fitted to the questions: they must (`fit`), or
    the config's are for other shapes."""
    if frames is not None:
        if frames < 4 or frames % 2:
            raise UserError(f"--frames is {frames}; use an even number of at least 4 (the reference: 16, 32 or 64)")
        _set_frames(config, frames)
    if max_pixels is not None:
        if max_pixels < TOKEN_PIXELS:
            raise UserError(f"--max-pixels is {max_pixels}; one visual token takes {FACTOR}*{FACTOR} = {TOKEN_PIXELS}")
        _set_pixels(config, max_pixels)
    if prompt is not None:
        config.data.template, config.data.suffixes = PROMPTS[prompt], True
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}; it must be at least 1")
    auto = settings.fits_buckets(config)
    fitted = fit or auto or any(value is not None for value in (frames, max_pixels, prompt))
    own = config.data.auto.completion if auto else max(b.completion for b in settings.buckets(config)) if not fit else 0
    given = max_tokens or (TOKENS if fit else own)
    if fitted:
        config.data.buckets = (("text", 0, 0, 1, given),)  # until the questions are measured
    elif max_tokens is not None:
        config.data.buckets = tuple((b.kind, b.steps, b.windows, b.prompt, given) for b in settings.buckets(config))
    return fitted


def _set_frames(config: ConfigDict, most: int) -> None:
    for name, value in dataclasses.asdict(VideoSampling(max_frames=most)).items():
        config.data.video[name] = value


def _set_pixels(config: ConfigDict, most: int) -> None:
    config.data.video_pixels.update({"min_pixels": min(MIN_VIDEO_PIXELS, most), "max_pixels": most})
    config.data.image_pixels.update({"min_pixels": min(4 * TOKEN_PIXELS, most), "max_pixels": most})


def paper_frames(config: ConfigDict, asking: Asking) -> int | None:
    """The most frames a video, if all else is the paper's setting too."""
    video = settings.video_sampling(config)
    pixels = {config.data.video_pixels.max_pixels, config.data.image_pixels.max_pixels}
    same = (
        video == VideoSampling(max_frames=video.max_frames)
        and pixels == {PIXELS}
        and config.data.template == PROMPTS["think"]
        and config.data.suffixes
        and max(b.completion for b in settings.buckets(config)) == TOKENS
        and asking.samples == 1
        and asking.temperature == 0
    )
    return video.max_frames if same else None


def describe_evaluation(
    config: ConfigDict, asking: Asking, suites: Sequence[Suite], weights: str, fitted: bool
) -> dict[str, Any]:
    """All that the answers depend on, under the names a report shows."""
    style, buckets = settings.style(config), settings.buckets(config)
    video, image = settings.pixel_limits(config)
    return {
        "jvr1": __version__,
        "model": config.model.source,
        "weights": weights,
        "dtype": config.model.dtype,
        "suites": [{"name": suite.name, "file": suite.file, **suite.stamp} for suite in suites],
        "data": config.data.root,
        "template": style.template,
        "suffixes": style.suffixes,
        **({"prompt_form": style.form} if style.form else {}),
        "system": "the chat template's" if style.system is None else style.system,
        "video": dataclasses.asdict(settings.video_sampling(config)),
        "video_pixels": dataclasses.asdict(video),
        "image_pixels": dataclasses.asdict(image),
        "real_seconds": config.data.real_seconds,
        **({"kinds": list(config.data.kinds)} if config.data.kinds else {}),
        "variants": list(asking.variants),
        "samples": asking.samples,
        "temperature": asking.temperature,
        "top_p": asking.top_p,
        "max_tokens": max(b.completion for b in buckets),
        "seed": config.seed,
        "batch": config.batch.micro,
        "buckets": "fitted to the questions" if fitted else [b.name for b in buckets],
        "modes": list(SCORED_MODES),
        "primary_mode": mode_of(config.reward.mode),
        **_own_accuracy(config),
    }


def _own_accuracy(config: ConfigDict) -> dict[str, Any]:
    """Of problem types whose accuracy a user's reward gives: which, and what gives them."""
    reward = config.reward
    return {"reward": reward.user, "accuracy": list(reward.user_accuracy)} if reward.user_accuracy else {}
