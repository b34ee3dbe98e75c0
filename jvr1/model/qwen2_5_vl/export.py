"""What goes with exported weights: fields of the files from which `transformers` and vLLM prepare media, and the
positions of the training for `generate`."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jvr1.model.config import Vision
from jvr1.model.media import PixelLimits, VideoSampling, even_down, even_up
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD

BUDGET = 0.9
"""Share of `max_video_tokens` that transformers lets a video's pixels take."""
POSITIONS = "text_positions.py"
ADVICE = """From transformers 5.3 on text after a video has other positions than in training; answers differ. Undo it:

    import sys; sys.path.insert(0, "{out}")
    from text_positions import as_trained
    as_trained(model)  # once, after from_pretrained

transformers up to 5.2, vLLM and SGLang have the positions of the training: the docs' page weights"""


def companions() -> dict[str, bytes]:
    """Files for those who load an export; the one there is cannot be imported without torch."""
    return {POSITIONS: resources.files(__package__).joinpath(POSITIONS).read_bytes()}


def base_fields(vision: Vision) -> dict[str, Any]:
    """Fields of both processors."""
    return {
        "patch_size": vision.patch,
        "temporal_patch_size": 2,
        "merge_size": vision.merge,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "processor_class": "Qwen2_5_VLProcessor",
    }


def image_fields(limits: PixelLimits) -> dict[str, Any]:
    """Fields of an image processor."""
    return _area(limits.min_pixels, limits.max_pixels)


def video_fields(sampling: VideoSampling, limits: PixelLimits, factor: int) -> dict[str, Any]:
    """Fields of a video processor: area of a frame and number of frames as in training.

    Frames are sampled only where a caller asks for it (`do_sample_frames=True`): vLLM and qwen-vl-utils sample before,
    and would have it done twice. `start`, `end` and an odd number of frames cannot be said there.
    """
    frames: dict[str, Any] = {"num_frames": sampling.frames}
    if sampling.frames is None:
        least, most = even_up(sampling.min_frames), even_down(sampling.max_frames)
        frames = {"fps": sampling.fps, "min_frames": least, "max_frames": most}
    # a frame may always have 1.05 min_pixels: transformers has that rule only with a budget for the whole video
    area = _area(limits.min_pixels, max(limits.max_pixels, int(limits.min_pixels * 1.05)))
    budget: dict[str, Any] = {"cap_pixels_per_frame": limits.total_pixels is not None}
    if limits.total_pixels is not None:
        area = _area(limits.min_pixels, limits.max_pixels)
        budget["max_video_tokens"] = round(limits.total_pixels / (factor**2 * BUDGET))
    return area | frames | budget | {"do_sample_frames": False}


def _area(least: int, most: int) -> dict[str, Any]:
    return {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}
