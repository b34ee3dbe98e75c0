"""Generation over batches of the data pipeline: one jitted rollout for sampling, validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvr1.data.batch import Arrays, Bucket
from jvr1.data.pipeline import Pipeline
from jvr1.eval.run import VALIDATION, Decode, Judge, Sampled, answer_questions
from jvr1.eval.score import Question
from jvr1.generate import Completions, Sampling, generate
from jvr1.model.config import ModelConfig
from jvr1.model.qwen2_5_vl import merge
from jvr1.rl.user_reward import UserReward
from jvr1.sharding import put_batch, take_local
from jvr1.train.optimizer import combine

MAX_ROWS = 4096
"""Completions a prompt may have: rows are numbered alike in all buckets, so that no two of a step share a key."""


@dataclass(frozen=True)
class Decoder:
    """Completions of a model on a mesh.

    rollout(trainable, frozen, arrays, key, rows, sampling, pairs): rows[0] completions a prompt on the ordered frames,
    rows[1] on the shuffled ones, or on those that `pairs` [B,S,F,2] names; compiled once for each bucket, rows and
    sampling.
    """

    mesh: Mesh
    model: ModelConfig
    end_ids: tuple[int, ...]
    rollout: Callable[..., Completions]

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

    def answering(
        self, trainable: dict, frozen: dict, key: jax.Array, *, temperature: float = 0.0, top_p: float = 1.0
    ) -> Decode:
        """What `eval.run.answer_questions` calls: by default the best token each time."""

        def decode(arrays: Arrays, bucket: Bucket, pairs: np.ndarray | None, rows: tuple[int, ...]) -> Sampled:
            sampling = self.sampling(bucket, temperature=temperature, top_p=top_p)
            put, pairs = put_batch((arrays, pairs), self.mesh)
            return to_host(self.rollout(trainable, frozen, put, key, rows, sampling, pairs))

        return decode


def make_decoder(graphdef: nnx.GraphDef, mesh: Mesh, model: ModelConfig, end_ids: tuple[int, ...]) -> Decoder:
    @partial(jax.jit, static_argnames=("rows", "sampling"))
    def rollout(
        trainable, frozen, arrays: Arrays, key, rows: tuple[int, ...], sampling: Sampling, pairs=None
    ) -> Completions:
        module = merge(graphdef, combine(trainable, frozen))
        if arrays.visual is not None and pairs is None:
            pairs = jnp.stack([arrays.visual.pair, arrays.shuffled][: len(rows)], axis=1)
        numbers = arrays.number[:, None] * MAX_ROWS + jnp.arange(sum(rows))[None]
        return generate(module, arrays.prompt, arrays.visual, pairs, arrays.valid, key, numbers, rows, sampling)

    return Decoder(mesh, model, end_ids, rollout)


def to_host(completions: Completions) -> Sampled:
    """This process's rows."""
    return Sampled(*(take_local(x) for x in completions[:4]))


def make_judge(config: ConfigDict) -> Judge:
    """The reward of a run's config."""
    reward = config.reward
    user = UserReward(reward.user, timeout=reward.user_timeout, on_failure=reward.user_failure) if reward.user else None
    return Judge(reward.mode, config.rl.format_weight, user, reward.user_weight)


def answer_all(pipeline: Pipeline, count: int, decode: Decode, tokenizer) -> list[Question]:
    """Greedy answers to questions, videos on ordered and on shuffled frames."""
    batches = answer_questions(pipeline.microbatches(0, count, {}), decode, tokenizer, VALIDATION)
    return [question for batch in batches for question in batch]
