"""Which frames are read, to what size, with which statistics: the rules of `Qwen3VLVideoProcessor` and, for images, of
`Qwen2VLImageProcessor`."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64

from jvr1.errors import MediaError, UserError
from jvr1.model.frames import MAX_ASPECT_RATIO, frame_span, smart_resize, spread
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling
from jvr1.model.qwen3_vl.config import MODEL_TYPE

IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)


def rules(factor: int) -> FrameRules:
    """Those of a model whose tokens have `factor` pixels on a side."""
    return FrameRules(factor, frame_indices, target_size, mark=MODEL_TYPE)


def frame_indices(total: int, video_fps: float | int, sampling: VideoSampling) -> tuple[Int64[np.ndarray, " N"], float]:
    """Which of `total` frames to read, and how many a second of video that makes (`sample_frames`): the number may be
    odd. Beyond it: start and end, and `frames` of a video that has fewer gives those. Raises MediaError
    "empty-interval"."""
    first, last = frame_span(total, video_fps, sampling)
    span = last - first + 1
    if sampling.frames is not None:
        count = min(sampling.frames, span)
    else:
        count = min(max(int(span / video_fps * sampling.fps), sampling.min_frames), sampling.max_frames, span)
    return spread(first, last, count), count / span * video_fps


def target_size(probe: Probe, sampling: VideoSampling, limits: PixelLimits, factor: int) -> tuple[int, int]:
    """Height and width in pixels to which every frame is resized: multiples of `factor`, within the limits.

    A video's limits are those of the processor with `cap_pixels_per_frame`: at most max(min(max_pixels,
    2 total_pixels / N), 1.05 min_pixels) pixels a frame, and at least min_pixels in all frames together. Raises
    MediaError "aspect-ratio".
    """
    height, width = probe.height, probe.width
    try:
        if probe.is_image:
            return smart_resize(
                height, width, factor=factor, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
            )
        count = len(frame_indices(probe.frames, probe.fps, sampling)[0])
        return video_size(max(count, 2), height, width, limits, factor)  # of one frame the processor refuses to speak
    except UserError as error:
        raise MediaError("aspect-ratio", str(error)) from None


def video_size(frames: int, height: int, width: int, limits: PixelLimits, factor: int) -> tuple[int, int]:
    """`smart_resize` of the video processor: areas are of all frames, whose number is rounded to an even one, half to
    the next multiple of four. Raises UserError for a side that is 200 times the other."""
    area = (
        limits.max_pixels if limits.total_pixels is None else min(limits.max_pixels, 2 * limits.total_pixels // frames)
    )
    most = frames * max(area, int(limits.min_pixels * 1.05))
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise UserError(f"aspect ratio of {width}x{height} is above {MAX_ASPECT_RATIO}")
    new_h, new_w = (round(side / factor) * factor for side in (height, width))
    even = round(frames / 2) * 2
    if even * new_h * new_w > most:
        shrink = math.sqrt(frames * height * width / most)
        new_h, new_w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif even * new_h * new_w < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (frames * height * width))
        new_h, new_w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_h, new_w
