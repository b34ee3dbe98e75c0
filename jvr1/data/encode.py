"""What the worker processes do: one record, its media read, into one example of its bucket; nothing raises."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Bucket, Clip, build_example
from jvr1.data.cache import MediaCache
from jvr1.data.frame_cache import FrameCache, frames_key
from jvr1.data.index import Sized
from jvr1.data.media import Media, MediaError
from jvr1.data.prompts import PlaceholderError, PromptStyle, end_ids, prompt_ids, target_ids
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.data.vision import frame_pairs
from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.problems.kinds import Kind, load_kinds


@dataclass(frozen=True)
class Encoder:
    """How records become examples; travels to worker processes. buckets: none yet where they are to be fitted.

    read: `cache.MediaReader` of `media`, given up after a while. targets: whether examples carry the answer (SFT).
    real_seconds: M-RoPE time from the clip's own frame rate; else one second a step, as Video-R1 trained. kept: where
    frames are looked for before a file is read, and kept. kinds: the user's own, as `data.kinds` names them.
    """

    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    read: Sandbox
    media: MediaCache
    style: PromptStyle
    video: VideoSampling
    video_limits: PixelLimits
    image_limits: PixelLimits
    buckets: tuple[Bucket, ...]
    targets: bool
    real_seconds: bool
    kept: FrameCache | None = None
    kinds: tuple[str, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker process, whose table of kinds has none of the user's."""
        self.__dict__.update(state)
        load_kinds(self.kinds)

    def sampling(self, record: Record) -> VideoSampling:
        """Which frames of its video are read: those of its part, where it names one."""
        return self.video.within(record.start, record.end)

    def limits(self, record: Record) -> PixelLimits:
        return self.video_limits if record.data_type == "video" else self.image_limits

    def fingerprint(self) -> dict[str, Any]:
        """All that an index made by `measure` depends on, for `index.load_index`."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str() + str(self.tokenizer.chat_template)
        # an index made before there were families and own kinds stays good
        own: dict[str, Any] = {"family": self.model.model_type} if self.model.family.marked else {}
        if self.kinds:
            own["kinds"] = [_wording(k) for k in load_kinds(self.kinds)]
        style = {name: value for name, value in asdict(self.style).items() if value or name != "form"}
        return own | {
            "vision": self.model.vision,
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()[:16],
            "style": style,
            "video": self.video,
            "video_limits": self.video_limits,
            "image_limits": self.image_limits,
            "targets": self.targets,
            "max_decoded_mb": self.read.memory_mb,
        }

    def measure(self, record: Record, media: tuple[Probe, ...]) -> Sized:
        """What a record takes of a bucket, which is chosen later (`data.fitting`); reads no media. Raises MediaError
        where no frame or no size is left."""
        steps, windows, _ = self.extent(record, media)
        try:
            ids = self._ids(record, [self.grid(record, probe) for probe in media])
            completion = len(self._target(record)) if self.targets else 1
        except PlaceholderError as error:
            return Sized(0, None, f"visual placeholder: {error}")
        return Sized(len(ids), record.data_type, None, steps, windows, completion)

    def extent(self, record: Record, media: Sequence[Probe]) -> tuple[int, int, list[int]]:
        """Temporal steps of a record's media together, windows of the frame that has most, and visual tokens of each
        medium: images of a record have sizes of their own."""
        grids, vision = [self.grid(record, probe) for probe in media], self.model.vision
        windows = [self.model.family.windows(grid.height, grid.width, vision) for grid in grids]
        return sum(grid.steps for grid in grids), max(windows, default=0), [g.tokens(vision.merge) for g in grids]

    def grid(self, record: Record, probe: Probe) -> Grid:
        """One medium as the model gets it, but for `seconds_per_step`, which the file itself tells."""
        rules, patch, sampling = self.model.frames, self.model.vision.patch, self.sampling(record)
        numbers = rules.numbers(probe, sampling)
        height, width = rules.resized(probe, sampling, self.limits(record))
        times = () if probe.is_image else step_times(_own_clock(record, numbers / probe.fps))
        return Grid((len(numbers) + 1) // 2, height // patch, width // patch, times=times)

    def _ids(self, record: Record, grids: Sequence[Grid]) -> np.ndarray:
        return prompt_ids(self.tokenizer, record, self.style, grids, self.model)

    def _target(self, record: Record) -> np.ndarray:
        if not self.targets:
            return np.zeros(0, np.int32)
        return target_ids(self.tokenizer, record, self.style, end_ids(self.tokenizer, self.model)[0], self.model)

    def encode(self, record: Record, bucket: Bucket, order: np.random.Generator) -> Arrays:
        """The example. Raises MediaError when its media cannot be read, ValueError when it does not fit."""
        clips = [self._clip(record, path) for path in record.paths]
        ids = self._ids(record, [clip.grid(self.model) for clip in clips])
        return build_example(ids, clips, self._target(record), bucket, self.model, order)

    def frames(self, record: Record, path: str) -> Media:
        """A medium's frames as the model gets them. Raises MediaError, UserError."""
        how = (path, record.data_type, self.sampling(record), self.limits(record), self.model.frames)
        key = None if self.kept is None else frames_key(self.media, *how)
        if self.kept is None or key is None:
            return self.read(*how)
        media = self.kept.get(key)
        if media is None:
            media = self.read(*how)
            self.kept.put(key, media)
        return media

    def _clip(self, record: Record, path: str) -> Clip:
        media = self.frames(record, path)
        if record.data_type != "video":
            return Clip(media.frames, 0.0)
        times = step_times(_own_clock(record, media.nominal))
        return Clip(media.frames, media.seconds_per_step if self.real_seconds else 1.0, times)

    def try_encode(
        self, record: Record, bucket: Bucket, order: np.random.Generator
    ) -> tuple[Arrays | None, str | None]:
        """The example and None, or None and the reason as `cause` or `cause: message`."""
        try:
            return self.encode(record, bucket, order), None
        except MediaError as error:
            return None, error.cause
        except ValueError as error:
            return None, f"does not fit: {error}"


def _own_clock(record: Record, seconds: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """When frames are shown: the part of a video that a record names is a clip by itself, whose first frame is at 0.
    Rounded to what floats keep of a difference, so that texts of seconds are those of a file cut there."""
    return seconds if record.start is None else np.round(seconds - seconds[0], 9)


def step_times(seconds: Float64[np.ndarray, " N"]) -> tuple[float, ...]:
    """When each temporal step is shown: the mean of its two frames' seconds, an odd last frame twice."""
    pairs = seconds[frame_pairs(len(seconds))]
    return tuple(float(mean) for mean in pairs.mean(axis=1))


def _wording(kind: Kind) -> tuple:
    """What of a kind its prompts depend on."""
    units = ((kind.unit, kind.suffixes),) if kind.unit else ()
    return (kind.name, kind.suffix, kind.lists_options, *units)
