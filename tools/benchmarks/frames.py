"""What decoded frames on disk save: samples a second and core without, with a cold and with a warm cache, and the
share of a step that waits for data."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import zlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jvr1.data.batch import Bucket
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.encode import Encoder
from jvr1.data.frame_cache import FrameCache, frames_key
from jvr1.data.pipeline import Pipeline
from jvr1.data.prompts import PromptStyle
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.data.schedule import Sequential
from jvr1.data.store import RecordStore
from jvr1.model.families import published
from jvr1.model.media import PixelLimits, VideoSampling

from .data import demo_tokenizer

CLIPS, SECONDS, RATE = 8, 120, 30
STEP_SECONDS, STEP_ROWS, WORKERS = 16.0, 4, 2
"""A step of the 7B as jvr1 plan counts it for four H100: 16 prompts, of which a host with one of them reads 4."""
LIMITS = PixelLimits(128 * 784, 128 * 784)
BUCKET = Bucket("video", 8, 12, 2048, 8)


def run() -> dict[str, Any]:
    """All figures of this part."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_clips(root)
        encoder, kept = make_encoder(root), FrameCache(str(root / "kept"), 2**40).open()
        records = [_record(number) for number in range(CLIPS)]
        for record in records:
            (root / record.paths[0]).read_bytes()  # all three read from memory
        caching = replace(encoder, kept=kept)
        samples = {
            "none": _samples(encoder, records),
            "cold": _samples(caching, records),
            "warm": _samples(caching, records),
        }
        waiting = {"none": _waiting(root, encoder), "warm": _waiting(root, caching)}
        with Sandbox(MediaReader(encoder.media), 600.0) as helper:
            report = {
                "clip": f"16 of {SECONDS * RATE} frames of 1920x1080 H.264, {_megabytes(root):.0f} MB",
                "versions": ", ".join(f"{name} {version(name)}" for name in ("av", "pillow")),
                "sample": samples,
                "formats": _formats(replace(encoder, read=helper), kept, records[0]),
                "step": {"simulated_seconds": STEP_SECONDS, "rows": STEP_ROWS, "workers": WORKERS, "waits": waiting},
            }
    return report


def write_clips(root: Path) -> None:
    """Two-minute 1080p clips: one is encoded, a pattern that moves under grain, and copied under other names."""
    source = f"testsrc2=size=1920x1080:rate={RATE}:duration={SECONDS},noise=alls=12:allf=t"
    how = ["-c:v", "libx264", "-preset", "veryfast", "-b:v", "4M", "-pix_fmt", "yuv420p"]
    first = root / _record(0).paths[0]
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *how, str(first)], check=True)
    for number in range(1, CLIPS):
        shutil.copy(first, root / _record(number).paths[0])


def _record(number: int) -> Record:
    solution = "<answer>x</answer>"
    return Record(number, "What comes first?", "video", "free-form", (), solution, None, f"{number}.mp4", "")


def _megabytes(root: Path) -> float:
    return (root / _record(0).paths[0]).stat().st_size / 1e6


def make_encoder(root: Path) -> Encoder:
    """The 7B's sizes, read in this process."""
    tokenizer, tiny = demo_tokenizer(root)
    model = replace(published("7b"), image_token=tiny.image_token, video_token=tiny.video_token)
    files = MediaCache(str(root))
    reader = Sandbox(MediaReader(files), 600.0)
    return Encoder(
        model, tokenizer, reader, files, PromptStyle(), VideoSampling(), LIMITS, LIMITS, (BUCKET,), False, True
    )


def _samples(encoder: Encoder, records: list[Record]) -> dict[str, float]:
    """Every record once, in this process: seconds of all its threads, and samples a second and core."""
    direct = replace(encoder, read=encoder.read.function)
    began, cpu = time.perf_counter(), time.process_time()
    for record in records:
        direct.encode(record, BUCKET, np.random.default_rng(0))
    cpu, wall = (time.process_time() - cpu) / len(records), (time.perf_counter() - began) / len(records)
    return {"cpu_seconds": cpu, "wall_seconds": wall, "samples_per_second_and_core": 1 / cpu}


def _waiting(root: Path, encoder: Encoder) -> dict[str, float]:
    """Steps that sleep instead of computing, fed by worker processes: the share of them that waits for its rows. The
    first, in which the workers start, is left out."""
    rows = [number % CLIPS for number in range(4 * STEP_ROWS)]
    store = RecordStore.write(root / "store", [_record(number) for number in rows])
    plan = Sequential({BUCKET: list(range(len(rows)))}, STEP_ROWS)
    pipeline = Pipeline(plan, store, encoder, seed=0, per_step=1, workers=WORKERS, ahead=1)
    waits = []
    stream = pipeline.microbatches(0, len(plan.plans), {})
    for _ in plan.plans:
        began = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - began)
        time.sleep(STEP_SECONDS)
    stream.close()
    seconds = sum(waits[1:]) / len(waits[1:])
    return {"wait_seconds": seconds, "share_of_step": seconds / (seconds + STEP_SECONDS)}


def _formats(encoder: Encoder, kept: FrameCache, record: Record) -> dict[str, float]:
    """One entry raw, as it is kept, and what compressing it would give and cost."""
    media = encoder.frames(record, record.paths[0])
    how = (record.paths[0], "video", encoder.video, LIMITS, encoder.model.frames)
    key = frames_key(encoder.media, *how)
    assert key is not None
    raw = media.frames.tobytes()
    packed = zlib.compress(raw, 1)
    times = {}
    calls = {"read_raw_ms": lambda: kept.get(key), "decompress_zlib1_ms": lambda: zlib.decompress(packed)}
    for name, call in calls.items():
        began = time.process_time()
        for _ in range(10):
            call()
        times[name] = (time.process_time() - began) * 100
    return {"raw_mb": len(raw) / 1e6, "zlib1_mb": len(packed) / 1e6, **times}
