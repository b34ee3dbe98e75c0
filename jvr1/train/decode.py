"""Generation over batches of the data pipeline: one jitted rollout for sampling, validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Bucket
from jvr1.data.pipeline import Pipeline
from jvr1.distributed import Share, from_owner, gather
from jvr1.eval.run import Answer, Judge, Judged, Sampled, answer_questions, as_json
from jvr1.generate import Completions, Sampling, generate
from jvr1.model.config import ModelConfig
from jvr1.model.layers import constrain_batch
from jvr1.model.qwen2_5_vl import merge
from jvr1.rl.tgrpo import Rollout
from jvr1.rl.user_reward import UserReward
from jvr1.sharding import (
    batch_sharding,
    check_mesh,
    decode_mesh,
    param_shardings,
    put_batch,
    replicated,
    take_local,
)

MAX_ROWS = 4096
"""Completions a prompt may have: rows are numbered alike in all buckets, so that no two of a step share a key."""


@dataclass(frozen=True)
class Decoder:
    """Completions of a model whose batches lie on `mesh`, its weights laid out for generation.

    weights(params): a copy in the compute dtype, split over `tensor` of the generation mesh and replicated otherwise;
    what lies so already is not copied. rollout(weights, arrays, key, rows, sampling): rows[0] completions a prompt on
    the ordered frames, rows[1] on the shuffled ones; compiled once for each bucket, rows and sampling. lower(...): the
    same program from shapes, not run.
    """

    mesh: Mesh
    model: ModelConfig
    end_ids: tuple[int, ...]
    weights: Callable[[dict], dict]
    rollout: Callable[..., Completions]
    lower: Callable[..., jax.stages.Lowered]

    def sampling(self, bucket: Bucket, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """How a bucket is sampled: as many tokens as it holds, no visual placeholder ever."""
        return Sampling(
            max_tokens=bucket.completion,
            end_ids=self.end_ids,
            banned_ids=self.model.visual_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            pad_id=self.end_ids[-1],
        )

    def greedy(self, weights: dict, key: jax.Array) -> Callable[[Arrays, Bucket, Sequence[int]], Sampled]:
        """decode(arrays, bucket, rows) with the best token each time, for `eval.run.answer_questions`."""

        def decode(arrays: Arrays, bucket: Bucket, rows: Sequence[int]) -> Sampled:
            put = put_batch(arrays, self.mesh)
            return to_host(self.rollout(weights, put, key, tuple(rows), self.sampling(bucket)))

        return decode


def make_decoder(
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    model: ModelConfig,
    end_ids: tuple[int, ...],
    *,
    tensor: int = 0,
    dtype: str | None = None,
) -> Decoder:
    """tensor: ways the weights are split when generating (0: as on `mesh`). dtype: of the weights then (None: theirs).

    Raises UserError for a size that is not possible.
    """
    generation = decode_mesh(mesh, tensor)
    check_mesh(generation, model)
    batch, everywhere = batch_sharding(mesh), replicated(mesh)

    @partial(jax.jit, static_argnames=("rows", "sampling"), out_shardings=Completions(*(batch,) * 4, everywhere))
    def rollout(weights: dict, arrays: Arrays, key, rows: tuple[int, ...], sampling: Sampling) -> Completions:
        module = merge(graphdef, weights)
        arrays = jax.tree.map(constrain_batch, arrays)
        pairs = None
        if arrays.visual is not None:
            pairs = jnp.stack([arrays.visual.pair, arrays.shuffled][: len(rows)], axis=1)
        numbers = arrays.number[:, None] * MAX_ROWS + jnp.arange(sum(rows))[None]
        return generate(module, arrays.prompt, arrays.visual, pairs, arrays.valid, key, numbers, rows, sampling)

    def roll(*arguments) -> Completions:
        with jax.set_mesh(generation):
            return rollout(*arguments)

    def lower(*arguments) -> jax.stages.Lowered:
        with jax.set_mesh(generation):
            return rollout.lower(*arguments)

    return Decoder(mesh, model, end_ids, partial(lay_out, mesh=generation, dtype=dtype), roll, lower)


def lay_out(params: dict, mesh: Mesh, dtype: str | None = None) -> dict:
    """Parameters as they lie on another mesh of the same devices, in another dtype."""
    shardings = param_shardings(params, mesh)

    def there(x: jax.Array, sharding: NamedSharding) -> bool:
        return x.dtype == (dtype or x.dtype) and x.sharding.is_equivalent_to(sharding, x.ndim)

    def move(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        return x if there(x, sharding) else mover(sharding, str(dtype or x.dtype))(x)

    return jax.tree.map(move, params, shardings)


@cache
def mover(sharding: NamedSharding, dtype: str) -> Callable[[jax.Array], jax.Array]:
    """The jitted program that lays out a parameter."""
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


def to_host(completions: Completions) -> Sampled:
    """This process's rows."""
    return Sampled(*(take_local(x) for x in completions[:4]))


def make_judge(config: ConfigDict) -> Judge:
    """The reward of a run's config."""
    reward = config.reward
    user = UserReward(reward.user, timeout=reward.user_timeout, on_failure=reward.user_failure) if reward.user else None
    return Judge(reward.mode, config.rl.format_weight, user, reward.user_weight)


def shared_scores(judged: Judged, share: Share) -> Judged:
    """Scores that are the same on all processes that hold these rows: a user's reward may time out on one of them."""
    if not share.shared:
        return judged
    arrays = {name: x.tolist() for name, x in judged.rollout._asdict().items()}
    arrays = from_owner(arrays, share)
    same = {name: np.asarray(arrays[name], x.dtype) for name, x in judged.rollout._asdict().items()}
    return replace(judged, rollout=Rollout(**same))


def answer_all(
    pipeline: Pipeline, count: int, decode: Callable, judge: Judge, tokenizer: PreTrainedTokenizerBase, share: Share
) -> list[Answer]:
    """Greedy answers to questions, videos on ordered and on shuffled frames: on every process those of all."""
    own = list(answer_questions(pipeline.microbatches(0, count, {}), decode, judge, tokenizer))
    every = gather([as_json(answer) for answer in own] if share.owner else [])
    return [Answer(**answer) for answers in every for answer in answers]
