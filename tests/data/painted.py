"""Media that are painted rather than read. Its own module, for a helper process imports all that stands beside it."""

import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jvr1.data.media import Media, MediaError
from jvr1.model.media import FrameRules, PixelLimits, VideoSampling

PATIENCE = 4.0
"""Seconds a reading may take."""


@dataclass(frozen=True)
class Paint:
    """Reads no file: 8 frames of 56x56 (an image: one) painted from the path.

    Paths with 'broken' always fail; with 'flaky' only at the first reading, which leaves a mark in `marks`; with 'slow'
    the first reading takes longer than PATIENCE.
    """

    marks: Path

    def __call__(
        self, path: str, data_type: str, sampling: VideoSampling, limits: PixelLimits, rules: FrameRules
    ) -> Media:
        mark = self.marks / path.replace("/", "-")
        if "broken" in path:
            raise MediaError("corrupt", path)
        if ("flaky" in path or "slow" in path) and not mark.exists():
            mark.touch()
            if "flaky" in path:
                raise MediaError("unreadable", path)
            time.sleep(60)
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        count = 8 if data_type == "video" else 1
        frames = rng.integers(0, 256, (count, 56, 56, 3), np.uint8)
        times = np.arange(count) / 4
        return Media(frames, 0.5 if data_type == "video" else 0.0, times, times)
