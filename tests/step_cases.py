"""Rows, rewards and completions of one optimizer step: unequal lengths, two rows that are not valid."""

from __future__ import annotations

import jax
import numpy as np

from jvr1.data.batch import Arrays, Bucket, Clip, Microbatch, build_example, empty_example
from jvr1.model.config import ModelConfig
from jvr1.rl import tgrpo
from jvr1.rollout.tasks import Task

BUCKET = Bucket("video", 2, 1, 24, 6)
ROWS, GROUP, SHUFFLED = 8, 4, 2
INVALID = (2, 5)


def example(rng: np.random.Generator, number: int, config: ModelConfig):
    """A clip of four frames among text of some length, and an answer of some length."""
    clip = Clip(rng.integers(0, 256, (4, 56, 56, 3), np.uint8), 1.0)
    text = rng.integers(3, 90, rng.integers(4, 14))
    ids = np.concatenate(
        [text[:2], [config.vision_start_token, *[config.video_token] * 8, config.vision_end_token], text[2:]]
    ).astype(np.int32)
    answer = rng.integers(3, 90, rng.integers(1, BUCKET.completion + 1)).astype(np.int32)
    return build_example(ids, [clip], answer, BUCKET, config, rng)._replace(number=np.int32(number))


def make_rows(config: ModelConfig, seed: int = 0):
    rng = np.random.default_rng(seed)
    rows = [example(rng, i, config) for i in range(ROWS)]
    return [empty_example(BUCKET, config) if i in INVALID else row for i, row in enumerate(rows)]


def as_task(arrays: Arrays, rows: tuple[int, ...]) -> Task:
    """rows[0] completions of each prompt on the ordered frames, rows[1] on the shuffled ones."""
    pairs = np.stack([arrays.visual.pair, arrays.shuffled][: len(rows)], axis=1)
    return Task(Microbatch(BUCKET, arrays, ()), arrays, pairs, rows)


def make_scores(seed: int = 0, longest: int = BUCKET.completion):
    """Rewards of groups and completions of unequal lengths; rows that are not valid hold garbage."""
    rng = np.random.default_rng(seed)
    accuracy = rng.integers(0, 2, (ROWS, GROUP)).astype(np.float32)
    valid = np.asarray([i not in INVALID for i in range(ROWS)])
    length = rng.integers(1, longest + 1, (ROWS, GROUP)).astype(np.int32) * valid[:, None]
    scores = tgrpo.RolloutScores(
        accuracy=accuracy,
        reward=accuracy + rng.random((ROWS, GROUP), np.float32),
        length=length.astype(np.int32),
        shuffled_accuracy=rng.integers(0, 2, (ROWS, SHUFFLED)).astype(np.float32),
        shuffled_valid=np.broadcast_to(valid[:, None], (ROWS, SHUFFLED)).copy(),
        valid=valid,
        is_video=np.ones(ROWS, bool),
        distinct_frames=np.full(ROWS, 4, np.int32),
    )
    return scores, rng.integers(3, 90, (ROWS, GROUP, BUCKET.completion)).astype(np.int32)


def part(tree, start: int, size: int):
    return jax.tree.map(lambda x: x[start : start + size], tree)
