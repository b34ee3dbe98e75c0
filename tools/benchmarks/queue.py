"""A queue that keeps a batch full against fixed batches, each of which waits for its longest row.

Both decode the same rows with the same programs. Single: one completion a question, as in evaluation; a place is given
to the next question when its row ends. Group: 8 completions of a video and 4 on shuffled frames, as in training; the
queue decodes 2 + 1 of a prompt at a time and four times as many prompts, so that both have as many rows under way.
The lengths of rows are given: lognormal, cut off at 768, of mean 385, as those of the reference's runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jvr1.data.batch import Bucket, Microbatch
from jvr1.errors import UserError
from jvr1.model.vision_language import init
from jvr1.rollout.decoder import Decoder, make_decoder
from jvr1.rollout.generate import Room
from jvr1.rollout.queue import FOREVER
from jvr1.rollout.tasks import Task
from jvr1.sharding import make_mesh

from .shapes import SHAPES, Shape, make_inputs

LONGEST, MEAN, SPREAD = 768, 385, 0.55
GROUP, LANES = (8, 4), 2


class Load(NamedTuple):
    """What is decoded: `rows` under way at a time, and so many batches of them."""

    shape: Shape
    rows: int
    batches: int


def _load(name: str, steps: int, windows: int, prompt: int, longest: int, batches: int) -> Load:
    shape = SHAPES[name]
    bucket = Bucket("video", steps, windows, prompt, longest)
    return Load(shape._replace(frames=2 * steps, bucket=bucket, prompts=1, group=GROUP[0]), 12, batches)


LOADS = {
    "mid": _load("mid", 8, 8, 1_224, LONGEST, 8),
    "small": _load("small", 2, 1, 64, LONGEST, 8),
    "smoke": _load("small", 2, 1, 64, 24, 2),
}


def draw_lengths(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """`count` lengths of the distribution above, scaled to `longest`: its quantiles, in random order."""
    normal = statistics.NormalDist()
    z = np.asarray([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    low, high = 1.0, float(LONGEST)
    for _ in range(40):  # the median that gives the mean
        middle = (low + high) / 2
        lengths = np.clip(np.rint(middle * np.exp(SPREAD * z)), 1, LONGEST)
        low, high = (middle, high) if lengths.mean() < MEAN else (low, middle)
    lengths = np.maximum(1, np.rint(lengths * longest / LONGEST)).astype(np.int32)
    return np.random.default_rng(seed).permutation(lengths)


def make_tasks(load: Load, rows: tuple[int, ...], prompts: int) -> list[Task]:
    """Microbatches of `prompts` prompts, as many as the load has rows; no row draws an end token."""
    shape, of_batch = load.shape, prompts * sum(rows)
    lengths = draw_lengths(load.batches * load.rows, shape.bucket.completion).reshape(-1, prompts, sum(rows))
    assert of_batch == load.rows
    tasks = []
    for number, most in enumerate(lengths):
        made = [make_inputs(shape, number * prompts + i)[0] for i in range(prompts)]
        arrays = jax.tree.map(lambda *x: np.concatenate(x), *made)
        arrays = arrays._replace(number=np.arange(prompts, dtype=np.int32) + number * prompts)
        pairs = np.stack([arrays.visual.pair, arrays.shuffled][: len(rows)], axis=1)
        tasks.append(Task(Microbatch(shape.bucket, arrays, (None,) * prompts), arrays, pairs, rows, most))
    return tasks


def fixed(decoder: Decoder, weights: dict, tasks: list[Task], key: jax.Array) -> Iterator[np.ndarray]:
    """One batch after another, each to its last row; their lengths."""
    bits = np.asarray(jax.random.key_data(key))
    for task in tasks:
        bucket = task.micro.bucket
        sampling = decoder.sampling(bucket.completion, temperature=1.0)
        how = {"room": Room(bucket.prompt, task.rows, task.rows), "sampling": sampling}
        slots = decoder.programs.of(weights, bits, (task.arrays, task.pairs, task.limits), **how)
        slots, *_ = decoder.programs.advance(weights, bits, slots, len(task.arrays.valid), FOREVER, **how)
        yield decoder.programs.results(slots).length


def queued(decoder: Decoder, weights: dict, tasks: list[Task], key: jax.Array, **how: int) -> Iterator[np.ndarray]:
    """All as one queue; the lengths of rows as they end."""
    for done in decoder.queue(weights, tasks, key, temperature=1.0, **how):
        yield from (one.sampled.length[None] for one in done)


def compare(ways: dict[str, Callable[[], Iterator[np.ndarray]]], rounds: int) -> dict[str, Any]:
    """Times the ways in turn after one round that compiles; the median over rounds of their ratio, above 1 where the
    queue is faster."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = dict.fromkeys(ways, 0)
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            tokens[name] = sum(int(lengths.sum()) for lengths in way())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    assert len(set(tokens.values())) == 1, tokens
    ratios = [a / b for a, b in zip(seconds["fixed"], seconds["queue"], strict=True)]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def run(shape: str, rounds: int = 2) -> dict[str, Any]:
    """Both cases. Raises UserError for a shape that does not exist."""
    if shape not in LOADS:
        raise UserError(f"no shape {shape!r}; there are {', '.join(LOADS)}")
    load = LOADS[shape]
    model, key = load.shape.model, jax.random.key(0)
    graphdef, params = init(model, 0)
    decoder = make_decoder(graphdef, make_mesh({"data": 1}, jax.devices()[:1]), model, (model.image_token,))
    weights = decoder.weights(params)
    report: dict[str, Any] = {"device": jax.devices()[0].device_kind}
    for name, rows, lanes in (("single", (1,), 0), ("group", GROUP, LANES)):
        prompts = load.rows // sum(rows)
        tasks = make_tasks(load, rows, prompts)
        slots = prompts * (rows[0] // lanes if lanes else 1)
        lengths = np.concatenate([task.most.reshape(-1) for task in tasks])
        report[name] = {
            "rows": len(lengths),
            "rows_at_a_time": load.rows,
            "mean_length": float(lengths.mean()),
            "longest": int(lengths.max()),
        } | compare(
            {
                "fixed": lambda tasks=tasks: fixed(decoder, weights, tasks, key),
                "queue": lambda tasks=tasks, slots=slots, lanes=lanes: queued(
                    decoder, weights, tasks, key, slots=slots, lanes=lanes
                ),
            },
            rounds,
        )
    return report
