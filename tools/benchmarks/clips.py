"""Clips whose frames carry their own number, over containers x codecs x structure, and how they are read.

Made with PyAV's encoders. `read` and `read_by_decord` run in helper processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Int64, UInt8

from jvr1.data.media import MediaError, load_media, probe
from jvr1.model.families import FACTOR, RULES, TOKEN_PIXELS
from jvr1.model.media import PixelLimits, VideoSampling

HEIGHT, WIDTH, BITS, COLUMNS = 144, 176, 12, 4
LIMITS = PixelLimits(WIDTH // FACTOR * (HEIGHT // FACTOR) * TOKEN_PIXELS, 10**6)


@dataclass(frozen=True)
class Clip:
    """One place of the matrix. options: the encoder's; muxer: the container's; tag: the codec's name in it."""

    codec: str
    structure: str
    container: str
    encoder: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    form: str | None = None
    muxer: dict[str, str] = field(default_factory=dict)
    tag: str | None = None

    @property
    def name(self) -> str:
        return f"{self.codec} {self.structure} {self.container}"

    @property
    def file(self) -> str:
        return self.name.replace(" ", "_") + "." + self.container.split("-")[-1]


FRAGMENTED = {"movflags": "+frag_keyframe+empty_moov"}
X264 = "keyint=50:scenecut=0:bframes="
X265 = "log-level=none:keyint=50:min-keyint=50:scenecut=0:bframes="
H264 = {
    "no-B": {"x264-params": X264 + "0"},
    "B": {"x264-params": X264 + "3:b-pyramid=none"},
    "pyramid": {"x264-params": X264 + "3:b-pyramid=normal"},
    "open": {"x264-params": X264 + "3:open-gop=1"},
    "refresh": {"x264-params": X264 + "0:intra-refresh=1"},
    "interlaced": {"x264-params": X264 + "3:interlaced=1"},
}
HEVC = {
    "no-B": {"x265-params": X265 + "0:open-gop=0"},
    "closed": {"x265-params": X265 + "4:open-gop=0"},
    "open": {"x265-params": X265 + "4:open-gop=1"},
    "refresh": {"x265-params": X265 + "0:intra-refresh=1"},
}
PLAIN = {"no-B": {"g": "50", "bf": "0"}, "B": {"g": "50", "bf": "2"}}
MPEG2 = {
    **PLAIN,
    "closed": {"g": "50", "bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"},
    "interlaced": {"g": "50", "bf": "2", "flags": "+ilme+ildct"},
}
VPX = {
    "alt-ref": {
        "g": "50",
        "b": "200k",
        "deadline": "realtime",
        "cpu-used": "5",
        "auto-alt-ref": "1",
        "lag-in-frames": "16",
    }
}
AV1 = {"pyramid": {"g": "50", "preset": "10", "crf": "15", "svtav1-params": "lp=1"}}
INTRA: dict[str, dict[str, str]] = {"intra": {}}
MAKERS: tuple[tuple[str, str, dict[str, dict[str, str]], str, str], ...] = (
    ("H.264", "libx264", H264, "mp4 frag-mp4 mov mkv avi flv mpg ts 3gp wmv", "yuv420p"),
    ("HEVC", "libx265", HEVC, "mp4 frag-mp4 mov mkv ts flv", "yuv420p"),
    ("VP8", "libvpx", VPX, "webm mkv avi", "yuv420p"),
    ("VP9", "libvpx-vp9", VPX, "webm mkv mp4", "yuv420p"),
    ("AV1", "libsvtav1", AV1, "mp4 mkv webm", "yuv420p"),
    ("MPEG-1", "mpeg1video", PLAIN, "mpg mkv avi", "yuv420p"),
    ("MPEG-2", "mpeg2video", MPEG2, "mpg ts mp4 mkv", "yuv420p"),
    ("MPEG-4", "mpeg4", PLAIN, "avi mp4 frag-mp4 mov mkv 3gp", "yuv420p"),
    ("Xvid", "mpeg4", PLAIN, "avi", "yuv420p"),
    ("H.263", "h263", {"no-B": {"g": "50"}}, "3gp", "yuv420p"),
    ("FLV1", "flv", {"no-B": {"g": "50"}}, "flv", "yuv420p"),
    ("WMV2", "wmv2", {"no-B": {"g": "50"}}, "wmv avi", "yuv420p"),
    ("MJPEG", "mjpeg", INTRA, "avi mov mkv mp4", "yuvj420p"),
    ("ProRes", "prores_ks", INTRA, "mov mkv", "yuv422p10le"),
    ("GIF", "gif", INTRA, "gif", "rgb8"),
)
FORMS = {"3gp": "3gp", "wmv": "asf", "mpg": "vob", "ts": "mpegts", "mkv": "matroska"}


def clips() -> Iterator[Clip]:
    """All places of the matrix."""
    for codec, encoder, structures, containers, pixels in MAKERS:
        for structure, options in structures.items():
            for container in containers.split():
                muxer = FRAGMENTED if container == "frag-mp4" else {}
                tag = {"Xvid": "XVID"}.get(codec)
                yield Clip(codec, structure, container, encoder, options, pixels, FORMS.get(container), muxer, tag)


def picture(number: int) -> UInt8[np.ndarray, "H W 3"]:
    """A frame that shows its number: bit b bright or dark, at row b // 4 and column b % 4."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8).reshape(-1, COLUMNS)
    side = (HEIGHT // bits.shape[0], WIDTH // COLUMNS)
    return np.repeat(np.kron(40 + bits * 180, np.ones(side, np.uint8))[..., None], 3, axis=2)


def number_of(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    """The number that a frame shows, at any size."""
    rows, (height, width) = BITS // COLUMNS, pixels.shape[:2]
    found = 0
    for bit in range(BITS):
        y, x = (bit // COLUMNS + 0.5) * height / rows, (bit % COLUMNS + 0.5) * width / COLUMNS
        middle = pixels[int(y - height / 12) : int(y + height / 12), int(x - width / 16) : int(x + width / 16)]
        found |= int(middle.mean() > 128) << bit
    return found


def make(clip: Clip, path: Path, frames: int) -> None:
    """Writes a clip of 25 frames a second."""
    with av.open(str(path), "w", format=clip.form, options=clip.muxer) as container:
        stream: Any = container.add_stream(clip.encoder, rate=10 if clip.codec == "GIF" else 25, options=clip.options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, clip.pixels
        if clip.tag:
            stream.codec_context.codec_tag = clip.tag
        rate = stream.codec_context.framerate
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24").reformat(format=clip.pixels)
            frame.pts, frame.time_base = number, Fraction(1, int(rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # run by root, SVT-AV1 leaves its caller under real-time scheduling, which all later processes would inherit
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def read(
    path: str, sampling: VideoSampling, first: bool
) -> tuple[Int64[np.ndarray, " N"] | None, UInt8[np.ndarray, "N H W 3"]]:
    """The frames, and for the first load the numbers that should be seen, as an index would say."""
    frames = load_media(path, "video", sampling, LIMITS, RULES).frames
    if not first:
        return None, frames
    seen = probe(path, "video")
    return RULES.numbers(seen, sampling), frames


def read_by_decord(
    path: str, sampling: VideoSampling, first: bool
) -> tuple[Int64[np.ndarray, " N"], UInt8[np.ndarray, "N H W 3"]]:
    """The same by decord, as the reference reads."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(path, num_threads=1)
        indices, _ = RULES.indices(len(reader), float(reader.get_avg_fps()), sampling)
        return indices, reader.get_batch(indices).asnumpy()[..., :3]
    except Exception as error:
        raise MediaError("corrupt", str(error).split("\n")[0]) from None
