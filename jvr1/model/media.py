"""What is asked of media, and what is known of one before it is read. `jvr1.data.media` reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from jvr1.errors import UserError
from jvr1.setting import check_section, setting


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video are read, times in seconds.

    frames: that many at equal distances (fewer when the video has fewer). Without it `fps` a second, at least
    min_frames and at most max_frames, an even number. start, end: only that part of the video.
    """

    fps: float | int = setting(2.0, "Frames a second read of a video", above=0)
    min_frames: int = setting(4, "At least so many", least=1)
    max_frames: int = setting(16, "At most so many", least=2)
    frames: int | None = setting(None, "That many at equal distances instead of fps", least=1)
    start: float | int | None = setting(None, "Second to begin at", least=0)
    end: float | int | None = setting(None, "Second to end at", above="start")

    def within(self, start: float | None, end: float | None) -> VideoSampling:
        """The same of a part of the video, in seconds; as it is where neither is given."""
        return self if start is None and end is None else replace(self, start=start, end=end)

    def __post_init__(self) -> None:
        check_section(self)
        if even_down(self.max_frames) < even_up(self.min_frames):
            raise UserError(
                f"min_frames is {self.min_frames} and max_frames is {self.max_frames}; "
                "an even number of at least 2 must lie between them"
            )


@dataclass(frozen=True)
class PixelLimits:
    """Area of a frame in pixels; total_pixels bounds the steps of a video together (an area a step of two frames)."""

    min_pixels: int = setting(MISSING, "Smallest area in pixels; smaller ones are enlarged", least=1, most="max_pixels")
    max_pixels: int = setting(MISSING, "Largest area in pixels", least=1)
    total_pixels: int | None = setting(None, "Bound on the area of all steps together", least=1)

    def __post_init__(self) -> None:
        check_section(self)


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
