"""Fields of the files from which `transformers` and vLLM prepare media."""

from __future__ import annotations

from typing import Any

from jvr1.model.config import Vision
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.model.qwen3_vl.frames import IMAGE_MEAN, IMAGE_STD

ADVICE = """A video stands in the prompt as data.prompt_form of the training says: ask the model in the same form.
transformers up to 5.9 writes 'release', from 5.10 on 'nested', vLLM as the transformers beside it (docs: families)"""


def companions() -> dict[str, bytes]:
    """Other files that go with an export: none."""
    return {}


def base_fields(vision: Vision) -> dict[str, Any]:
    """Fields of both processors."""
    return {
        "patch_size": vision.patch,
        "temporal_patch_size": 2,
        "merge_size": vision.merge,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "processor_class": "Qwen3VLProcessor",
    }


def image_fields(limits: PixelLimits) -> dict[str, Any]:
    """Fields of an image processor."""
    return _area(limits.min_pixels, limits.max_pixels)


def video_fields(sampling: VideoSampling, limits: PixelLimits, factor: int) -> dict[str, Any]:
    """Fields of a video processor: frames and their areas as in training.

    Frames are sampled only where a caller asks for it (`do_sample_frames=True`): vLLM samples before. `start` and `end`
    cannot be said there, nor a `max_pixels` that is no whole number of tokens.
    """
    frames: dict[str, Any] = {"num_frames": sampling.frames, "fps": None}
    if sampling.frames is None:
        frames = {"fps": sampling.fps, "min_frames": sampling.min_frames, "max_frames": sampling.max_frames}
    most = sampling.frames or sampling.max_frames
    total = limits.max_pixels * most if limits.total_pixels is None else 2 * limits.total_pixels
    cap = {"cap_pixels_per_frame": True, "max_video_tokens": limits.max_pixels // factor**2}
    return _area(limits.min_pixels, total) | frames | cap | {"do_sample_frames": False}


def _area(least: int, most: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": least, "longest_edge": most}}
