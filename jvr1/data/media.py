"""Images and videos from disk to uint8 frames at the model's size: probing, frame sampling, decoding, resizing.

`frame_indices` and `target_size` are pure: what the index says of a record follows from its `Probe` alone.
`load` and `probe` read; a read that may hang belongs in a `jvr1.data.sandbox.Sandbox`.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import MISSING, dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from jvr1.data import pictures
from jvr1.data.container import missing_bytes, zero_tail
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.vision import smart_resize
from jvr1.errors import MediaError, UserError
from jvr1.setting import check_section, setting

TOKEN_PIXELS = 28 * 28
"""Of a frame or an image, which become one token of Qwen2.5-VL."""


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
    max_pixels: int = setting(MISSING, "Largest area in pixels; 28x28 of them are a token", least=1)
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
class Media:
    """Frames at the model's size. seconds_per_step: time that a temporal step (two frames) stands for, 0 for an image;
    timestamps: when each frame is shown, in seconds from the first frame that the file shows."""

    frames: UInt8[np.ndarray, "N H W 3"]
    seconds_per_step: float
    timestamps: Float64[np.ndarray, " N"]


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


def load(
    path: str | os.PathLike[str],
    data_type: str,
    sampling: VideoSampling,
    limits: PixelLimits,
    factor: int,
    max_decoded_mb: int = MAX_DECODED_MB,
) -> Media:
    """Reads an image or a video's sampled frames and resizes them (bicubic with antialias). max_decoded_mb as of
    `probe`, the resized frames counted too. Raises MediaError."""
    _check_file(path, data_type)
    if data_type == "image":
        picture = pictures.read(path, max_decoded_mb)
        seen = Probe(picture.height, picture.width, 1, 0.0)
        frame = _resize(picture, target_size(seen, sampling, limits, factor))
        return Media(frame[None], 0.0, np.zeros(1))
    from jvr1.data.video import load_video

    return load_video(path, sampling, limits, factor, max_decoded_mb)


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


def even_down(count: float | int) -> int:
    """The largest even number that is not above."""
    return math.floor(count / 2) * 2


def even_up(count: float | int) -> int:
    """The smallest even number that is not below."""
    return math.ceil(count / 2) * 2


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
