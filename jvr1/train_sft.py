"""Supervised cold start: python -m jvr1.train_sft --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

Qwen2.5-VL learns chains of thought (Video-R1, arXiv 2503.21776, stage one). The prompt and its answer go through the
same pass as RL's prompt and completions, with G = 1. Departs from Video-R1's code in that the loss covers the answer
only (`sft.loss_on_prompt` turns its way on: prompt and visual placeholders too).
"""

from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jvr1 import config as settings
from jvr1.errors import run_main
from jvr1.model.qwen2_5_vl import merge
from jvr1.sharding import put_batch
from jvr1.train.flops import sft_flops
from jvr1.train.loop import Loop
from jvr1.train.losses import supervised_loss, token_scores
from jvr1.train.optimizer import combine
from jvr1.train.setup import open_run
from jvr1.train.trees import add_trees, zeros_like


def main() -> int:
    config, workdir = settings.parse(sys.argv)

    # --- mesh, model, optimizer, data
    run = open_run(config, workdir, targets=True)
    graphdef = run.graphdef

    # --- step: pure, compiled once a bucket
    def losses(params, arrays, denominator):
        model = merge(graphdef, params)
        ids = arrays.target[:, None]
        prompt, own = model.prompt_and_completions(arrays.prompt, arrays.visual, ids)
        score = partial(token_scores, model.logits, chunk=config.model.logit_chunk)
        mask = (arrays.target_mask & arrays.valid[:, None])[:, None].astype(jnp.float32)
        answer = score(own, ids)
        loss = supervised_loss(answer.logprobs, mask, denominator)
        if config.sft.loss_on_prompt:
            following = prompt_mask(arrays)[:, None].astype(jnp.float32)
            scores = score(prompt[:, None, :-1], arrays.prompt.ids[:, None, 1:])
            loss = loss + supervised_loss(scores.logprobs, following, denominator)
        entropy = jnp.sum(answer.entropy * mask)
        return loss, {"entropy": (entropy, jnp.sum(mask)), "answer_logprob": (jnp.sum(answer.logprobs * mask), jnp.sum(mask))}

    @partial(jax.jit, donate_argnums=2)
    def gradients(trainable, frozen, total, arrays, denominator):
        (loss, statistics), grads = jax.value_and_grad(
            lambda p: losses(combine(p, frozen), arrays, denominator), has_aux=True
        )(trainable)
        return add_trees(total, grads), loss, statistics

    @jax.jit
    def count(arrays):
        tokens = jnp.sum(arrays.target_mask & arrays.valid[:, None])
        prompt = jnp.sum(prompt_mask(arrays)) if config.sft.loss_on_prompt else 0
        return (tokens + prompt).astype(jnp.float32), tokens

    def prompt_mask(arrays):
        return arrays.prompt.mask[:, 1:] & arrays.valid[:, None]

    def train_step(step: int, microbatches) -> None:
        with loop.phase("update"):
            put = [put_batch(micro.arrays, run.mesh) for micro in microbatches]
            counts = [count(arrays) for arrays in put]
            denominator = sum(c for c, _ in counts)
            total = zeros_like(loop.state.params)
            for micro, arrays, (_, tokens) in zip(microbatches, put, counts, strict=True):
                total, loss, statistics = gradients(loop.state.params, run.frozen, total, arrays, denominator)
                loop.add({"loss": (loss, 1.0 / len(put)), "completion/tokens": (tokens, 1.0), **statistics})
                tokens = float(tokens) / max(int(np.sum(micro.arrays.valid)), 1)
                loop.flops += sft_flops(run.config, micro.bucket, len(micro.rows), tokens)
            loop.update(total, has_rows=bool(denominator > 0))

    # --- loop
    loop = Loop(run, {"loss": "loss", "tokens_per_second": "tok/s", "data/failed": "failed"})
    loop.run(train_step)
    return 0


if __name__ == "__main__":
    run_main(main)
