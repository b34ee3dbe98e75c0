"""Supervised cold start: jvr1 train-sft --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

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
from jvr1.rl.judge import make_judge
from jvr1.starting import tell_start
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally
from jvr1.train.setup import open_run
from jvr1.train.supervised import make_learn

SHOWN = {
    "loss": "loss",
    "update/gradient_norm": "gradient",
    "update/learning_rate": "lr",
    "tokens_per_second": "tok/s",
    "data/failed": "failed",
}


def main(command: settings.Command) -> int:
    config = command.config

    # --- mesh, model, optimizer, data; the state of a run that goes on
    run = open_run(config, command.workdir, targets=True)
    tell_start(run)
    judge = make_judge(config, run.pipeline.store, run.user) if config.reward.user_accuracy else None  # of validation
    loop = Loop(run, SHOWN, command.profile, judge)

    # --- step: pure, compiled once a bucket
    learn = make_learn(loop, on_prompt=config.sft.loss_on_prompt)

    def train_step(step: int, microbatches: Sequence[Microbatch]) -> tuple[Tally, None]:
        with loop.phase("update"):
            tally, tokens = learn(microbatches)
        return tally.add({"completion/tokens": (tokens, 1.0)}), None

    # --- loop
    return loop.run(train_step)


def command() -> None:
    run_distributed(main, lambda: settings.parse(sys.argv, __doc__))


if __name__ == "__main__":
    command()
