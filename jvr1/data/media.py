"""Images and videos from disk to uint8 frames at the model's size: probing, frame sampling, decoding, resizing.

`frame_indices` and `target_size` are pure: what the index says of a record follows from its `Probe` alone.
`load` and `probe` read; a read that may hang belongs in a `jvr1.data.sandbox.Sandbox`.
"""

from __future__ import annotations

import math
import os
import re
import stat
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image, ImageOps

from jvr1.data.container import missing_bytes
from jvr1.data.vision import smart_resize
from jvr1.errors import UserError

MAX_FRAME_PIXELS = 100_000_000
"""Larger frames are refused before they are decoded (300 MB in memory)."""

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What Pillow may open; others, such as EPS, run outside programs."""


class MediaError(Exception):
    """A medium that cannot be used. `cause` is one of a few words to count by, the message is for people.

    Causes: missing, unreadable, not-a-file, empty, truncated, not-an-image, not-a-video, no-video-stream, corrupt,
    too-large, aspect-ratio, empty-interval, timeout, crashed.
    """

    def __init__(self, cause: str, message: str = "") -> None:
        super().__init__(cause, message)
        self.cause = cause

    def __str__(self) -> str:
        return ": ".join(part for part in self.args if part)


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
            raise UserError(f"video fps must be above 0, got {self.fps}")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"video frames must be at least 1, got {self.frames}")
        if self.min_frames < 1 or even_down(self.max_frames) < even_up(self.min_frames):
            raise UserError(
                f"video frames in [{self.min_frames}, {self.max_frames}]: an even number must lie in that range"
            )
        if self.start is not None and self.start < 0:
            raise UserError(f"video start must be at least 0 s, got {self.start}")
        if self.end is not None and self.end <= (self.start or 0):
            raise UserError(f"video end must be after its start, got {self.start or 0} to {self.end} s")


@dataclass(frozen=True)
class PixelLimits:
    """Area of a frame in pixels; total_pixels bounds the steps of a video together (an area a step of two frames)."""

    min_pixels: int
    max_pixels: int
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(f"pixel limits need 0 < min <= max, got min {self.min_pixels}, max {self.max_pixels}")
        if self.total_pixels is not None and self.total_pixels < 1:
            raise UserError(f"total pixels must be at least 1, got {self.total_pixels}")


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
    """Frames at the model's size. seconds_per_step: time between the beginnings of two temporal steps (of two
    frames), 0 for an image; timestamps: when each frame is shown, in seconds from the beginning of the file."""

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


def probe(path: str | os.PathLike[str], data_type: str) -> Probe:
    """Size, frames and frame rate of an image or video. Of a video the first frame is decoded; of images only
    a PNG, whose EXIF may follow its pixels.

    Raises MediaError.
    """
    _check_file(path, data_type)
    if data_type == "image":
        with _open_image(path) as image:
            width, height = image.size
            try:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            except Exception as error:
                raise _image_error(path, error) from None
        return Probe(*((width, height) if turned else (height, width)), 1, 0.0)
    return _VideoFile(path).probe


def load(
    path: str | os.PathLike[str], data_type: str, sampling: VideoSampling, limits: PixelLimits, factor: int
) -> Media:
    """Reads an image or a video's sampled frames and resizes them (bicubic with antialias). Raises MediaError."""
    _check_file(path, data_type)
    if data_type == "image":
        picture = _read_image(path)
        seen = Probe(picture.height, picture.width, 1, 0.0)
        frame = _resize(picture, target_size(seen, sampling, limits, factor))
        return Media(frame[None], 0.0, np.zeros(1))
    video = _VideoFile(path)
    indices, sample_fps = frame_indices(video.probe.frames, video.probe.fps, sampling)
    height, width = target_size(video.probe, sampling, limits, factor)
    frames = np.empty((len(indices), height, width, 3), np.uint8)
    for slot, index in enumerate(indices):
        frames[slot] = _resize(Image.fromarray(video.frame(int(index))), (height, width))
    return Media(frames, 2.0 / sample_fps, video.timestamps(indices))


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
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"{path} does not exist") from None
    except OSError as error:
        raise MediaError("unreadable", f"{path}: {error.strerror or error}") from None
    if missing:
        raise MediaError("truncated", f"{path} lacks {missing} bytes or more at its end")


def _open_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image file whose header has been read. Raises MediaError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            Image.init()  # else Pillow stumbles over a format whose plugin it has not loaded
            image = Image.open(path, formats=[kind for kind in IMAGE_FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise MediaError("too-large", f"{path}: {error}") from None
    except Image.UnidentifiedImageError:
        raise MediaError("not-an-image", f"{path} is in no known image format, or cut short") from None
    except Exception as error:  # plugins raise what they like on a damaged header
        raise _image_error(path, error) from None
    if image.width * image.height > MAX_FRAME_PIXELS:
        image.close()
        raise MediaError("too-large", f"{path} has {image.width}x{image.height} pixels")
    return image


def _read_image(path: str | os.PathLike[str]) -> Image.Image:
    """The first frame in RGB: upright by EXIF, transparency on white, 16 bits scaled to 8. Raises MediaError."""
    with _open_image(path) as image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise _image_error(path, error) from None


def _image_error(path: str | os.PathLike[str], error: Exception) -> MediaError:
    cut = "truncated" in str(error).lower()
    return MediaError("truncated" if cut else "corrupt", f"{path}: {error}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class _VideoFile:
    """A video opened by decord. Lives and dies in one process: a reader opened before a fork hangs after it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import decord  # here, so that processes that read no video need not load libav

        decord.logging.set_level(decord.logging.QUIET)
        self._path = path
        try:
            self._reader = decord.VideoReader(os.fspath(path), num_threads=1)
        except Exception as error:
            text = str(error)
            if "video stream" in text:
                raise MediaError("no-video-stream", f"{path} has no video stream") from None
            known = isinstance(error, RuntimeError) or "broken metadata" in text
            raise MediaError("not-a-video" if known else "corrupt", f"{path}: {_first_line(text)}") from None
        fps = float(self._reader.get_avg_fps())
        if not (math.isfinite(fps) and fps > 0):
            raise MediaError("corrupt", f"{path} has a frame rate of {fps}")
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))
        height, width, _ = self.frame(0).shape
        if height * width > MAX_FRAME_PIXELS:
            raise MediaError("too-large", f"{path} has {width}x{height} pixels a frame")
        self.probe = Probe(height, width, len(self._reader), fps)

    def frame(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """One frame as it is shown. decord goes forward from where it stands: ask in ascending order."""
        if index != self._last[0]:
            self._last = (index, _packed(self._decode(index)))
        return self._last[1]

    def timestamps(self, indices: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """When each frame begins, in seconds."""
        try:
            return self._reader.get_frame_timestamp(indices)[:, 0].astype(np.float64)
        except Exception as error:
            raise MediaError("corrupt", f"{self._path}: {_first_line(str(error))}") from None

    def _decode(self, index: int) -> np.ndarray:
        try:
            return self._reader[index].asnumpy()
        except Exception as error:  # DECORDError is no RuntimeError
            raise MediaError("corrupt", f"{self._path}, frame {index}: {_first_line(str(error))}") from None


def _packed(frame: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a decord frame. Where libav's padded row divides by the width (such as 96 or 144 pixels), decord
    takes the row's padding for more channels; the values are in place all the same."""
    height, width, channels = frame.shape
    return frame if channels == 3 else frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _first_line(text: str) -> str:
    """decord begins its messages with the time of day: the same file must give the same message."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] ", "", text.strip().split("\n", 1)[0])[:200]
