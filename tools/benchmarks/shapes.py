"""What is measured: models, clips, prompts and completions of named sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jvr1.data.batch import Arrays, Bucket, Clip, build_example, stack_examples
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.families import published
from jvr1.model.qwen2_5_vl.config import MODEL_TYPE, VisionConfig


class Shape(NamedTuple):
    """A model in a dtype, and a step of `prompts` prompts: `frames` frames of `height` x `width` pixels, `group`
    completions on ordered frames and `shuffled` on shuffled ones. lora: the adapters' rank, the base in `dtype`; 0: all
    parameters are trained, in fp32."""

    model: ModelConfig
    frames: int
    height: int
    width: int
    bucket: Bucket
    group: int = 8
    shuffled: int = 4
    prompts: int = 1
    dtype: str = "float32"
    lora: int = 0


def _model(text: TextConfig, depth: int, hidden: int, heads: int, intermediate: int) -> ModelConfig:
    """The tower's full attention in its middle and its last block; the placeholders are the last words."""
    full = tuple(sorted({depth // 2 - 1, depth - 1} - {-1}))
    vision = VisionConfig(
        depth=depth, hidden=hidden, heads=heads, intermediate=intermediate, out_hidden=text.hidden, full_blocks=full,
        tokens_per_second=2,
    )  # fmt: skip
    image, video, start, end = range(text.vocab - 4, text.vocab)
    ids = {"image_token": image, "video_token": video, "vision_start_token": start, "vision_end_token": end}
    return ModelConfig(MODEL_TYPE, text, vision, tied=False, **ids)


SECTIONS = (8, 12, 12)
TINY = _model(TextConfig(128, 2, 4, 2, 352, 512, mrope_section=(4, 6, 6)), 2, 64, 2, 176)
SMALL = _model(TextConfig(256, 2, 4, 2, 704, 4_096, mrope_section=SECTIONS), 2, 64, 2, 176)
MID = _model(TextConfig(512, 8, 8, 2, 1_408, 16_384, mrope_section=SECTIONS), 8, 320, 8, 864)


def _published(size: str) -> Shape:
    """16 frames of 224 x 448 pixels, 512 new tokens, 8 prompts."""
    return Shape(published(size), 16, 224, 448, Bucket("video", 8, 8, 1_224, 512), prompts=8, dtype="bfloat16")


SHAPES = {
    "tiny": Shape(TINY, 8, 56, 56, Bucket("video", 4, 1, 66, 24), prompts=8),
    "small": Shape(SMALL, 16, 112, 112, Bucket("video", 8, 1, 184, 64)),
    "mid": Shape(MID, 16, 224, 448, Bucket("video", 8, 8, 1_224, 128)),  # 1,024 visual and 200 text tokens
    "3b": _published("3b"),
    "3b-64-rows": _published("3b")._replace(shuffled=0),
    "3b-256-rows": _published("3b")._replace(shuffled=0, prompts=32),
    "7b": _published("7b"),
    "7b-lora": _published("7b")._replace(lora=16),
    "tiny-lora": Shape(TINY, 8, 56, 56, Bucket("video", 4, 1, 66, 24), prompts=8, dtype="bfloat16", lora=4),
}


def named(name: str) -> Shape:
    """Raises UserError for a shape that does not exist."""
    if name not in SHAPES:
        raise UserError(f"no shape {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def resized(shape: Shape, *, frames: int = 0, completion: int = 0, layers: int = 0, **other: int) -> Shape:
    """With other sizes; 0: as it is. The prompt keeps its text."""
    bucket = shape.bucket
    steps = (frames or shape.frames) // 2
    visual = bucket.prompt - text_tokens(shape)
    bucket = replace(
        bucket,
        steps=steps,
        prompt=text_tokens(shape) + visual // bucket.steps * steps,
        completion=completion or bucket.completion,
    )
    model = shape.model
    if layers:
        model = replace(model, text=replace(model.text, layers=layers))
    return shape._replace(model=model, frames=2 * steps, bucket=bucket, **other)


def text_tokens(shape: Shape) -> int:
    """Tokens of the prompt that stand for no part of a frame."""
    unit = shape.model.vision.merge * shape.model.vision.patch
    return shape.bucket.prompt - shape.bucket.steps * (shape.height // unit) * (shape.width // unit)


def make_inputs(shape: Shape, seed: int = 0) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray]:
    """Prompts with clips of random pixels; random completions of several lengths and which of their tokens count;
    advantages."""
    rng, model, bucket = np.random.default_rng(seed), shape.model, shape.bucket
    examples = []
    for number in range(shape.prompts):
        clip = Clip(rng.integers(0, 256, (shape.frames, shape.height, shape.width, 3), np.uint8), 1.0)
        text = rng.integers(0, model.image_token, text_tokens(shape) - 2)
        visual = [model.video_token] * (bucket.prompt - text_tokens(shape))
        media = [model.vision_start_token, *visual, model.vision_end_token]
        ids = np.concatenate([text[:8], media, text[8:]]).astype(np.int32)
        example = build_example(ids, [clip], np.zeros(0, np.int32), bucket, model, rng)
        examples.append(example._replace(number=np.int32(number)))
    rows = (shape.prompts, shape.group)
    completions = rng.integers(0, model.image_token, (*rows, bucket.completion)).astype(np.int32)
    length = rng.integers(bucket.completion // 2, bucket.completion + 1, rows)
    mask = np.arange(bucket.completion) < length[..., None]
    return (
        jax.tree.map(np.asarray, stack_examples(examples)),
        completions,
        mask,
        rng.normal(size=rows).astype(np.float32),
    )
