"""T-GRPO: python -m jvr1.train_rl --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

Reinforcement learning of Qwen2.5-VL on images and videos after Video-R1 (arXiv 2503.21776). A step: sample G
completions a prompt, and for a video some more on shuffled frames; score them; turn the scores into advantages; take
one gradient over all microbatches. What differs from the paper and its code, each behind a switch, is in
docs/deviations.md; the two that matter most: the temporal term stands outside the advantage's normalisation, where
0/1 rewards do not cancel it, and a prompt with its video is encoded once for its G completions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
import numpy as np

from jvr1 import config as settings
from jvr1.data.batch import Microbatch
from jvr1.processes.guard import run_distributed
from jvr1.rl.judge import make_judge
from jvr1.rollout.tasks import Sampled, texts_of
from jvr1.sharding import put_batch, take_local
from jvr1.train.flops import step_flops, trained_of
from jvr1.train.hooks import Hook
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally, write_rollouts
from jvr1.train.optimizer import combine
from jvr1.train.reference import open_reference
from jvr1.train.rollouts import (
    Rollout,
    check_rewards,
    log_pictures,
    ordered,
    rollout_rows,
    rows_of,
    score_maxima,
    score_sums,
    training_task,
    turns,
    user_failures,
)
from jvr1.train.setup import open_run
from jvr1.train.steps import PolicyBatch, make_advantages, make_policy_gradients, make_reference_scores
from jvr1.train.trees import zeros_like
from jvr1.train.workdir import measures_from_source

SHOWN = {
    "reward": "reward",
    "temporal/gap": "gap",
    "completion/length": "length",
    "loss/entropy": "entropy",
    "tokens_per_second": "tok/s",
}


def main(command: settings.Command) -> int:
    config = command.config
    algorithm = settings.tgrpo(config)
    group, shuffled = config.rl.group, config.rl.shuffled

    # --- mesh, model, optimizer, data
    run = open_run(config, command.workdir, targets=False)
    mesh = run.mesh
    judge = make_judge(config, run.pipeline.store)

    # --- KL's reference: the weights of the source, before a run that goes on takes its own, or the base under adapters
    reference = None
    if measures_from_source(config, run.stage):
        host = config.model.reference == "host"
        reference = open_reference(run.graphdef, run.params, config.model.dtype, host=host)
    loop = Loop(run, SHOWN, command.profile, judge)
    run = loop.run_
    if algorithm.beta > 0 and reference is None:
        reference = open_reference(run.graphdef, run.params, config.model.dtype, adapters=True)

    # --- steps: pure, compiled once a bucket
    trained = trained_of(run.params, run.trainable)
    advantages = make_advantages(algorithm, mesh)
    scoring = {"temperature": config.sampling.temperature, "chunk": config.model.logit_chunk}
    reference_scores = make_reference_scores(reference.graphdef if reference else run.graphdef, mesh, **scoring)
    gradients = make_policy_gradients(run.graphdef, algorithm, run.shardings, **scoring)

    # --- sample: the prompts of a step take turns, whatever their bucket and microbatch
    taking_turns = turns(config, run.decoder, shuffled)

    def sample(step: int, weights: dict, microbatches: Sequence[Microbatch]) -> list[Sampled]:
        key = jax.random.fold_in(run.key, step)
        tasks = [training_task(micro, group, shuffled) for micro in microbatches]
        return run.decoder.answers(weights, tasks, key, **taking_turns)

    # --- one microbatch: score, compare within groups
    def judged_rollout(step: int, micro: Microbatch, host: Sampled) -> tuple[Rollout, Tally]:
        rows = rows_of(micro.bucket, group, shuffled)
        with loop.phase("reward"):
            texts = texts_of(run.tokenizer, host)
            judged = judge(micro, texts, host, rows, step=step, share=run.share)
            check_rewards(judged.rollout)
            arrays, ids, sampled, length = put_batch((micro.arrays, *ordered(host, group)), mesh)
            result, mask, denominator, statistics = advantages(put_batch(judged.rollout, mesh), length, ids)
            rollout = Rollout(
                micro, rows, arrays, ids, sampled, result.advantage, mask, float(denominator), host, texts, judged,
                jax.tree.map(take_local, result),
            )  # fmt: skip
        flops = step_flops(
            run.config, micro.bucket, len(micro.rows), group, shuffled, float(host.length.mean()),
            reference=reference is not None, updates=config.rl.updates, trained=trained,
        )  # fmt: skip
        sums = statistics | score_sums(rollout) | {"flops": (flops, 1.0)}
        return rollout, Tally().add(sums, score_maxima(rollout))

    def train_step(step: int, microbatches: Sequence[Microbatch]) -> tuple[Tally, list[Rollout]]:
        with loop.phase("generate"):
            weights = run.decoder.weights(combine(loop.state.params, run.frozen))
            completions = sample(step, weights, microbatches)
            del weights  # memory: the update needs it
        tally = Tally()
        rollouts: list[Rollout] = []
        for micro, host in zip(microbatches, completions, strict=True):
            rollout, statistics = judged_rollout(step, micro, host)
            tally = tally.add(*statistics)
            rollouts.append(rollout)
        denominator = sum(r.denominator for r in rollouts)
        with loop.phase("update"):
            anchors: list[jax.Array | None] = [None] * len(rollouts)
            if reference is not None:
                with reference.on_device() as params:
                    anchors = [reference_scores(params, r.arrays, r.ids) for r in rollouts]
                    jax.block_until_ready(anchors)
            batches = [
                PolicyBatch(r.arrays, r.ids, anchor, r.sampled, r.sampled, np.bool_(True), r.advantage, r.mask,
                            np.float32(denominator))
                for r, anchor in zip(rollouts, anchors, strict=True)
            ]  # fmt: skip
            for update in range(config.rl.updates):
                total = zeros_like(loop.state.params)
                for i, batch in enumerate(batches):
                    total, loss, parts, largest, logprobs = gradients(loop.state.params, run.frozen, total, batch)
                    if update == 0:
                        batches[i] = batch._replace(old=logprobs, first=np.bool_(False))
                    named = {f"loss/{name}": value for name, value in parts.items()}
                    tally = tally.add({"loss": (loss, 1 / len(rollouts)), **named}, {"loss/logprob_gap_max": largest})
                tally = tally.add(loop.update(total, has_rows=denominator > 0))
        return tally.add(user_failures(judge, run.share)), rollouts

    # --- what is kept and shown of completions
    def write(step: int, rollouts: list[Rollout]) -> None:
        if run.share.owner:
            write_rollouts(run.workdir, step, jax.process_index(), rollout_rows(step, rollouts))

    def pictures(step: int, rollouts: list[Rollout]) -> None:
        log_pictures(loop.writer, step, rollouts, run.config)

    # --- loop
    return loop.run(train_step, Hook(write, steps=1), Hook(pictures, steps=config.train.pictures_every, first=1))


if __name__ == "__main__":
    run_distributed(main, lambda: settings.parse(sys.argv, __doc__))
