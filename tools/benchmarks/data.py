"""What the way of the data costs: a sample's preparation stage by stage, and the share of padding in the batches.

Padding is counted twice. In token slots: merged visual tokens beside windows' slots, prompt tokens beside P. And by
compute, which the overall figure takes: forward FLOPs of the 7B's vision tower over a row's windows and of its decoder
over its prompt (`train.flops`), against those of as many whole windows and tokens as the row really fills.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jvr1 import config as settings
from jvr1.data import batch, encode, fitting, video
from jvr1.data.batch import Bucket, Need, choose_bucket
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.encode import Encoder, step_times
from jvr1.data.index import IndexEntry, build_index
from jvr1.data.prompts import PromptStyle
from jvr1.data.records import Record, load_records
from jvr1.data.sandbox import Sandbox
from jvr1.demo.dataset import Settings, questions, write_dataset
from jvr1.demo.questions import HARD, TASKS, WARMUP
from jvr1.demo.tiny_model import corpus, raw_config, tokenizer_files, train_tokenizer
from jvr1.model.config import ModelConfig
from jvr1.model.families import from_hf, published
from jvr1.model.inputs import Grid
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.plan.planning import named_model
from jvr1.train.flops import text_flops, vision_flops

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SAMPLES = 20


def run() -> dict[str, Any]:
    """All figures of this part."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer, tiny = demo_tokenizer(root)
        speed = preparation(root, tokenizer, tiny)
        demo = padding(demo_rows(root / "demo", tokenizer, tiny), tiny)
    mixture = {name: mixture_padding(name) for name in ("tgrpo_7b", "tgrpo_qwen3vl_8b")}
    auto = {name: fitted_padding(name) for name in mixture}
    return {"preparation": speed, "padding_demo": demo, "padding_mixture": mixture, "padding_auto": auto}


def mixture_padding(name: str) -> dict[str, Any]:
    """Of the simulated mixture in the buckets of a config."""
    config = settings.from_file(str(CONFIGS / f"{name}.py"))
    model = named_model(config.model.source)
    return padding(in_buckets(mixture_needs(20_000, config), settings.buckets(config), model), model)


def fitted_padding(name: str) -> dict[str, Any]:
    """The same in the buckets that `data.buckets=auto` fits to it."""
    config = settings.from_file(str(CONFIGS / f"{name}.py"))
    model, auto = named_model(config.model.source), config.data.auto
    rows = list(mixture_needs(20_000, config))
    needs = Counter(need for need, _ in rows)
    buckets = fitting.fit_training(needs, auto.completion, model.vision.units, auto.shapes, auto.padding)
    found = fitting.padding_of(needs, buckets, model.vision.units)
    return padding(in_buckets(iter(rows), buckets, model), model) | found._asdict()


def demo_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, ModelConfig]:
    """The demo model's tokenizer and configuration, without its weights."""
    trained = train_tokenizer(corpus(questions((*TASKS, *HARD, *WARMUP), each=48, seed=0)))
    for name, content in tokenizer_files(trained).items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder), from_hf(raw_config(trained))


# --- preparation of one sample: 16 of 300 frames of a 640x360 clip


def preparation(root: Path, tokenizer: PreTrainedTokenizerBase, tiny: ModelConfig) -> dict[str, Any]:
    """CPU seconds from the file to the example in one process, by stage; then the same through a helper process."""
    write_clip(root / "clip.mp4")
    model = replace(published("7b"), image_token=tiny.image_token, video_token=tiny.video_token)
    files, limits = MediaCache(str(root)), PixelLimits(128 * 784, 128 * 784)
    bucket = Bucket("video", 8, 8, 2048, 8)  # P: the demo's tokenizer cuts words small
    record = Record(0, "What comes first?", "video", "free-form", (), "<answer>x</answer>", None, "clip.mp4", "")
    with Sandbox(MediaReader(files), 60.0) as helper:
        encoder = Encoder(
            model, tokenizer, helper, files, PromptStyle(), VideoSampling(), limits, limits, (bucket,), False, True
        )

        def sample() -> None:
            encoder.encode(record, bucket, np.random.default_rng(0))

        sample()  # starts the helper
        began = time.perf_counter()
        for _ in range(SAMPLES):
            sample()
        elapsed = (time.perf_counter() - began) / SAMPLES
        with mock.patch.object(Sandbox, "__call__", lambda self, *arguments: self.function(*arguments)):
            sample()
            clock = Clock()
            with clock.watching(STAGES):
                for _ in range(SAMPLES):
                    sample()
    total = sum(clock.seconds.values()) / SAMPLES
    return {
        "clip": "16 of 300 frames of 640x360 H.264",
        "cpu_seconds": total,
        "samples_per_second_and_core": 1 / total,
        "share": {stage: seconds / SAMPLES / total for stage, seconds in clock.seconds.items()},
        "elapsed_seconds_with_helper": elapsed,
    }


STAGES = (
    (video.VideoFile, "__init__", "open"),
    (video.VideoFile, "_decoded", "decode"),
    (video, "upright", "decode"),
    (video, "_resize", "resize"),
    (batch, "_fill", "windows"),
    (encode, "prompt_ids", "tokenise"),
)
"""(where, function, stage): a stage is the time in its functions without that in other stages'."""


class Clock:
    """CPU seconds by stage, `other` for what is in none.

    The decoder works ahead in a thread of its own while other stages run: what this thread did not use is decoding.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = ["other"]
        self._since = time.thread_time()

    def _turn(self) -> None:
        now = time.thread_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self, stages: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Counts the time inside, the functions named put in their stage."""
        with ExitStack() as patches:
            for place, name, stage in stages:
                patches.enter_context(mock.patch.object(place, name, self._timed(getattr(place, name), stage)))
            self._since = time.thread_time()
            began = (time.process_time(), time.thread_time())
            yield
            self._turn()
            process, thread = time.process_time() - began[0], time.thread_time() - began[1]
            self.seconds["decode"] += process - thread

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self._turn()
            self._open.append(stage)
            try:
                return function(*arguments, **named)
            finally:
                self._turn()
                self._open.pop()

        return timed


def write_clip(
    path: Path,
    frames: int = 300,
    height: int = 360,
    width: int = 640,
    encoder: str = "libx264",
    options: dict[str, str] | None = None,
) -> None:
    """600 kbit/s at 640x360, as such clips are published: soft blobs that pan, with grain that uses the bits up."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 23, width // 8 + 38, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((8 * coarse.shape[1], 8 * coarse.shape[0])), np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(30), options=options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.bit_rate = 600_000 * height * width // (360 * 640)
        for number in range(frames):
            y, x = number % 180, number
            view = picture[y : y + height, x : x + width] + rng.integers(-9, 10, (height, width, 3), np.int16)
            pixels = view.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


# --- padding


@dataclass(frozen=True)
class Filled:
    """A row: its bucket, the merged visual tokens of a temporal step on average, temporal steps, prompt tokens."""

    bucket: Bucket
    tokens: float | int
    steps: int
    prompt: int


def padding(rows: Iterable[Filled | None], model: ModelConfig) -> dict[str, Any]:
    """Padding of each bucket in slots and by compute, and over all. None: a row that fits no bucket."""
    groups: dict[str, list[Filled]] = defaultdict(list)
    dropped = 0
    for row in rows:
        if row is None:
            dropped += 1
        else:
            groups[row.bucket.name].append(row)
    kept = sum(len(group) for group in groups.values())
    buckets = {name: _bucket_padding(group, kept, model) for name, group in sorted(groups.items())}
    whole = [row for group in groups.values() for row in group]
    return {"rows": kept, "dropped": dropped, "buckets": buckets, "overall": _waste(whole, model)}


def _bucket_padding(rows: list[Filled], kept: int, model: ModelConfig) -> dict[str, float]:
    slots = sum(r.bucket.steps * r.bucket.windows * model.vision.units for r in rows)
    visual = 1 - sum(r.steps * r.tokens for r in rows) / slots if slots else 0.0
    prompt = 1 - sum(r.prompt for r in rows) / sum(r.bucket.prompt for r in rows)
    return {"share": len(rows) / kept, "visual": visual, "prompt": prompt, "compute": _waste(rows, model)}


def _waste(rows: list[Filled], model: ModelConfig) -> float:
    """1 - compute that real tokens need / compute of the static shapes."""
    needed = sum(_forward(model, r.steps, r.tokens / model.vision.units, r.prompt) for r in rows)
    return 1 - needed / sum(_forward(model, r.bucket.steps, r.bucket.windows, r.bucket.prompt) for r in rows)


def _forward(model: ModelConfig, steps: int, windows: float, prompt: int) -> float:
    return vision_flops(model, steps, windows) + text_flops(model, prompt, prompt / 2, 0)


def demo_rows(root: Path, tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> Iterator[Filled | None]:
    """The RL file of a small demo data set in the buckets of configs/tiny.py."""
    root.mkdir()
    write_dataset(root, Settings(train=256, valid=32, test=32))
    config = settings.from_file(f"{CONFIGS / 'tiny.py'}:rl")
    files, buckets = MediaCache(str(root)), settings.buckets(config)
    video, image = settings.pixel_limits(config)
    sampling, style = settings.video_sampling(config), settings.style(config)
    reader = Sandbox(MediaReader(files), 60.0)
    encoder = Encoder(model, tokenizer, reader, files, style, sampling, video, image, buckets, False, True)
    names = {b.name: b for b in buckets}
    records = load_records(root / "rl.json")
    entries = fitting.in_buckets(build_index(records, files, {}, encoder.measure, 1), buckets, model)
    for record, entry in zip(records, entries, strict=True):
        yield None if entry.bucket is None else _filled(encoder, record, entry, names[entry.bucket])


def _filled(encoder: Encoder, record: Record, entry: IndexEntry, bucket: Bucket) -> Filled:
    if not bucket.steps:
        return Filled(bucket, 0, 0, entry.prompt_tokens)
    steps, _, tokens = encoder.extent(record, entry.media)
    return Filled(bucket, sum(tokens) / steps, steps, entry.prompt_tokens)


# --- the published mixture, simulated

VIDEO_SHARE = 0.44
VIDEO_SIZES = {
    (720, 1280): 0.60,
    (480, 640): 0.13,
    (240, 320): 0.04,
    (1280, 720): 0.10,
    (480, 480): 0.05,
    (320, 480): 0.08,
}
IMAGE_SIZES = {
    (480, 640): 0.22, (640, 480): 0.10, (768, 1024): 0.10, (1000, 1000): 0.08, (720, 1280): 0.08, (375, 500): 0.08,
    (1100, 850): 0.08, (600, 850): 0.10, (200, 300): 0.08, (200, 200): 0.05, (400, 1200): 0.03,
}  # fmt: skip
"""(height, width) -> share. Sides of pictures vary by up to 6% around these; those of videos do not."""
LENGTHS = ((0.75, 8.0, 60.0), (0.15, 5.0, 5.2), (0.10, 1.5, 8.0))
"""(share, from, to seconds): most clips fill their 16 frames; CLEVRER's last five seconds."""
TEMPLATE_TOKENS, QUESTION_MEDIAN, QUESTION_SIGMA = 160, 50, 0.7
"""The chat and Video-R1's template; question and options beside it follow a lognormal law."""


def mixture_needs(rows: int, config: ConfigDict, seed: int = 0) -> Iterator[tuple[Need, int]]:
    """What the rows of a mixture like Video-R1-260k take of a bucket, and the merged tokens of one step."""
    rng = np.random.default_rng(seed)
    sampling, model = settings.video_sampling(config), named_model(config.model.source)
    of_video, of_image = settings.pixel_limits(config)
    rules, vision = model.frames, model.vision
    for _ in range(rows):
        moving = rng.random() < VIDEO_SHARE
        probe, limits = (_video(rng), of_video) if moving else (_image(rng), of_image)
        numbers = rules.numbers(probe, sampling)
        height, width = (side // vision.patch for side in rules.resized(probe, sampling, limits))
        grid = Grid((len(numbers) + 1) // 2, height, width, times=step_times(numbers / 25.0) if moving else ())
        windows = model.family.windows(height, width, vision)
        text = TEMPLATE_TOKENS + int(rng.lognormal(np.log(QUESTION_MEDIAN), QUESTION_SIGMA))
        token = np.asarray([model.video_token if moving else model.image_token], np.int32)
        visual = len(model.family.placeholders(token, [grid], model, _cut))
        need = Need("video" if moving else "image", grid.steps, windows, visual + text, 1)
        yield need, height * width // vision.merge**2


def _cut(text: str, **_: Any) -> dict[str, list[int]]:
    """As many ids as Qwen's tokenizer cuts a time into: digits one by one."""
    return {"input_ids": [0] * len(re.findall(r" ?[a-z]+|\d|[^a-z\d ]+", text))}


def _video(rng: np.random.Generator) -> Probe:
    height, width = _pick(rng, VIDEO_SIZES)
    _, shortest, longest = LENGTHS[rng.choice(len(LENGTHS), p=[share for share, _, _ in LENGTHS])]
    frames = int(25 * rng.uniform(shortest, longest))
    return Probe(height, width, frames, 25.0)


def _image(rng: np.random.Generator) -> Probe:
    height, width = (round(side * rng.uniform(0.94, 1.06)) for side in _pick(rng, IMAGE_SIZES))
    return Probe(height, width, 1, 0.0)


def _pick(rng: np.random.Generator, sizes: dict[tuple[int, int], float]) -> tuple[int, int]:
    return list(sizes)[rng.choice(len(sizes), p=list(sizes.values()))]


def in_buckets(
    needs: Iterable[tuple[Need, int]], buckets: tuple[Bucket, ...], model: ModelConfig
) -> Iterator[Filled | None]:
    """Each row in the bucket that the index would choose."""
    for need, tokens in needs:
        bucket, _ = choose_bucket(need, buckets, model)
        yield None if bucket is None else Filled(bucket, tokens, need.steps, need.prompt)
