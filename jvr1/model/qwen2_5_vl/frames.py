"""Which frames are read, to what size, with which statistics: the rules of qwen-vl-utils, through which Video-R1 reads
all media."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64

from jvr1.errors import MediaError, UserError
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling, even_down, even_up

MAX_ASPECT_RATIO = 200
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of CLIP, which the published preprocessor_config.json holds."""


def rules(factor: int) -> FrameRules:
    """Those of a model whose tokens have `factor` pixels on a side."""
    return FrameRules(factor, frame_indices, target_size)


def frame_indices(total: int, video_fps: float | int, sampling: VideoSampling) -> tuple[Int64[np.ndarray, " N"], float]:
    """Which of `total` frames to read, and how many a second of video that makes.

    Source: `smart_nframes` of qwen-vl-utils as Video-R1 carries it, and its `calculate_video_frame_range` for
    start and end. Beyond it: a video of one frame gives that frame, and `frames` may be odd (the last frame is
    then paired with itself). Raises MediaError "empty-interval".
    """
    first, last = 0, total - 1
    if sampling.start is not None:
        first = math.ceil(sampling.start * video_fps)
    if sampling.end is not None:
        last = min(last, math.floor(sampling.end * video_fps))
    span = last - first + 1
    if span < 1:
        raise MediaError("empty-interval", f"no frame between {sampling.start or 0} s and {sampling.end or 'the end'}")
    if sampling.frames is not None:
        count = min(sampling.frames, span)
    else:
        wanted = max(span / video_fps * sampling.fps, even_up(sampling.min_frames))
        count = max(1, even_down(min(wanted, even_down(sampling.max_frames), span)))
    indices = np.linspace(first, last, count).round().astype(np.int64)
    return indices, count / span * video_fps


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


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest size with both sides multiples of `factor` and an area in [min_pixels, max_pixels].

    Source: `smart_resize` of qwen-vl-utils, through which Video-R1 reads all media; rounds half to even, as Python
    does. HF's own, which comes after it there, gives the same but for sides up to half of `factor`, which it counts as
    0 before it looks at the area. A side that shrinks below `factor` is 0 in qwen-vl-utils, which ends in an error;
    here, as in HF, it is `factor`.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise UserError(f"aspect ratio of {width}x{height} is above {MAX_ASPECT_RATIO}")
    new_h, new_w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_h * new_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_h * new_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    return new_h, new_w
