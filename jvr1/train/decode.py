"""Generation as training runs use it: one jitted rollout for sampling and for greedy validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jvr1.data.batch import Arrays, Bucket
from jvr1.eval.run import Answer, Judge, Sampled, answer_questions
from jvr1.generate import Completions, Sampling, generate
from jvr1.model.qwen2_5_vl import merge
from jvr1.rl.user_reward import UserReward
from jvr1.sharding import put_batch, take_local
from jvr1.train.optimizer import combine
from jvr1.train.setup import Run


def make_rollout(run: Run) -> Callable[..., Completions]:
    """rollout(trainable, frozen, arrays, key, rows, sampling): rows[0] completions a prompt on the ordered frames,
    rows[1] on the shuffled ones. Compiled once a bucket, rows and sampling."""

    @partial(jax.jit, static_argnames=("rows", "sampling"))
    def rollout(trainable, frozen, arrays: Arrays, key, rows: tuple[int, ...], sampling: Sampling) -> Completions:
        model = merge(run.graphdef, combine(trainable, frozen))
        pairs = None
        if arrays.visual is not None:
            pairs = jnp.stack([arrays.visual.pair, arrays.shuffled][: len(rows)], axis=1)
        numbers = arrays.number[:, None] * sum(rows) + jnp.arange(sum(rows))[None]
        return generate(model, arrays.prompt, arrays.visual, pairs, arrays.valid, key, numbers, rows, sampling)

    return rollout


def sampling_of(run: Run, bucket: Bucket, *, greedy: bool = False) -> Sampling:
    """The run's sampling for a bucket, its length the bucket's."""
    sampling = run.settings.sampling
    return Sampling(
        max_tokens=bucket.completion,
        end_ids=run.end_ids,
        banned_ids=run.config.visual_tokens,
        temperature=0.0 if greedy else sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        pad_id=run.end_ids[-1],
    )


def to_host(completions: Completions) -> Sampled:
    """This process's rows."""
    return Sampled(*(take_local(x) for x in completions[:4]))


def make_judge(run: Run) -> Judge:
    reward = run.settings.reward
    user = UserReward(reward.user, timeout=reward.user_timeout, on_failure=reward.user_failure) if reward.user else None
    return Judge(reward.mode, run.settings.rl.format_weight, user, reward.user_weight)


def make_validate(run: Run, rollout: Callable[..., Completions] | None = None) -> Callable[[dict], list[Answer]]:
    """validate(trainable): greedy answers to the held-out questions, videos on ordered and on shuffled frames."""
    rollout = rollout or make_rollout(run)
    judge = Judge(run.settings.reward.mode)

    def validate(trainable: dict) -> list[Answer]:
        def decode(arrays: Arrays, bucket: Bucket, rows: Sequence[int]) -> Sampled:
            put = put_batch(arrays, run.mesh)
            return to_host(rollout(trainable, run.frozen, put, run.key, tuple(rows), sampling_of(run, bucket, greedy=True)))

        if run.held_out is None:
            return []
        microbatches = run.held_out.microbatches(0, run.held_out_count, {})
        return list(answer_questions(microbatches, decode, judge, run.tokenizer))

    return validate


