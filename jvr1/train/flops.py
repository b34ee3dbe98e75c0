"""Useful floating-point operations of a step, of training's metrics, the planner and the benchmarks.

What is counted of a pass through the model, and what not, is said in `jvr1.model.flops`.
"""

from __future__ import annotations

import jax

from jvr1.data.batch import Bucket
from jvr1.model.config import ModelConfig
from jvr1.model.flops import ALL, Number, Pass, Trained, Walk
from jvr1.model.parameters import A
from jvr1.sharding import path_name


def trained_of(params: dict, trainable: dict) -> Trained:
    """As `train.optimizer.partition` parts them: all parameters, and those that are trained. Arrays or shapes."""
    every = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    ranks = {name.removesuffix(f"/{A}"): int(x.shape[-1]) for name, x in every.items() if name.endswith(f"/{A}")}
    return Trained(frozenset(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trainable)), ranks)


def vision_flops(config: ModelConfig, steps: int, windows: int, trained: Trained = ALL) -> float:
    """Forward FLOPs of the tower over `steps` temporal steps of `windows` windows (slots counted, full or not)."""
    walk = Walk(trained)
    walk.tower(config, steps, windows)
    return walk.sums.forward


def text_flops(config: ModelConfig, queries: Number, keys: Number, head: Number, trained: Trained = ALL) -> float:
    """Forward FLOPs of the decoder over `queries` tokens that each see `keys` tokens; `head` of them get logits."""
    walk = Walk(trained)
    walk.decoder(config, queries, queries * keys, head, False)
    return walk.sums.forward


def prompt_flops(config: ModelConfig, bucket: Bucket, streams: int, trained: Trained = ALL) -> float:
    """Forward FLOPs of `streams` encodings of one prompt with its media."""
    vision = vision_flops(config, bucket.steps, bucket.windows, trained)
    return streams * (vision + text_flops(config, bucket.prompt, bucket.prompt / 2, 0, trained))


def completion_flops(config: ModelConfig, bucket: Bucket, rows: int, tokens: Number, trained: Trained = ALL) -> float:
    """Forward FLOPs of `rows` completions of `tokens` tokens over one shared prompt, logits included."""
    return rows * text_flops(config, tokens, bucket.prompt + tokens / 2, tokens, trained)


def scoring(
    config: ModelConfig,
    bucket: Bucket,
    rows: int,
    tokens: Number,
    trained: Trained = ALL,
    *,
    on_prompt: bool = False,
) -> Pass:
    """One prompt, encoded once, and `rows` completions of `tokens` tokens, forward and backward.

    on_prompt: the prompt's tokens get logits, too.
    """
    walk, prompt = Walk(trained), bucket.prompt
    live = walk.tower(config, bucket.steps, bucket.windows)
    pairs = prompt * prompt / 2 + rows * tokens * (prompt + tokens / 2)
    walk.decoder(config, prompt + rows * tokens, pairs, rows * tokens + on_prompt * prompt, live)
    return walk.sums


def step_flops(
    config: ModelConfig,
    bucket: Bucket,
    prompts: int,
    group: int,
    shuffled: int,
    tokens: Number,
    *,
    reference: bool,
    updates: int = 1,
    passes: int = 0,
    trained: Trained = ALL,
) -> float:
    """A T-GRPO step over `prompts` prompts of one bucket: sampling, one scoring by the reference, which has no
    adapters, `passes` by the policy, and `updates` times forward and backward. tokens: mean tokens of a completion."""
    streams = 2 if shuffled and bucket.kind == "video" else 1
    rows = group + (shuffled if streams == 2 else 0)
    sampling = prompt_flops(config, bucket, streams, trained) + completion_flops(config, bucket, rows, tokens, trained)
    anchor = scoring(config, bucket, group, tokens).forward if reference else 0.0
    own = scoring(config, bucket, group, tokens, trained)
    return prompts * (sampling + anchor + passes * own.forward + updates * own.both)


def sft_flops(
    config: ModelConfig,
    bucket: Bucket,
    prompts: int,
    tokens: Number,
    *,
    on_prompt: bool = False,
    trained: Trained = ALL,
) -> float:
    """A supervised step over `prompts` examples of `tokens` target tokens. on_prompt: the prompt is learned, too."""
    return prompts * scoring(config, bucket, 1, tokens, trained, on_prompt=on_prompt).both
