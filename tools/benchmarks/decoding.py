"""What decoding a medium takes, beside what is counted from its header: each in a process of its own.

A video is some frames of one grey each, by the encoder's fastest preset; a picture of one colour: what decoders hold
does not depend on what is shown. Measured is the most that private memory (VmData) grows by while the medium is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from jvr1.data import memory
from jvr1.data.media import MediaError, load_media
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

MB = 2**20
UNBOUNDED = 10**6
UHD, FULL = (4096, 2160), (8192, 4352)
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1:ref=5"}
FAST = {"deadline": "realtime", "cpu-used": "8"}


class Clip(NamedTuple):
    """How a video is encoded."""

    codec: str
    options: dict[str, str]
    pixels: str
    size: tuple[int, int]
    ending: str = "mp4"


CLIPS = {
    f"{name} {size[0]}x{size[1]}": Clip(codec, options, pixels, size, ending)
    for size in (UHD, FULL)
    for name, codec, options, pixels, ending in (
        ("H.264, 16 references", "libx264", {"preset": "ultrafast", "x264-params": "ref=16"}, "yuv420p", "mp4"),
        ("HEVC, 10 bits", "libx265", X265, "yuv420p10le", "mp4"),
        ("VP9", "libvpx-vp9", FAST, "yuv420p", "webm"),
        ("AV1, 10 bits", "libsvtav1", {"preset": "12"}, "yuv420p10le", "mp4"),
    )
}
PICTURES = {
    "PNG 9990x9990, 16 bits": ("png", (9990, 9990), np.uint16),
    "JPEG 2000 9990x9990, RGB": ("jp2", (9990, 9990, 3), np.uint8),
}
FRAMES = 20


def run() -> dict[str, Any]:
    """Medium -> megabytes taken, counted, and its file's."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in CLIPS.items():
            path = Path(folder) / f"clip.{clip.ending}"
            encode(path, clip)
            report[name] = measured(path, "video")
        for name, (ending, shape, dtype) in PICTURES.items():
            path = Path(folder) / f"picture.{ending}"
            Image.fromarray(np.full(shape, 200, dtype)).save(path)
            report[name] = measured(path, "image")
    return report


def encode(path: Path, clip: Clip) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(clip.codec, rate=10, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = *clip.size, clip.pixels
        stream.codec_context.thread_count = 1
        frame = av.VideoFrame(*clip.size, clip.pixels)
        for number in range(FRAMES):
            for plane in frame.planes:
                plane.update(bytes([40 + 5 * number]) * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def measured(path: Path, kind: str) -> dict[str, float]:
    code = f"from benchmarks.decoding import report; report({str(path)!r}, {kind!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(told.stdout) | {"file_mb": path.stat().st_size / MB}


def report(path: str, kind: str) -> None:
    """Prints what a load of a medium took and what its header said, as JSON."""
    how = (VideoSampling(), PixelLimits(784, 400 * 784), RULES)
    Image.init()
    begun, most, done = memory.status_bytes("VmData") or 0, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, memory.status_bytes("VmData") or 0)

    thread = threading.Thread(target=watch)
    thread.start()
    load_media(path, kind, *how, UNBOUNDED)
    done.set()
    thread.join()
    print(json.dumps({"took_mb": (most - begun) / MB, "counted_mb": counted(path, kind)}))


def counted(path: str, kind: str) -> float:
    """What the refusal of a bound of 1 MB says that it takes."""
    try:
        load_media(path, kind, VideoSampling(), PixelLimits(784, 400 * 784), RULES, 1)
    except MediaError as error:
        return float(str(error).partition("takes up to ")[2].partition(" MB")[0])
    raise AssertionError("1 MB is enough")
