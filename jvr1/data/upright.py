"""A decoded frame as RGB, turned as the container's display matrix says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """RGB as a player shows it: turned and mirrored by the display matrix, nearest right angle."""
    pixels = _REFORMATTER.reformat(frame, format="rgb24", threads=1).to_ndarray()
    for data in cast(Iterable[SideData], frame.side_data):
        if data.type == Type.DISPLAYMATRIX:
            return _turned(pixels, np.frombuffer(bytes(data), np.int32))
    return pixels


_REFORMATTER = VideoReformatter()


def _turned(pixels: UInt8[np.ndarray, "H W 3"], matrix: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    a, b, _, c, d = matrix[:5].astype(np.float64)
    if a * d - b * c < 0:  # mirrored: as if the picture were, before it is turned
        pixels, a, b = pixels[:, ::-1], -a, -b
    quarters = round(math.degrees(math.atan2(b, a)) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, -quarters))
