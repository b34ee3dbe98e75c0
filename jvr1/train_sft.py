"""Supervised cold start: python -m jvr1.train_sft --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

Qwen2.5-VL learns chains of thought (Video-R1, arXiv 2503.21776, stage one). The prompt and its answer go through the
same pass as RL's prompt and completions, with G = 1. Departs from Video-R1's code in that the loss covers the answer
only (`sft.loss_on_prompt` turns its way on: prompt and visual placeholders too).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jvr1 import config as settings
from jvr1.data.batch import Microbatch
from jvr1.processes.guard import run_distributed
from jvr1.sharding import put_batch
from jvr1.train.flops import sft_flops, trained_of
from jvr1.train.loop import Loop
from jvr1.train.setup import open_run
from jvr1.train.steps import make_answer_count, make_answer_gradients
from jvr1.train.trees import zeros_like

SHOWN = {"loss": "loss", "tokens_per_second": "tok/s", "data/failed": "failed"}


def main(command: settings.Command) -> int:
    config = command.config

    # --- mesh, model, optimizer, data; the state of a run that goes on
    loop = Loop(open_run(config, command.workdir, targets=True), SHOWN, command.profile)
    run = loop.run_

    # --- step: pure, compiled once a bucket
    on_prompt, trained = config.sft.loss_on_prompt, trained_of(run.params, run.trainable)
    count = make_answer_count(on_prompt=on_prompt)
    gradients = make_answer_gradients(run.graphdef, run.shardings, chunk=config.model.logit_chunk, on_prompt=on_prompt)

    def train_step(step: int, microbatches: Sequence[Microbatch]) -> None:
        with loop.phase("update"):
            put = [put_batch(micro.arrays, run.mesh) for micro in microbatches]
            counts = [count(arrays) for arrays in put]
            denominator = sum(c for c, _ in counts)
            total = zeros_like(loop.state.params)
            for micro, arrays, (_, tokens) in zip(microbatches, put, counts, strict=True):
                total, loss, statistics = gradients(loop.state.params, run.frozen, total, arrays, denominator)
                loop.add({"loss": (loss, 1.0 / len(put)), "completion/tokens": (tokens, 1.0), **statistics})
                answer = float(micro.arrays.target_mask.sum(axis=1).mean())
                flops = sft_flops(
                    run.config, micro.bucket, len(micro.rows), answer, on_prompt=on_prompt, trained=trained
                )
                loop.add({"flops": (flops, 1.0)})
            loop.update(total, has_rows=bool(denominator > 0))

    # --- loop
    return loop.run(train_step)


if __name__ == "__main__":
    run_distributed(main, lambda: settings.parse(sys.argv))
