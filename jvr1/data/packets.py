"""When each packet of a video is shown, which needs no decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64


@dataclass(frozen=True)
class Packets:
    """What the packets of the video stream say, in the order of the file (P packets).

    pts: when each is shown, in `tick`s; entry: decoding may begin there; shown: not hidden; frames: whether each
    shown packet is one frame at its pts; end: of all streams, in seconds.
    """

    pts: Int64[np.ndarray, " P"]
    entry: Bool[np.ndarray, " P"]
    shown: Bool[np.ndarray, " P"]
    frames: bool
    tick: float
    end: float

    @property
    def times(self) -> Int64[np.ndarray, " N"]:
        """pts of the frames in the order in which they are shown."""
        return np.sort(self.pts[self.shown])
