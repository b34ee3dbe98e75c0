"""Static shapes: buckets, one example padded to its bucket, examples stacked into a microbatch."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from jvr1.data.records import Record
from jvr1.data.vision import frame_pairs, window_patches
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid, Prompt, Visual

MAX_BUCKETS = 8
MEDIA_KINDS = ("text", "image", "video")


@dataclass(frozen=True)
class Bucket:
    """A static shape: kind of media, F temporal steps, W windows a frame, P prompt tokens, C completion tokens."""

    kind: str
    steps: int
    windows: int
    prompt: int
    completion: int

    @property
    def name(self) -> str:
        return f"{self.kind}-F{self.steps}-W{self.windows}-P{self.prompt}-C{self.completion}"

    @property
    def frames(self) -> int:
        """Frame slots N: an image is one frame, paired with itself."""
        return self.steps * (2 if self.kind == "video" else 1)


def make_buckets(rows: Sequence[Sequence[Any]]) -> tuple[Bucket, ...]:
    """Buckets from (kind, F, W, P, C) rows of a config. Raises UserError for a shape that cannot be."""
    try:
        buckets = tuple(Bucket(str(kind), *(int(str(n)) for n in sizes)) for kind, *sizes in rows)
    except (TypeError, ValueError):
        raise UserError(f"data.buckets must be rows of (kind, F, W, P, C), got {list(rows)!r}") from None
    if not 0 < len(buckets) <= MAX_BUCKETS:
        raise UserError(f"data.buckets holds {len(buckets)} shapes; use 1 to {MAX_BUCKETS}: each compiles once")
    for b in buckets:
        empty = b.kind == "text"
        if (
            b.kind not in MEDIA_KINDS
            or b.prompt < 1
            or b.completion < 1
            or (b.steps < 1) != empty
            or (b.windows < 1) != empty
        ):
            raise UserError(
                f"data.buckets: {(b.kind, b.steps, b.windows, b.prompt, b.completion)} is not (kind, F, W, P, C) with "
                f"kind one of {', '.join(MEDIA_KINDS)}; text has F = W = 0, the others at least 1"
            )
    if len(set(buckets)) < len(buckets):
        raise UserError("data.buckets names a shape twice")
    return buckets


@dataclass(frozen=True)
class Need:
    """What an example takes of a bucket."""

    kind: str
    steps: int
    windows: int
    prompt: int
    completion: int


BUCKET_AXES = {
    "steps": "temporal steps",
    "windows": "windows a frame",
    "prompt": "prompt tokens",
    "completion": "completion tokens",
}


MISFIT = re.compile(r"too many ([a-z ]+): (\d+), where the (\w+) bucket has (\d+)")
"""A reason of `choose_bucket`: which side, how much is needed, the kind, how much there is."""


def choose_bucket(need: Need, buckets: Sequence[Bucket], config: ModelConfig) -> tuple[Bucket | None, str | None]:
    """The bucket with the fewest token slots that holds the example, or None and the reason as `cause: message`.

    Nothing is ever truncated.
    """
    fit = [b for b in buckets if b.kind == need.kind]
    if not fit:
        return None, f"no {need.kind} bucket"
    for field, name in BUCKET_AXES.items():
        most = max(getattr(b, field) for b in fit)
        fit = [b for b in fit if getattr(b, field) >= getattr(need, field)]
        if not fit:
            return None, f"too many {name}: {getattr(need, field)}, where the {need.kind} bucket has {most}"  # MISFIT
    return min(fit, key=lambda b: b.steps * b.windows * config.vision.units + b.prompt + b.completion), None


class Arrays(NamedTuple):
    """A microbatch as it goes to the device; without the leading axis B, one example.

    visual is None in a text bucket. shuffled: `visual.pair` under a permutation of the frames (itself where there is
    nothing to permute). target, target_mask: the tokens SFT learns. valid: False for a row that failed or fills up
    an epoch; it holds zeros. distinct: distinct frames of a video, 1 of an image. number: the row's number within its
    optimizer step, from which its random key comes.
    """

    prompt: Prompt
    visual: Visual | None
    shuffled: Int32[np.ndarray, "B F 2"] | None
    target: Int32[np.ndarray, "B C"]
    target_mask: Bool[np.ndarray, "B C"]
    valid: Bool[np.ndarray, " B"]
    distinct: Int32[np.ndarray, " B"]
    number: Int32[np.ndarray, " B"]


@dataclass(frozen=True)
class Row:
    """One place in a microbatch: `micro` and `place` name it in the whole run; record None: no row (an epoch's end).
    number: of the record among those its pipeline reads."""

    micro: int
    place: int
    record: Record | None
    error: str | None = None
    number: int = -1

    @property
    def cause(self) -> str | None:
        """By which a failure is counted: what stands before the error's colon."""
        return self.error.partition(":")[0] if self.error else None


@dataclass(frozen=True)
class Microbatch:
    """Rows of one bucket. `rows` says where each came from; `failures` those that could not be read."""

    bucket: Bucket
    arrays: Arrays
    rows: tuple[Row, ...]

    def without(self, failed: Set[tuple[int, int]]) -> Microbatch:
        """The same with rows at these (micro, place), which another process that feeds them could not read, as
        failures."""
        here = [(row.micro, row.place) in failed for row in self.rows]
        rows = tuple(
            replace(row, error=row.error or "failed on another process") if gone else row
            for row, gone in zip(self.rows, here, strict=True)
        )
        return replace(self, arrays=self.arrays._replace(valid=self.arrays.valid & ~np.asarray(here)), rows=rows)


def empty_example(bucket: Bucket, config: ModelConfig) -> Arrays:
    """A row of zeros, finite in every pass, that weighs nothing."""
    vision, p, c = config.vision, bucket.prompt, bucket.completion
    visual = shuffled = None
    if bucket.steps:
        frames = np.zeros((bucket.frames, bucket.windows, vision.slots, vision.patch_values), np.uint8)
        pair = np.zeros((bucket.steps, 2), np.int32)
        hw = np.full((bucket.steps, bucket.windows, vision.slots, 2), -1, np.int32)
        visual, shuffled = Visual(frames, pair, hw), pair.copy()
    mask = np.zeros(p, bool)
    mask[0] = True  # the first completion token is predicted from a real position
    position = np.zeros((3, p), np.int32)
    prompt = Prompt(np.zeros(p, np.int32), position, mask, np.full(p, -1, np.int32), np.int32(1))
    target = np.zeros(c, np.int32)
    return Arrays(prompt, visual, shuffled, target, np.zeros(c, bool), np.False_, np.int32(0), np.int32(0))


@dataclass(frozen=True)
class Clip:
    """One image or video ready for a batch: frames [N,Hp,Wp,3] sized to whole merged tokens; `times` as of `Grid`."""

    frames: np.ndarray
    seconds_per_step: float
    times: tuple[float, ...] = ()

    def grid(self, config: ModelConfig) -> Grid:
        n, height, width, _ = self.frames.shape
        patch = config.vision.patch
        return Grid((n + 1) // 2, height // patch, width // patch, self.seconds_per_step, self.times)


def build_example(
    ids: Int32[np.ndarray, " T"],
    clips: Sequence[Clip],
    target: Int32[np.ndarray, " t"],
    bucket: Bucket,
    config: ModelConfig,
    order: np.random.Generator,
) -> Arrays:
    """One example in its bucket: the prompt padded on the right, media in window order, the twin's permutation.

    Raises ValueError when something does not fit, which the index excludes.
    """
    arrays = empty_example(bucket, config)
    grids = [clip.grid(config) for clip in clips]
    positions, following = config.family.positions(ids, grids, config)
    t = len(ids)
    if t > bucket.prompt or len(target) > bucket.completion:
        raise ValueError(f"{t} prompt and {len(target)} target tokens do not fit {bucket.name}")
    prompt = arrays.prompt
    prompt.ids[:t], prompt.positions[:, :t], prompt.mask[:t] = ids, positions, True
    distinct = 0
    if arrays.visual is not None and arrays.shuffled is not None:
        prompt.visual_index[:t][np.isin(ids, config.visual_tokens)] = _fill(arrays.visual, clips, config)
        distinct = len({frame.tobytes() for clip in clips for frame in clip.frames})
        arrays.shuffled[...] = arrays.visual.pair
        if bucket.kind == "video":
            arrays.shuffled[...] = shuffled_order(len(clips[0].frames), order)[arrays.visual.pair]
    arrays.target[: len(target)], arrays.target_mask[: len(target)] = target, True
    return arrays._replace(
        prompt=prompt._replace(next_position=np.int32(following)), valid=np.True_, distinct=np.int32(distinct)
    )


def _fill(visual: Visual, clips: Sequence[Clip], config: ModelConfig) -> Int32[np.ndarray, " tokens"]:
    """Writes clips into the slots of one example; returns the merged-token index of each visual token in order."""
    vision = config.vision
    _, windows, _, _ = visual.frames.shape
    at_frame = at_step = 0
    index = []
    for clip in clips:
        steps, height, width, *_ = clip.grid(config)
        layout = config.family.layout(height, width, vision)
        n, w = len(clip.frames), len(layout.hw)
        if at_frame + n > len(visual.frames) or at_step + steps > len(visual.pair) or w > windows:
            raise ValueError(f"{n} frames of {w} windows do not fit the bucket")
        visual.frames[at_frame : at_frame + n, :w] = window_patches(clip.frames, layout, vision.patch)
        visual.hw[at_step : at_step + steps, :w] = layout.hw
        visual.pair[at_step : at_step + steps] = frame_pairs(n) + at_frame
        starts = (at_step + np.arange(steps, dtype=np.int32)) * windows * vision.units
        index.append((starts[:, None] + layout.unit[None]).reshape(-1))
        at_frame, at_step = at_frame + n, at_step + steps
    return np.concatenate(index).astype(np.int32)


NEAR_IDENTITY = 0.25


def shuffled_order(n: int, order: np.random.Generator) -> Int32[np.ndarray, " n"]:
    """A permutation of n frames that shuffles: one with under a quarter of all pairs out of order is redrawn."""
    pairs = n * (n - 1) // 2
    while True:
        permutation = order.permutation(n)
        turned = np.triu(permutation[:, None] > permutation[None, :], 1).sum()
        if turned >= NEAR_IDENTITY * pairs:
            return permutation.astype(np.int32)


def stack_examples(examples: Sequence[Arrays]) -> Arrays:
    """B examples of one bucket with a leading axis."""

    def join(*leaves: Any) -> np.ndarray | None:
        return None if leaves[0] is None else np.stack([np.asarray(x) for x in leaves])

    first = examples[0]
    visual = (
        None if first.visual is None else Visual(*(join(*x) for x in zip(*(e.visual for e in examples), strict=True)))
    )
    prompt = Prompt(*(join(*x) for x in zip(*(e.prompt for e in examples), strict=True)))
    rest = (join(*x) for x in zip(*(e[2:] for e in examples), strict=True))
    return Arrays(prompt, visual, *rest)
