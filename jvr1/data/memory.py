"""What decoding a medium takes: said by its header before anything is decoded, and held to where a header lies."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jvr1.errors import MediaError

MEGABYTE = 2**20
MAX_DECODED_MB = 2048

DECODER_FRAMES = {"h264": 28, "hevc": 24, "av1": 24, "vp9": 16, "vp8": 12}
"""Frames that a decoder of two threads holds at most: those it refers to, those in work, those in order of showing.
Other codecs OTHER_FRAMES. Measured (docs/data.md), and rounded up."""
OTHER_FRAMES = 10
HEVC_PIXELS = 6 * 35_651_584
"""Pixels of all frames that HEVC refers to together at its highest level (A.4.2), at most 16 frames."""
EDGES = 1.1
"""A frame in memory beside its pixels: lines are rounded up and have edges."""
RGB_BYTES = 10
"""Of a pixel on its way from a frame to the model's size: RGB of libav, of numpy, the one before, of Pillow."""
FIXED = 40 * MEGABYTE
"""Libraries, threads, tables, buffers."""

SLACK = 256 * MEGABYTE
"""What a helper may keep from one medium to the next: libraries, memory freed and not given back."""

PICTURE_BYTES = {"JPEG": 13, "MPO": 13, "WEBP": 17, "AVIF": 17}
"""Of a pixel of a picture, with all copies; other formats OTHER_BYTES. JPEG 2000: 4 a channel and 9."""
OTHER_BYTES = 12


def video_bytes(width: int, height: int, bits: int, codec: str) -> int:
    """What a decoder may hold at once of a video of that size. bits: of a pixel."""
    area = max(width * height, 1)
    frames = DECODER_FRAMES.get(codec, OTHER_FRAMES)
    if codec == "hevc":
        frames = min(16, HEVC_PIXELS // area) + 8
    return FIXED + math.ceil(area * (bits / 8 * EDGES * frames + RGB_BYTES))


def picture_bytes(width: int, height: int, channels: int, kind: str | None) -> int:
    """The same of a picture of a format as Pillow names it."""
    pixel = 4 * channels + 9 if kind == "JPEG2000" else PICTURE_BYTES.get(kind or "", OTHER_BYTES)
    return FIXED + width * height * pixel


def check_memory(path: str | os.PathLike[str], what: str, needed: int, allowed_mb: int) -> None:
    """Raises MediaError "too-large" where a medium needs more than it may. what: its size, for the message."""
    if needed > allowed_mb * MEGABYTE:
        megabytes = math.ceil(needed / MEGABYTE)
        raise MediaError(
            "too-large",
            f"{path} has {what}: decoding takes up to {megabytes} MB, over data.max_decoded_mb={allowed_mb}",
        )


def exceeded(path: str | os.PathLike[str] | None, allowed_mb: int | None) -> MediaError:
    """Of a medium that took more than its header said."""
    named = f"{path}: " if path else ""
    bound = "the memory there is" if allowed_mb is None else f"data.max_decoded_mb={allowed_mb}"
    return MediaError("too-large", f"{named}decoding it needs more than {bound}")


class Bound:
    """What this process may hold beside what it held when the bound was made, in megabytes (None: anything).

    Linux (RLIMIT_DATA: private memory that can be written to, touched or not); elsewhere headers' word alone counts.
    """

    def __init__(self, allowed_mb: int | None) -> None:
        self.allowed_mb, self.start = allowed_mb, status_bytes("VmData")

    @contextmanager
    def held(self) -> Iterator[None]:
        """What asks for more within gets no memory. Not every library says so of what then fails: a medium found
        damaged where most of the bound was in use is called too large. Raises MediaError."""
        now = status_bytes("VmData")
        if self.allowed_mb is None or self.start is None or now is None:
            yield
            return
        import resource  # not on every system

        before, most = resource.getrlimit(resource.RLIMIT_DATA), self.allowed_mb * MEGABYTE
        soft = min(now, self.start + SLACK) + most
        soft = soft if before[1] == resource.RLIM_INFINITY else min(soft, before[1])
        resident = mark()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
        try:
            yield
        except MediaError as error:
            peak = status_bytes("VmHWM")
            if error.cause == "corrupt" and resident and peak and peak - resident > 0.7 * most:
                raise exceeded(None, self.allowed_mb) from None
            raise
        except MemoryError:
            raise exceeded(None, self.allowed_mb) from None
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)

    def spent(self) -> bool:
        """Whether so much was left behind that a new process is due."""
        now = status_bytes("VmData")
        if self.allowed_mb is None or self.start is None or now is None:
            return False
        return now - self.start > SLACK


def mark() -> int | None:
    """Resident memory, after its highest mark has been set to it; None where that may not be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int | None:
    """Bytes of a line of this process's status; None where the system has none."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
