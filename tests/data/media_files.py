"""Media for tests, written with PyAV and Pillow, and functions for a Sandbox to run."""

import io
import os
import signal
import struct
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from jvr1.data.index import Sized


def pictures(count, height, width, seed=0):
    """Smooth moving pictures [count, height, width, 3]: codecs and resizing treat them kindly."""
    y, x = np.mgrid[:height, :width]
    shade = [
        np.stack([128 + 100 * np.sin(x / 9 + i), 255 * y / height, (x + y + 7 * i + seed) % 256 / 2], -1)
        for i in range(count)
    ]
    return np.stack(shade).astype(np.uint8)


def clip(
    path, frames=12, height=84, width=112, fps=10, codec="libx264", rotation=0, movflags=None, pixels="yuv420p",
    times=None,
):  # fmt: skip
    """A video; times: when each frame is shown, in ticks of 1/fps s."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures(frames, height, width)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = (times[number] if times else number), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # run by root, SVT-AV1 leaves its caller under real-time scheduling, which all later processes would inherit
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def pyav_frames(path):
    """Every frame in RGB, before display rotation: the oracle."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def png(width, height, body=b"\0" * 64):
    """A PNG that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def encoded(image, kind):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def cut(source, target, share):
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: int(len(data) * share)])


BROKEN = {
    "moov-last.mp4": ("video", "truncated"),
    "moov-first.mp4": ("video", "truncated"),
    "cut.webm": ("video", "truncated"),
    "cut.mkv": ("video", "truncated"),
    "cut.avi": ("video", "truncated"),
    "no-bytes.mp4": ("video", "empty"),
    "text.mp4": ("video", "not-a-video"),
    "picture.mp4": ("video", "not-a-video"),
    "audio.mp4": ("video", "no-video-stream"),
    "zeroed.mp4": ("video", "corrupt"),
    "thread.mp4": ("video", "aspect-ratio"),
    "absent.mp4": ("video", "missing"),
    "text.mp4/clip.mp4": ("video", "missing"),
    "folder.mp4": ("video", "not-a-file"),
    "fifo.mp4": ("video", "not-a-file"),
    "loop.mp4": ("video", "unreadable"),
    "fifo.png": ("image", "not-a-file"),
    "no-bytes.png": ("image", "empty"),
    "text.png": ("image", "not-an-image"),
    "video.png": ("image", "not-an-image"),
    "program.eps": ("image", "not-an-image"),
    "flat.png": ("image", "not-an-image"),
    "cut.png": ("image", "truncated"),
    "cut.jpg": ("image", "truncated"),
    "bomb.png": ("image", "too-large"),
    "large.png": ("image", "too-large"),
    "wire.png": ("image", "aspect-ratio"),
    "absent.png": ("image", "missing"),
}
"""File -> data type, cause of failure."""

LATE = {"thread.mp4", "wire.png"}
"""What a probe does not see: aspect is judged with the target size."""

GOOD = {
    "plain.mp4": "video",
    "one.mp4": "video",
    "odd.mp4": "video",
    "av1.mp4": "video",
    "wrong-extension.jpg": "video",
    "picture.png": "image",
    "wrong-extension.png": "image",
}


def write_good(folder):
    clip(folder / "plain.mp4")
    clip(folder / "one.mp4", frames=1)
    clip(folder / "odd.mp4", height=65, width=101, pixels="yuv444p")
    clip(folder / "av1.mp4", codec="libsvtav1")
    (folder / "wrong-extension.jpg").write_bytes((folder / "plain.mp4").read_bytes())
    picture = Image.fromarray(pictures(1, 60, 80)[0])
    (folder / "picture.png").write_bytes(encoded(picture, "PNG"))
    (folder / "wrong-extension.png").write_bytes(encoded(picture, "JPEG"))


def write_broken(folder):
    """Every file of BROKEN; write_good's must be there."""
    cut(folder / "plain.mp4", folder / "moov-last.mp4", 0.7)
    clip(folder / "whole.mp4", frames=40, movflags="+faststart")
    cut(folder / "whole.mp4", folder / "moov-first.mp4", 0.9)
    data = bytearray((folder / "whole.mp4").read_bytes())
    stream = data.index(b"mdat") + 4
    data[stream:] = bytes(len(data) - stream)
    (folder / "zeroed.mp4").write_bytes(data)
    for suffix, codec in (("webm", "libvpx-vp9"), ("mkv", "libx264"), ("avi", "mpeg4")):
        cut(clip(folder / f"whole.{suffix}", codec=codec), folder / f"cut.{suffix}", 0.9)
    clip(folder / "thread.mp4", frames=4, height=16, width=3600)
    audio(folder / "audio.mp4")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8))
    (folder / "picture.mp4").write_bytes(encoded(picture, "JPEG"))
    (folder / "video.png").write_bytes((folder / "plain.mp4").read_bytes())
    for suffix in ("mp4", "png"):
        (folder / f"no-bytes.{suffix}").touch()
        (folder / f"text.{suffix}").write_text("what is seen at second 3?\n" * 40)
        os.mkfifo(folder / f"fifo.{suffix}")
    (folder / "program.eps").write_bytes(encoded(picture, "EPS"))
    (folder / "cut.jpg").write_bytes(encoded(picture, "JPEG")[:1500])
    (folder / "cut.png").write_bytes(encoded(picture, "PNG")[:9000])
    (folder / "flat.png").write_bytes(png(80, 0))
    (folder / "bomb.png").write_bytes(png(60000, 60000))
    (folder / "large.png").write_bytes(png(10100, 10000))
    (folder / "wire.png").write_bytes(encoded(Image.new("RGB", (2100, 10)), "PNG"))
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")


# ------------------------------------------------------------------------------ functions for a Sandbox to run


def hang(_):
    """Deaf to everything but SIGKILL and SIGALRM, as native code in a loop is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    while True:
        time.sleep(0.01)


def hang_on(word):
    return hang(word) if word == "hang" else word


def wait_in_open(path):
    """Blocks in the kernel when the path is a fifo without a writer."""
    with open(path, "rb") as file:
        return len(file.read())


def crash(number):
    os.kill(os.getpid(), number)


def process_state(_):
    """(process id, loaded modules, open descriptors, resident kilobytes)"""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return os.getpid(), sorted(sys.modules), len(os.listdir("/proc/self/fd")), pages * 4


def decode(path):
    """Frames of a video, as a helper that reports on itself: (frames or cause, descriptors, resident kilobytes)."""
    from jvr1.data.media import MediaError, load_media
    from jvr1.model.families import RULES
    from jvr1.model.media import PixelLimits, VideoSampling

    try:
        got = load_media(path, "video", VideoSampling(), PixelLimits(784, 8 * 784), RULES).frames.shape
    except MediaError as error:
        got = error.cause
    return got, *process_state(None)[2:]


def fail(_):
    raise KeyError("a fault of the function")


def measure(record, media):
    """Tokens are the words of the problem; long problems fit no bucket."""
    words = len(record.problem.split())
    return Sized(words, None, f"too-long: {words} words") if words > 5 else Sized(words, record.data_type)


def measure_badly(record, media):
    raise ZeroDivisionError("a fault of the measure")


def hang_on_long_problems(record, media):
    return hang(None) if record.problem == "hang" else measure(record, media)


def hang_on_ten_megabytes(record, media):
    return hang(None) if len(record.problem) >= 10_000_000 else measure(record, media)


def take(megabytes):
    """Holds so much for a moment."""
    return int(np.ones(megabytes << 20, np.uint8)[:: 1 << 20].sum())


def take_and_call_it_corrupt(megabytes):
    from jvr1.errors import MediaError

    held = np.ones(megabytes << 20, np.uint8)
    raise MediaError("corrupt", "damaged" if held.any() else "")


_KEPT = []


def keep(megabytes):
    """Holds so much for good; the process that does."""
    _KEPT.append(np.ones(megabytes << 20, np.uint8))
    return os.getpid()
