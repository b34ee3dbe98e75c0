"""The update of one group with the prompt shared by its completions against the naive way, which repeats it for each.

Both compute the same policy gradient of one prompt with its video and G completions. Naive: prompt and video G times in
the batch, one sequence each, logits of all positions at once. Shared: `jvr1.train.steps`, the training's own step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jvr1.data.batch import Arrays
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.vision_language import VisionLanguageModel, init, merge
from jvr1.rl import tgrpo
from jvr1.rl.objectives import policy_loss
from jvr1.sharding import make_mesh, param_shardings, put_batch
from jvr1.train.steps import PolicyBatch, make_policy_gradients
from jvr1.train.trees import zeros_like

from .shapes import make_inputs, named


def naive_logprobs(
    model: VisionLanguageModel,
    prompt: Prompt,
    visual: Visual | None,
    ids: Int[Array, "B G C"],
    temperature: float = 1.0,
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
    def gradients(
        params: dict, arrays: Arrays, ids: jax.Array, advantage: jax.Array, mask: jax.Array, denominator: jax.Array
    ) -> tuple[jax.Array, dict]:
        def loss(params: dict) -> jax.Array:
            logprobs = naive_logprobs(merge(graphdef, params), arrays.prompt, arrays.visual, ids)
            return policy_loss(logprobs, None, None, advantage, mask, denominator, algorithm)[0]

        return jax.value_and_grad(loss)(params)

    return gradients


def run(shape: str, rounds: int = 3) -> dict[str, Any]:
    """Times both ways in turn, after one call each that compiles; the ratio of their medians (above 1: shared is
    faster), and the largest difference of their gradients, relative to the largest gradient of that parameter.

    Raises UserError for a shape that does not exist.
    """
    one = named(shape)._replace(prompts=1)
    mesh, algorithm = make_mesh({"data": 1}, jax.devices()[:1]), tgrpo.TGRPOConfig(beta=0.0)
    graphdef, params = init(one.model, 0, remat="full")
    shardings = param_shardings(params, mesh)
    params = jax.device_put(params, shardings)
    arrays, ids, mask, advantage = put_batch(make_inputs(one), mesh)
    denominator = np.float32(one.group)
    shared_gradients = make_policy_gradients(graphdef, algorithm, shardings, temperature=1.0, chunk=128)
    naive_gradients = make_naive_gradients(graphdef, algorithm)
    unknown = jnp.zeros(mask.shape, jnp.float32)

    def shared() -> tuple[Any, Any]:
        total = zeros_like(params)
        batch = PolicyBatch(arrays, ids, None, unknown, unknown, np.bool_(True), advantage, mask, denominator)
        out = shared_gradients(params, {}, total, batch)
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
