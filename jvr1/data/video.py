"""Videos from disk to RGB frames by PyAV: each frame the one that was asked for.

Frames are known by their times. A first pass reads the packets without decoding them: which there are, when each is
shown, which are hidden before an edit list's start, which decoding may begin at. Nothing seeks: a second pass reads
the packets again and decodes those it needs, from the last entry before each wanted frame on. What comes out is
compared with the packets' times; where it differs, and in containers whose packets do not name their frames, the
whole file is decoded and its frames are counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from jvr1.data import memory
from jvr1.data.media import Media, MediaError, _resize, seconds_per_step
from jvr1.data.packets import Packets
from jvr1.data.upright import upright
from jvr1.model.media import FrameRules, PixelLimits, Probe, VideoSampling

av.logging.set_level(None)

FORMATS = (
    "mov", "matroska", "webm", "avi", "flv", "mpeg", "mpegts", "asf", "ogg", "gif", "apng", "ivf", "nut", "mxf", "rm",
    "dv", "wtv", "mpegvideo", "m4v", "h264", "hevc",
)  # fmt: skip
"""Containers that are read. No playlists, lists of files, patterns, devices or text that libav would draw."""

NAMED_FRAMES = {
    "mov": frozenset(("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "prores", "mjpeg")),
    "matroska": frozenset(("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "prores", "mjpeg")),
}
"""Container -> codecs of which each packet is one frame with its time: these are read from the entries. Elsewhere a
packet may be half a frame, a hidden one or none, or have no time: those files are decoded from their beginning."""

DECLARED = frozenset(("matroska", "avi", "flv", "asf"))
"""Containers that say at their beginning how long they are, and which libav does not guess at."""

MAX_PIXELS = 8192 * 4352
"""Of a frame: what the highest levels of H.264, HEVC, VP9 and AV1 allow. Checked before a frame is decoded."""

SLOWEST, FASTEST = 1 / 3600, 1000.0
"""Frame rates outside of these, frames a second, are damage."""

DECODER_THREADS = 2
"""Of a decoder. A fixed number: what a damaged file comes to must not depend on the machine."""

COMPARED_FRAMES = 4
"""Frames that are compared with the packets before a file is taken for what its packets say."""


class _OtherFrames(Exception):
    """What was decoded is not what the packets say."""


class Recounted(Exception):
    """A file shows other frames than its packets said; it has been looked at anew meanwhile."""


def load_video(
    path: str | os.PathLike[str],
    sampling: VideoSampling,
    limits: PixelLimits,
    rules: FrameRules,
    max_decoded_mb: int = memory.MAX_DECODED_MB,
) -> Media:
    """A video's sampled frames, resized. Raises MediaError."""
    video = VideoFile(path, max_decoded_mb)
    while True:
        indices, sample_fps = rules.indices(video.frames, video.fps, sampling)
        size = rules.resized(video.as_counted, sampling, limits)
        video.check_memory(len(indices) * size[0] * size[1] * 3)
        frames = np.empty((len(indices), *size, 3), np.uint8)
        try:
            for slot, pixels in enumerate(video.read(indices)):
                frames[slot] = _resize(Image.fromarray(pixels), size)
        except Recounted:
            continue
        timestamps = video.timestamps(indices)
        step = seconds_per_step(timestamps, indices, video.fps, sample_fps)
        return Media(frames, step, timestamps, indices / video.fps)


class VideoFile:
    """A video, its packets read. frames: how many it shows; fps: frames a second on average.

    `counted` says whether frames is what decoding gave, or what the packets say. Raises MediaError in all methods.
    """

    def __init__(self, path: str | os.PathLike[str], max_decoded_mb: int = memory.MAX_DECODED_MB) -> None:
        self.path, self.max_decoded_mb = path, max_decoded_mb
        self._format = (0, 0, 0, "")
        with self._opened() as (container, stream):
            self.fps_declared = _declared_rate(stream)
            if stream.frames > os.stat(path).st_size:
                raise MediaError("corrupt", f"{path} claims {stream.frames} frames, more than it has bytes")
            self._packets = self._scan(container, stream)
        if not self._packets.shown.any():
            raise MediaError("corrupt", f"{path} shows no frame")
        self.fps = self._rate()
        self.frames = int(self._packets.shown.sum())
        self.counted = False
        self._by_entry = self._packets.frames
        self._clock: Sequence[int | None] = self._packets.times.tolist()
        self._check_beginning()

    @property
    def probe(self) -> Probe:
        """Size as shown, number of frames and frame rate; counts the frames where the packets do not tell."""
        if not (self._by_entry or self.counted):
            self._count()
        return self.as_counted

    @property
    def as_counted(self) -> Probe:
        """The same with `frames` as it stands: what `read` is asked by until it raises Recounted."""
        return Probe(self.height, self.width, self.frames, self.fps)

    def read(self, indices: Int64[np.ndarray, " N"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The frames with these numbers, ascending, upright.

        Raises Recounted, after any frame, when the file turns out to have other frames than `frames` said: ask anew.
        """
        try:
            source = self._from_entries(indices) if self._by_entry else self._from_start(indices)
            last, pixels = None, np.zeros((0, 0, 3), np.uint8)
            for frame in source:
                if frame is not last:
                    last, pixels = frame, upright(frame)
                yield pixels
        except _OtherFrames:
            if self.counted:
                raise MediaError("corrupt", f"{self.path} decodes to other frames each time") from None
            if self._by_entry:
                self._by_entry = False  # the same frames, decoded from the beginning
            else:
                self._count()
            raise Recounted from None

    def timestamps(self, indices: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """When each frame is shown, seconds from the first. After `read`."""
        clock = np.array([time for time in self._clock if time is not None], np.int64)
        if len(clock) != self.frames or np.any(np.diff(clock) <= 0):
            return indices / self.fps  # the container gives its frames no times of their own
        return (clock[indices] - clock[0]) * self._packets.tick

    # ------------------------------------------------------------------------------------------------ packets

    def check_memory(self, kept: int) -> None:
        """Raises MediaError "too-large" where decoding beside `kept` bytes of frames may take more than is allowed."""
        width, height, bits, codec = self._format
        needed = memory.video_bytes(width, height, bits, codec) + kept
        memory.check_memory(self.path, f"{width}x{height} pixels a frame of {bits} bits", needed, self.max_decoded_mb)

    @contextmanager
    def _opened(self, threads: int = DECODER_THREADS) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its video stream, its decoder of so many threads.

        As `file:` and by list: nothing else is opened on the file's word.
        """
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
        try:
            container = av.open(f"file:{os.path.abspath(self.path)}", options=options, metadata_errors="ignore")
        except Exception as error:
            raise self._failure(error, "not-a-video") from None
        with container:
            stream = _main_stream(container)
            if stream is None:
                raise MediaError("no-video-stream", f"{self.path} has no video stream")
            codec = stream.codec_context
            if codec is None:
                raise MediaError("corrupt", f"{self.path}: no decoder for its codec")
            if codec.width * codec.height > MAX_PIXELS or not codec.width:  # 0: libav took no size above max_pixels
                shown = f"{codec.width}x{codec.height}" if codec.width else "no size, or too many"
                raise MediaError("too-large", f"{self.path} has {shown} pixels a frame")
            self._format = (codec.width, codec.height, _bits(codec.pix_fmt), codec.codec.canonical_name)
            self.check_memory(0)
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            codec.thread_count, codec.thread_type = threads, "AUTO"
            yield container, stream

    def _scan(self, container: InputContainer, stream: VideoStream) -> Packets:
        """Reads all packets. Raises MediaError "truncated" where they end before the container's own end."""
        rows: list[tuple[int | None, bool, bool]] = []
        end, raw = 0.0, stream.codec_context.name in ("rawvideo", "zmbv")
        for packet in self._demuxed(container):
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None:
                end = max(end, (at + (packet.duration or 0)) * float(packet.time_base or 0))
            if packet.stream_index != stream.index or not packet.size:
                continue
            if not raw and not any(memoryview(packet)[:64]):
                raise MediaError("corrupt", f"{self.path}: packet {len(rows)} is empty space")
            rows.append((packet.pts, packet.is_keyframe, not packet.is_discard))
        family = container.format.name.split(",")[0]
        self._check_length(container, family, end)
        pts = [time for time, _, _ in rows]
        known = None not in pts
        entry, shown = (np.array([row[at] for row in rows], bool) for at in (1, 2))
        named = known and stream.codec_context.codec.canonical_name in NAMED_FRAMES.get(family, ())
        ticks = np.array([-1 if time is None else time for time in pts], np.int64)
        named = named and len(np.unique(ticks[shown])) == shown.sum()
        return Packets(
            ticks if known else np.arange(len(rows)), entry, shown, bool(named), float(stream.time_base or 0), end
        )

    def _demuxed(self, container: InputContainer, *streams: VideoStream) -> Iterator[av.Packet[Any]]:
        try:
            yield from container.demux(*streams)
        except (av.error.FFmpegError, MemoryError) as error:
            raise self._failure(error, "corrupt") from None

    def _check_length(self, container: InputContainer, family: str, end: float) -> None:
        if family in DECLARED and container.duration is not None:
            declared = container.duration / av.time_base
            if end - max(0.0, (container.start_time or 0) / av.time_base) < declared - max(0.5, declared / 20):
                raise MediaError("truncated", f"{self.path} ends after {end:.1f} of {declared:.1f} s")

    def _rate(self) -> float:
        """The declared rate, or what the packets' times come to where that is something else."""
        rate, times = self.fps_declared, self._packets.times
        span = float(times[-1] - times[0]) * self._packets.tick
        measured = (len(times) - 1) / span if span > 0 else rate
        if rate is None or (self._packets.frames and measured and not 0.95 < measured / rate < 1.05):
            rate = measured
        if rate is None or not (math.isfinite(rate) and SLOWEST <= rate <= FASTEST):
            raise MediaError("corrupt", f"{self.path} has a frame rate of {rate}")
        return rate

    def _failure(self, error: Exception, cause: str) -> MediaError:
        """libav's words without the file's name or what else may differ from time to time."""
        if isinstance(error, MemoryError | BlockingIOError):  # the second: no thread could be started
            return memory.exceeded(self.path, self.max_decoded_mb)
        reason = (getattr(error, "strerror", None) or str(error)).strip().split("\n", 1)[0]
        return MediaError(cause, f"{self.path}: {reason[:200]}")

    # ------------------------------------------------------------------------------------------------ decoding

    def _decoded(self, stream: VideoStream, packet: Any, strict: bool) -> list[av.VideoFrame]:
        """Frames that a packet (None: the end) brings out. strict: errors are the file's."""
        try:
            frames = stream.codec_context.decode(packet)
        except (av.error.FFmpegError, MemoryError) as error:
            if strict or isinstance(error, MemoryError):
                raise self._failure(error, "corrupt") from None
            return []
        for frame in frames:
            if frame.is_corrupt and strict:
                raise MediaError("corrupt", f"{self.path}: a frame is damaged")
        return frames

    def _sequence(self, threads: int = DECODER_THREADS) -> Iterator[av.VideoFrame]:
        """All frames as they are shown, decoded from the beginning. Errors before the first entry are of a beginning
        cut off, which no player shows."""
        with self._opened(threads) as (container, stream):
            entered = not self._packets.entry.any()
            for packet in self._demuxed(container, stream):
                if packet.size:
                    entered |= packet.is_keyframe
                    yield from self._decoded(stream, packet, entered)
            yield from self._decoded(stream, None, True)

    def _check_beginning(self) -> None:
        """Decodes the first frame, and of a file to be read from its entries some more beside the packets' times.

        By one thread: with two a frame may come before what is wrong with it is known.
        """
        expected = self._clock[:COMPARED_FRAMES]
        found: list[int | None] = []
        for frame in self._sequence(threads=1):
            if not found:
                self.height, self.width = upright(frame).shape[:2]
            found.append(frame.pts)
            if not self._by_entry or len(found) >= len(expected):
                break
        if not found:
            raise MediaError("corrupt", f"{self.path}: no frame can be decoded")
        self._by_entry &= found == list(expected)

    def _count(self) -> None:
        self._clock = [frame.pts for frame in self._sequence()]
        self.frames, self.counted, self._by_entry = len(self._clock), True, False
        if not self.frames:
            raise MediaError("corrupt", f"{self.path}: no frame can be decoded")

    def _from_start(self, indices: Int64[np.ndarray, " N"]) -> Iterator[av.VideoFrame]:
        wanted = indices.tolist()
        clock: list[int | None] = []
        for number, frame in enumerate(self._sequence()):
            clock.append(frame.pts)
            while wanted and wanted[0] == number:
                wanted.pop(0)
                yield frame
            if self.counted and not wanted:
                return
        if wanted or len(clock) != self.frames:
            raise _OtherFrames
        self._clock = clock

    def _from_entries(self, indices: Int64[np.ndarray, " N"]) -> Iterator[av.VideoFrame]:
        """Decodes from the last entry before each frame. Every frame from there on must come, in its order."""
        times = self._packets.times
        wanted = indices.tolist()
        entries = self._entries(times[indices])
        begin = position = 0
        with self._opened() as (container, stream):
            flowing = False
            number = -1
            for packet in self._demuxed(container, stream):
                if packet.size:
                    number += 1
                    if not flowing or entries[0] == number:
                        if number < entries[0]:
                            continue
                        stream.codec_context.flush_buffers()
                        begin, flowing = int(self._packets.pts[number]), True
                        position = int(np.searchsorted(times, begin))
                for frame in self._decoded(stream, packet if packet.size else None, False):
                    if frame.pts is None or position == len(times):
                        raise _OtherFrames
                    if frame.pts < begin:
                        continue  # of an open group: what it refers to was not decoded
                    if frame.pts != times[position] or (frame.pts == begin and not frame.key_frame):
                        raise _OtherFrames
                    if frame.is_corrupt:
                        raise MediaError("corrupt", f"{self.path}: a frame is damaged")
                    while wanted and wanted[0] == position:
                        wanted.pop(0)
                        entries.pop(0)
                        yield frame
                    position += 1
                if not wanted:
                    return
                if entries[0] > number:
                    flowing = False
        raise _OtherFrames

    def _entries(self, wanted: Int64[np.ndarray, " N"]) -> list[int]:
        """For each time the packet at which decoding begins: all before it are shown before it."""
        packets = self._packets
        before = np.maximum.accumulate(np.concatenate(([np.iinfo(np.int64).min], packets.pts[:-1])))
        entries = np.flatnonzero(packets.entry & (packets.pts > before))
        if not len(entries):
            raise _OtherFrames
        at = np.searchsorted(packets.pts[entries], wanted, side="right") - 1
        return entries[np.maximum(at, 0)].tolist()


def _main_stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover or thumbnail; one marked as default goes before."""
    no_video = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & no_video]
    marked = [stream for stream in streams if stream.disposition & Disposition.default]
    return next(iter(marked + streams), None)


def _bits(pixels: str | None) -> int:
    """Of a pixel in memory; of one whose form is not known what the deepest takes."""
    if pixels is None:
        return 64
    form = av.VideoFormat(pixels)
    return max(form.padded_bits_per_pixel, form.bits_per_pixel)


def _declared_rate(stream: VideoStream) -> float | None:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else None
