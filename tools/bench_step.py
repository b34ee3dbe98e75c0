"""The update of one group with the prompt shared by its completions against the naive way, which repeats it for each.

Both compute the same policy gradient of one prompt with its video and G completions. Naive: prompt and video G times in
the batch, one sequence each, logits of all positions at once. Shared: `jvr1.train.steps`, the training's own step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jvr1.data.batch import Arrays, Bucket, Clip, build_example, stack
from jvr1.errors import UserError, run_main
from jvr1.model.config import ModelConfig, TextConfig, VisionConfig
from jvr1.model.qwen2_5_vl import Prompt, Qwen25VL, init, merge
from jvr1.model.vision import Visual
from jvr1.rl import tgrpo
from jvr1.sharding import make_mesh, param_shardings, put_batch
from jvr1.train.steps import make_policy_gradients
from jvr1.train.trees import zeros_like


class Shape(NamedTuple):
    """What is measured: a model, frames of `height` x `width` pixels, prompt, completion length, group size."""

    model: ModelConfig
    frames: int
    height: int
    width: int
    bucket: Bucket
    group: int


MID = ModelConfig(
    TextConfig(512, 8, 8, 2, 1408, 16_384, mrope_section=(8, 12, 12)),
    VisionConfig(
        depth=8, hidden=320, heads=8, intermediate=864, out_hidden=512, full_blocks=(3, 7), tokens_per_second=2
    ),
    tied=False,
    image_token=16_380,
    video_token=16_381,
    vision_start_token=16_382,
    vision_end_token=16_383,
)
SHAPES = {
    "mid": Shape(MID, 16, 224, 448, Bucket("video", 8, 8, 1224, 128), 8),  # 1,024 visual and 200 text tokens
    "small": Shape(MID, 4, 112, 112, Bucket("video", 2, 1, 64, 16), 4),
}


def naive_logprobs(
    model: Qwen25VL, prompt: Prompt, visual: Visual | None, ids: Int[Array, "B G C"], temperature: float = 1.0
) -> Float[Array, "B G C"]:
    """Token log-probabilities with nothing shared: B*G sequences [prompt | completion], the video in each, the logits
    [B*G,P+C,V] of every position."""
    b, g, c = ids.shape
    prompt, visual = jax.tree.map(lambda x: jnp.repeat(x, g, axis=0), (prompt, visual))
    p, own = prompt.ids.shape[1], ids.reshape(b * g, c)
    places = prompt.next_position[:, None, None] + jnp.arange(c)[None, None]
    whole = Prompt(
        ids=jnp.concatenate([prompt.ids, own], axis=1),
        positions=jnp.concatenate([prompt.positions, jnp.broadcast_to(places, (b * g, 3, c))], axis=2),
        mask=jnp.concatenate([prompt.mask, jnp.ones((b * g, c), bool)], axis=1),
        visual_index=jnp.concatenate([prompt.visual_index, jnp.full((b * g, c), -1, jnp.int32)], axis=1),
        next_position=prompt.next_position,
    )
    logprobs = jax.nn.log_softmax(model.logits(model(whole, visual)) / temperature, axis=-1)
    last = p - 1 - jnp.argmax(prompt.mask[:, ::-1], axis=1)  # the prompt's last real position
    before = jnp.concatenate([last[:, None], jnp.broadcast_to(p + jnp.arange(c - 1)[None], (b * g, c - 1))], axis=1)
    predicted = jnp.take_along_axis(logprobs, before[:, :, None], axis=1)
    return jnp.take_along_axis(predicted, own[:, :, None], axis=2).reshape(b, g, c)


def make_naive_gradients(graphdef: nnx.GraphDef, algorithm: tgrpo.TGRPOConfig) -> Callable[..., Any]:
    """gradients(params, arrays, ids, advantage, mask, denominator) -> loss and its gradient."""

    @jax.jit
    def gradients(params, arrays, ids, advantage, mask, denominator):
        def loss(params):
            logprobs = naive_logprobs(merge(graphdef, params), arrays.prompt, arrays.visual, ids)
            return tgrpo.policy_loss(logprobs, None, None, advantage, mask, denominator, algorithm)[0]

        return jax.value_and_grad(loss)(params)

    return gradients


def make_inputs(shape: Shape, seed: int = 0) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray]:
    """One prompt with a clip of random pixels; random completions of several lengths; advantages."""
    rng, model, bucket = np.random.default_rng(seed), shape.model, shape.bucket
    clip = Clip(rng.integers(0, 256, (shape.frames, shape.height, shape.width, 3), np.uint8), 1.0)
    grid, merge_size = clip.grid(model), model.vision.merge
    visual = grid.steps * (grid.height // merge_size) * (grid.width // merge_size)
    text = rng.integers(0, model.image_token, bucket.prompt - visual - 2)
    media = [model.vision_start_token, *[model.video_token] * visual, model.vision_end_token]
    ids = np.concatenate([text[:8], media, text[8:]]).astype(np.int32)
    arrays = stack([build_example(ids, [clip], np.zeros(0, np.int32), bucket, model, rng)])
    completions = rng.integers(0, model.image_token, (1, shape.group, bucket.completion)).astype(np.int32)
    length = rng.integers(bucket.completion // 2, bucket.completion + 1, (1, shape.group))
    mask = np.arange(bucket.completion) < length[..., None]
    return arrays, completions, mask, rng.normal(size=(1, shape.group)).astype(np.float32)


def run(shape: str, rounds: int = 3) -> dict[str, Any]:
    """Times both ways in turn, after one call each that compiles; the ratio of their medians (above 1: shared is
    faster), and the largest difference of their gradients, relative to the largest gradient of that parameter.

    Raises UserError for a shape that does not exist.
    """
    if shape not in SHAPES:
        raise UserError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    one = SHAPES[shape]
    mesh, algorithm = make_mesh({"data": 1}, jax.devices()[:1]), tgrpo.TGRPOConfig(beta=0.0)
    graphdef, params = init(one.model, 0, remat="full")
    shardings = param_shardings(params, mesh)
    params = jax.device_put(params, shardings)
    arrays, *rest = put_batch(make_inputs(one), mesh)
    ids, mask, advantage = rest
    denominator = np.float32(one.group)
    shared_gradients = make_policy_gradients(graphdef, algorithm, shardings, temperature=1.0, chunk=128)
    naive_gradients = make_naive_gradients(graphdef, algorithm)
    unknown = jnp.zeros(mask.shape, jnp.float32)

    def shared():
        total = zeros_like(params)
        out = shared_gradients(
            params, {}, total, arrays, ids, None, unknown, unknown, np.bool_(True), advantage, mask, denominator
        )
        return out[1], out[0]

    naive = partial(naive_gradients, params, arrays, ids, advantage, mask, denominator)
    ways, seconds, results = {"shared": shared, "naive": naive}, {"shared": [], "naive": []}, {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(way())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": {"P": one.bucket.prompt, "C": one.bucket.completion, "G": one.group},
        "device": jax.devices()[0].device_kind,
        "seconds": medians,
        "ratio": {"update": medians["naive"] / medians["shared"]},
        "loss": {name: float(value[0]) for name, value in results.items()},
        "gradient_difference": difference(results["shared"][1], results["naive"][1]),
    }


def difference(a: Any, b: Any) -> float:
    """Largest |a - b| of any parameter over its largest |b|."""
    return max(
        float(jnp.max(jnp.abs(x - y)) / jnp.maximum(jnp.max(jnp.abs(y)), 1e-30))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def main() -> int:
    print(json.dumps(run(sys.argv[1] if len(sys.argv) > 1 else "mid"), indent=2))
    return 0


if __name__ == "__main__":
    run_main(main)
