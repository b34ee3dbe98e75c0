"""Which frames are read, to what size, with which statistics: the rules of qwen-vl-utils, through which Video-R1 reads
all media."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64

from jvr1.errors import MediaError, UserError
from jvr1.model.frames import frame_span, smart_resize, spread
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling, even_down, even_up

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of CLIP, which the published preprocessor_config.json holds."""


def rules(factor: int) -> FrameRules:
    """Those of a model whose tokens have `factor` pixels on a side."""
    return FrameRules(factor, frame_indices, target_size)


def frame_indices(total: int, video_fps: float | int, sampling: VideoSampling) -> tuple[Int64[np.ndarray, " N"], float]:
    """Which of `total` frames to read, and how many a second of video that makes.

    Source: `smart_nframes` of qwen-vl-utils as Video-R1 carries it. Beyond it: a video of one frame gives that frame,
    and `frames` may be odd (the last frame is then paired with itself). Raises MediaError "empty-interval".
    """
    first, last = frame_span(total, video_fps, sampling)
    span = last - first + 1
    if sampling.frames is not None:
        count = min(sampling.frames, span)
    else:
        wanted = max(span / video_fps * sampling.fps, even_up(sampling.min_frames))
        count = max(1, even_down(min(wanted, even_down(sampling.max_frames), span)))
    return spread(first, last, count), count / span * video_fps


def target_size(probe: Probe, sampling: VideoSampling, limits: PixelLimits, factor: int) -> tuple[int, int]:
    """Height and width in pixels to which every frame is resized: multiples of `factor`, within the limits.

    Source: qwen-vl-utils `fetch_image` and `fetch_video`. A video's frames may have
    max(min(max_pixels, 2 total_pixels / N), 1.05 min_pixels) pixels. Raises MediaError "aspect-ratio".
    """
    most = limits.max_pixels
    if not probe.is_image:
        count = len(frame_indices(probe.frames, probe.fps, sampling)[0])
        if limits.total_pixels is not None:
            most = min(most, math.floor(limits.total_pixels / count * 2))
        most = max(most, int(limits.min_pixels * 1.05))
    try:
        return smart_resize(probe.height, probe.width, factor=factor, min_pixels=limits.min_pixels, max_pixels=most)
    except UserError as error:
        raise MediaError("aspect-ratio", str(error)) from None
