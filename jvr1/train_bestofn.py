"""Best-of-n fine-tuning: jvr1 train-bestofn --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

Rejection sampling (RAFT, arXiv 2304.06767; a step of ReST, arXiv 2308.08998): sample `rl.group` completions a prompt
from the model as it is now, keep the best by the run's reward where that is `bestofn.threshold` or more, and take a
supervised step on those. No reference, no advantages, no shuffled frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Float

from jvr1 import config as settings
from jvr1.data.batch import Microbatch
from jvr1.processes.guard import run_distributed
from jvr1.rl.judge import make_judge
from jvr1.rollout.tasks import Sampled, texts_of
from jvr1.starting import tell_start
from jvr1.train.flops import step_flops
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally
from jvr1.train.optimizer import combine
from jvr1.train.rollouts import check_rewards, training_task, turns, user_failures
from jvr1.train.setup import open_run
from jvr1.train.supervised import make_learn

SHOWN = {
    "reward": "reward",
    "reward/best": "best",
    "reward/learned": "learned",
    "loss": "loss",
    "update/gradient_norm": "gradient",
}


def main(command: settings.Command) -> int:
    config = command.config
    group, threshold = config.rl.group, config.bestofn.threshold
    run = open_run(config, command.workdir, targets=False, stage="bestofn")
    tell_start(run)
    judge = make_judge(config, run.pipeline.store, run.user)
    loop = Loop(run, SHOWN, command.profile, judge)
    run, learn = loop.run_, make_learn(loop)
    taking_turns = turns(config, run.decoder, shuffled=0)

    def train_step(step: int, microbatches: Sequence[Microbatch]) -> tuple[Tally, None]:
        tally, best = Tally(), []
        with loop.phase("generate"):
            whole = combine(loop.state.params, run.frozen)
            weights = run.decoder.weights(whole, eight_bits=config.model.rollout_dtype)
            tasks = [training_task(micro, group, 0) for micro in microbatches]
            key = jax.random.fold_in(run.key, step)
            completions = run.decoder.answers(weights, tasks, key, **taking_turns)
            del weights  # memory: the update needs it
        with loop.phase("reward"):
            for micro, sampled in zip(microbatches, completions, strict=True):
                texts = texts_of(run.tokenizer, sampled)
                judged = judge(micro, texts, sampled, (group,), step=step, share=run.share)
                check_rewards(judged.rollout)
                reward = np.where(judged.scored, judged.rollout.reward, -np.inf)
                best.append(best_completions(micro, sampled, reward, threshold))
                size, length = len(micro.rows), float(sampled.length.mean())
                flops = step_flops(run.config, micro.bucket, size, group, 0, length, reference=False, updates=0)
                tally = tally.add(best_sums(best[-1], sampled, reward) | {"flops": (flops, 1.0)})
        with loop.phase("update"):
            learned, _ = learn(best)
        return tally.add(*learned).add(user_failures(judge, run.share)), None

    return loop.run(train_step)


def best_completions(
    micro: Microbatch, sampled: Sampled, reward: Float[np.ndarray, "B G"], threshold: float
) -> Microbatch:
    """The microbatch with each prompt's best completion as its target; without one where the best is below
    `threshold`. reward: -inf where a completion has none."""
    rows, best = np.arange(len(reward)), reward.argmax(axis=1)
    ids, length = sampled.ids[rows, best], sampled.length[rows, best]
    kept = micro.arrays.valid & (reward[rows, best] >= threshold)
    mask = (np.arange(ids.shape[1]) < length[:, None]) & kept[:, None]
    return replace(micro, arrays=micro.arrays._replace(target=ids, target_mask=mask))


def best_sums(best: Microbatch, sampled: Sampled, reward: Float[np.ndarray, "B G"]) -> dict[str, tuple[float, float]]:
    """Sums for the log, of valid rows: the reward of all completions and of each prompt's best, and how many prompts
    are learned from."""
    valid, group = np.asarray(best.arrays.valid), reward.shape[1]
    rows, scored = float(valid.sum()), reward[valid][np.isfinite(reward[valid])]
    top = reward[valid].max(axis=1, initial=-np.inf)
    return {
        "reward": (float(scored.sum()), float(len(scored))),
        "reward/best": (float(top[np.isfinite(top)].sum()), float(np.isfinite(top).sum())),
        "reward/learned": (float(best.arrays.target_mask.any(axis=1).sum()), rows),
        "completion/length": (float(sampled.length[valid].sum()), rows * group),
        "completion/tokens": (float(sampled.length[valid].sum()), 1.0),
    }


def command() -> None:
    run_distributed(main, lambda: settings.parse(sys.argv, __doc__))


if __name__ == "__main__":
    command()
