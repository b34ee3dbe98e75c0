"""What is asked of media, and what is known of one before it is read. `jvr1.data.media` reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from jvr1.errors import UserError


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video are read, times in seconds.

    frames: that many at equal distances (fewer when the video has fewer). Without it `fps` a second, at least
    min_frames and at most max_frames, an even number. start, end: only that part of the video.
    """

    fps: float | int = 2.0
    min_frames: int = 4
    max_frames: int = 16
    frames: int | None = None
    start: float | int | None = None
    end: float | int | None = None

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise UserError(f"fps is {self.fps}; it must be positive")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames is {self.frames}; it must be at least 1")
        if self.min_frames < 1 or even_down(self.max_frames) < even_up(self.min_frames):
            raise UserError(
                f"min_frames is {self.min_frames} and max_frames is {self.max_frames}; "
                "an even number of at least 2 must lie between them"
            )
        if self.start is not None and self.start < 0:
            raise UserError(f"start is {self.start}; it must be at least 0 seconds")
        if self.end is not None and self.end <= (self.start or 0):
            raise UserError(f"end is {self.end} s; it must be after start, {self.start or 0} s")


@dataclass(frozen=True)
class PixelLimits:
    """Area of a frame in pixels; total_pixels bounds the steps of a video together (an area a step of two frames)."""

    min_pixels: int
    max_pixels: int
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(f"min_pixels is {self.min_pixels}; it must lie between 1 and max_pixels, {self.max_pixels}")
        if self.total_pixels is not None and self.total_pixels < 1:
            raise UserError(f"total_pixels is {self.total_pixels}; it must be at least 1")


@dataclass(frozen=True)
class Probe:
    """Size in pixels as shown (after EXIF or display rotation), frames, frames a second. An image: 1 frame, 0 fps."""

    height: int
    width: int
    frames: int
    fps: float

    @property
    def is_image(self) -> bool:
        return self.fps == 0


@dataclass(frozen=True)
class FrameRules:
    """A family's rules of which frames of a medium are read and to what size they are brought. Travels to the
    processes that read: functions of a module, which imports no JAX.

    factor: pixels on a side of a visual token. indices(frames, frames a second, sampling): numbers of the frames to
    read, and how many a second of video that makes; raises MediaError where there are none. size(probe, sampling,
    limits, factor): height and width in pixels; raises MediaError where no size will do. mark: what tells frames that
    were kept, and indices that were made, by these rules from those of others; empty: those made before there were
    others.
    """

    factor: int
    indices: Callable[[int, float | int, VideoSampling], tuple[Int64[np.ndarray, " N"], float]]
    size: Callable[[Probe, VideoSampling, PixelLimits, int], tuple[int, int]]
    mark: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """What names them, for indices and kept frames."""
        return {"factor": self.factor} | ({"family": self.mark} if self.mark else {})

    def numbers(self, probe: Probe, sampling: VideoSampling) -> Int64[np.ndarray, " N"]:
        """Of the frames that are read of a medium; of an image its one."""
        return np.zeros(1, np.int64) if probe.is_image else self.indices(probe.frames, probe.fps, sampling)[0]

    def resized(self, probe: Probe, sampling: VideoSampling, limits: PixelLimits) -> tuple[int, int]:
        """Height and width in pixels to which every frame of a medium is brought."""
        return self.size(probe, sampling, limits, self.factor)


def even_down(count: float | int) -> int:
    """The largest even number that is not above."""
    return math.floor(count / 2) * 2


def even_up(count: float | int) -> int:
    """The smallest even number that is not below."""
    return math.ceil(count / 2) * 2
