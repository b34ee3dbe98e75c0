"""What families' rules of frames share: the part of a video that is read, frames at equal distances, sizes."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64

from jvr1.errors import MediaError, UserError
from jvr1.model.media import VideoSampling

MAX_ASPECT_RATIO = 200


def frame_span(total: int, video_fps: float | int, sampling: VideoSampling) -> tuple[int, int]:
    """First and last of the frames between `start` and `end` (`calculate_video_frame_range` of qwen-vl-utils). Raises
    MediaError "empty-interval"."""
    first, last = 0, total - 1
    if sampling.start is not None:
        first = math.ceil(sampling.start * video_fps)
    if sampling.end is not None:
        last = min(last, math.floor(sampling.end * video_fps))
    if last < first:
        raise MediaError("empty-interval", f"no frame between {sampling.start or 0} s and {sampling.end or 'the end'}")
    return first, last


def spread(first: int, last: int, count: int) -> Int64[np.ndarray, " N"]:
    """So many numbers at equal distances, rounded."""
    return np.linspace(first, last, count).round().astype(np.int64)


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
