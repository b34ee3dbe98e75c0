"""Images and videos from disk to uint8 frames at the model's size: probing, frame sampling, decoding, resizing.

Which frames, and which size, a model's `FrameRules` say, which are pure: what the index says of a record follows from
its `Probe` alone. `load_media` and `probe` read; a read that may hang belongs in a `jvr1.data.sandbox.Sandbox`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from jvr1.data import pictures
from jvr1.data.container import missing_bytes, zero_tail
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.errors import MediaError
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling


@dataclass(frozen=True)
class Media:
    """Frames at the model's size. seconds_per_step: time that a temporal step (two frames) stands for, 0 for an image;
    timestamps: when each frame is shown, in seconds from the first frame that the file shows; nominal: the same by its
    number at the mean rate, which is what processors write into prompts."""

    frames: UInt8[np.ndarray, "N H W 3"]
    seconds_per_step: float
    timestamps: Float64[np.ndarray, " N"]
    nominal: Float64[np.ndarray, " N"]


def probe(path: str | os.PathLike[str], data_type: str, max_decoded_mb: int = MAX_DECODED_MB) -> Probe:
    """Size, frames and frame rate of an image or video. Of a video all packets are read and the first frames decoded,
    or all where packets do not tell the frames (`video.NAMED_FRAMES`); of images only a PNG, whose EXIF may follow
    its pixels. max_decoded_mb: megabytes that decoding may take by what the header says (`data.memory`).

    Raises MediaError.
    """
    _check_file(path, data_type)
    if data_type == "image":
        return Probe(*pictures.size(path, max_decoded_mb), 1, 0.0)
    from jvr1.data.video import VideoFile

    return VideoFile(path, max_decoded_mb).probe


def load_media(
    path: str | os.PathLike[str],
    data_type: str,
    sampling: VideoSampling,
    limits: PixelLimits,
    rules: FrameRules,
    max_decoded_mb: int = MAX_DECODED_MB,
) -> Media:
    """Reads an image or a video's sampled frames and resizes them (bicubic with antialias). max_decoded_mb as of
    `probe`, the resized frames counted too. Raises MediaError."""
    _check_file(path, data_type)
    if data_type == "image":
        picture = pictures.read_picture(path, max_decoded_mb)
        seen = Probe(picture.height, picture.width, 1, 0.0)
        frame = _resize(picture, rules.resized(seen, sampling, limits))
        return Media(frame[None], 0.0, np.zeros(1), np.zeros(1))
    from jvr1.data.video import load_video

    return load_video(path, sampling, limits, rules, max_decoded_mb)


def seconds_per_step(
    timestamps: Float64[np.ndarray, " N"], indices: Int64[np.ndarray, " N"], fps: float, sample_fps: float
) -> float:
    """Seconds of video that a temporal step of two frames stands for.

    The reference's 2 / sample_fps, times what the stretch between the first and last frame takes really, beside what
    it would at the average rate; times that differ by less than half a frame are roundings of the container.
    """
    real, nominal = float(timestamps[-1] - timestamps[0]), float(indices[-1] - indices[0]) / fps
    even = abs(real - nominal) <= 0.5 / fps
    return 2.0 / sample_fps * (1.0 if even else real / nominal)


def _resize(picture: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    height, width = size
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _check_file(path: str | os.PathLike[str], data_type: str) -> None:
    """Refuses at once what is no regular file (opening a fifo would block), is empty or is cut short."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("not-a-file", f"{path} is no regular file")
        if status.st_size == 0:
            raise MediaError("empty", f"{path} has no bytes")
        with open(path, "rb") as file:
            missing = missing_bytes(file, status.st_size) if data_type == "video" else 0
            blank = zero_tail(file, status.st_size) if data_type == "video" else 0
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"{path} does not exist") from None
    except OSError as error:
        raise MediaError("unreadable", f"{path}: {error.strerror or error}") from None
    if missing:
        raise MediaError("truncated", f"{path} lacks {missing} bytes or more at its end")
    if blank:
        raise MediaError("truncated", f"the last {blank} bytes of {path} are empty space")
    if data_type == "video":
        pictures.refuse_animation(path)
