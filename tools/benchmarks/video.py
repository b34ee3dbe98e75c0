"""Reading a video's frames: jvr1's reader beside decord's, in one process, taking turns.

Clips as in the part data (soft blobs that pan, with grain): H.264 by x264's defaults, HEVC without B-frames, which
decord reads rightly; 3,600 frames are 300 repeated. Times are from the closed file to the frames in RGB, not resized.
Memory is our reader's over 2,000 loads of small clips in three containers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.data import write_clip
from jvr1.data.video import DECODER_THREADS, VideoFile
from jvr1.model.families import RULES
from jvr1.model.media import VideoSampling

SIZES = ((360, 640), (720, 1280))
CODECS = {"H.264": ("libx264", {}), "HEVC": ("libx265", {"x265-params": "log-level=none:bframes=0", "preset": "fast"})}
ASKED = ((16, 300), (64, 3600))
TURNS = 5
LOADS = 2000
KEPT = (100, 500, 1000, LOADS)
"""Loads after which memory is looked at."""


def run() -> dict[str, Any]:
    """Median seconds of elapsed and of CPU time, and the ratios ours / decord's of the medians."""
    report: dict[str, Any] = {"threads_of_each_decoder": DECODER_THREADS, "turns": TURNS}
    with tempfile.TemporaryDirectory() as folder:
        for codec, (encoder, options) in CODECS.items():
            for height, width in SIZES:
                short, long = Path(folder) / "300.mp4", Path(folder) / "3600.mp4"
                write_clip(short, 300, height, width, encoder, options)
                repeat(short, long, 12)
                for (count, total), path in zip(ASKED, (short, long), strict=True):
                    report[f"{codec} {width}x{height}, {count} of {total}"] = beside(str(path), count)
        report["resident_mb_after_loads"] = memory(Path(folder))
    return report


def memory(folder: Path) -> dict[str, dict[str, float]]:
    """Container -> resident MB of a process of its own after each of `KEPT` loads, 8 of 60 frames."""
    report = {}
    for ending in ("mp4", "avi", "mkv"):
        path = folder / f"small.{ending}"
        write_clip(path, 60, 144, 176, *CODECS["H.264"])
        told = subprocess.run(
            [sys.executable, "-c", f"from benchmarks.video import load_many; load_many({str(path)!r})"],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        report[ending] = {number: float(mb) for number, mb in (line.split() for line in told.stdout.splitlines())}
    return report


def load_many(path: str) -> None:
    """Prints 'loads MB' lines."""
    for number in range(1, LOADS + 1):
        assert len(ours(path, 8)) == 8
        if number in KEPT:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(number, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def repeat(source: Path, target: Path, times: int) -> None:
    """The packets of a clip, again and again."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = read.streams.video[0]
        copy: Any = write.add_stream_from_template(stream)
        length = stream.duration
        for turn in range(times):
            read.seek(0)
            for packet in read.demux(stream):
                if packet.size:
                    packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                    packet.stream = copy
                    write.mux(packet)


def ours(path: str, count: int) -> list[np.ndarray]:
    video = VideoFile(path)
    return list(video.read(RULES.indices(video.frames, video.fps, VideoSampling(frames=count))[0]))


def decord_s(path: str, count: int) -> list[np.ndarray]:
    import decord

    reader = decord.VideoReader(path, num_threads=DECODER_THREADS)
    indices = RULES.indices(len(reader), float(reader.get_avg_fps()), VideoSampling(frames=count))[0]
    return [reader[int(index)].asnumpy() for index in indices]


def beside(path: str, count: int) -> dict[str, Any]:
    """Both readers in turns; the frames are equal."""
    for one, other in zip(ours(path, count), decord_s(path, count), strict=True):
        assert np.array_equal(one, other)
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "decord": []}
    readers: dict[str, Callable[[str, int], list[np.ndarray]]] = {"ours": ours, "decord": decord_s}
    for _ in range(TURNS):
        for name, reader in readers.items():
            began, used = time.perf_counter(), time.process_time()
            reader(path, count)
            taken[name].append((time.perf_counter() - began, time.process_time() - used))
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
    (elapsed, cpu), (their_elapsed, their_cpu) = middle["ours"], middle["decord"]
    return {
        "elapsed_seconds": elapsed, "decord_elapsed_seconds": their_elapsed, "elapsed_ratio": elapsed / their_elapsed,
        "cpu_seconds": cpu, "decord_cpu_seconds": their_cpu, "cpu_ratio": cpu / their_cpu,
    }  # fmt: skip
