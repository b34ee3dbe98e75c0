"""Useful floating-point operations of a pass, counted from the shapes: products of weights and of attention."""

from __future__ import annotations

from jvr1.data.batch import Bucket
from jvr1.model.config import ModelConfig


def vision_flops(config: ModelConfig, steps: int, windows: int) -> float:
    """Forward FLOPs of the tower over `steps` temporal steps of `windows` windows (slots counted, full or not)."""
    v = config.vision
    slots = steps * windows * v.slots
    block = 4 * v.hidden**2 + 3 * v.hidden * v.intermediate
    full = len([i for i in v.full_blocks if i < v.depth])
    span = full * windows * v.slots + (v.depth - full) * v.slots
    merged = v.hidden * v.merge**2
    merger = merged**2 + merged * v.out_hidden
    weights = 2 * slots * (v.depth * block + 2 * v.patch_values * v.hidden) + 2 * (slots / v.merge**2) * merger
    return weights + 4 * slots * span * v.hidden


def text_flops(config: ModelConfig, queries: float | int, keys: float | int, head: float | int) -> float:
    """Forward FLOPs of the decoder over `queries` tokens that each see `keys` tokens; `head` of them get logits."""
    t = config.text
    width = t.heads * t.head_size
    layer = 2 * t.hidden * (width + t.kv_heads * t.head_size) + 3 * t.hidden * t.intermediate
    return 2 * t.layers * queries * layer + 4 * t.layers * queries * keys * width + 2 * head * t.hidden * t.vocab


def prompt_flops(config: ModelConfig, bucket: Bucket, streams: int) -> float:
    """Forward FLOPs of `streams` encodings of one prompt with its media."""
    vision = vision_flops(config, bucket.steps, bucket.windows)
    return streams * (vision + text_flops(config, bucket.prompt, bucket.prompt / 2, 0))


def completion_flops(config: ModelConfig, bucket: Bucket, rows: int, tokens: float | int) -> float:
    """Forward FLOPs of `rows` completions of `tokens` tokens over one shared prompt, logits included."""
    return rows * text_flops(config, tokens, bucket.prompt + tokens / 2, tokens)


def step_flops(
    config: ModelConfig,
    bucket: Bucket,
    prompts: int,
    group: int,
    shuffled: int,
    tokens: float | int,
    *,
    reference: bool,
    updates: int = 1,
) -> float:
    """A T-GRPO step over `prompts` prompts of one bucket: sampling, one scoring by the reference, `updates` times
    forward and backward.

    tokens: mean tokens of a completion. A backward pass counts twice its forward; recomputation does not count.
    """
    streams = 2 if shuffled and bucket.kind == "video" else 1
    rows = group + (shuffled if streams == 2 else 0)
    sampling = prompt_flops(config, bucket, streams) + completion_flops(config, bucket, rows, tokens)
    once = prompt_flops(config, bucket, 1) + completion_flops(config, bucket, group, tokens)
    return prompts * (sampling + (3 * updates + reference) * once)


def sft_flops(config: ModelConfig, bucket: Bucket, prompts: int, tokens: float | int) -> float:
    """A supervised step over `prompts` examples of `tokens` target tokens."""
    return 3 * prompts * (prompt_flops(config, bucket, 1) + completion_flops(config, bucket, 1, tokens))
