"""T-GRPO: jvr1 train-rl --config FILE[:ARG] [--config.a.b=value ...] --workdir DIR

Reinforcement learning of Qwen2.5-VL on images and videos after Video-R1 (arXiv 2503.21776). A step: sample G
completions a prompt, and for a video some more on shuffled frames; score them; turn the scores into advantages; take
one gradient over all microbatches. What differs from the paper and its code, each behind a switch, is in
docs/deviations.md; the two that matter most: the temporal term stands outside the advantage's normalisation, where
0/1 rewards do not cancel it, and a prompt with its video is encoded once for its G completions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import jax

from jvr1 import config as settings
from jvr1.data.batch import Microbatch
from jvr1.processes.guard import run_distributed
from jvr1.rl.judge import make_judge
from jvr1.rollout.tasks import Sampled, texts_of
from jvr1.sharding import put_batch
from jvr1.starting import tell_start
from jvr1.train.flops import step_flops, trained_of
from jvr1.train.hooks import Hook
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally, write_rollouts
from jvr1.train.optimizer import combine
from jvr1.train.pictures import log_pictures, sample_lines
from jvr1.train.policy import REFERENCE, Policy, make_varied
from jvr1.train.progress import say
from jvr1.train.reference import open_reference
from jvr1.train.rollouts import (
    Judgement,
    Rollout,
    check_rewards,
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
from jvr1.train.workdir import measures_from_source

SHOWN = {
    "reward": "reward",
    "accuracy": "accuracy",
    "temporal/gap": "gap",
    "loss/kl": "KL",
    "loss/entropy": "entropy",
    "completion/length": "length",
    "update/gradient_norm": "gradient",
}


def main(command: settings.Command) -> int:
    config = command.config
    algorithm = settings.tgrpo(config)
    if config.rl.refill:
        algorithm = replace(algorithm, drop_zero_variance=True)
    group, shuffled = config.rl.group, config.rl.shuffled
    enough = config.rl.refill_share * config.batch.micro * config.batch.per_step

    # --- mesh, model, optimizer, data
    run = open_run(config, command.workdir, targets=False)
    tell_start(run)
    mesh = run.mesh
    judge = make_judge(config, run.pipeline.store, run.user)

    # --- KL's reference: the weights of the source, before a run that goes on takes its own, or the base under adapters
    reference = None
    if measures_from_source(config, run.stage):
        host = config.model.reference == "host"
        reference = open_reference(run.graphdef, run.params, config.model.dtype, host=host)
    renewed = algorithm.reference_every > 0
    also = {REFERENCE: reference.params} if reference and renewed else None
    loop = Loop(run, SHOWN, command.profile, judge, also)
    run = loop.run_
    if reference and renewed:
        reference = replace(reference, params=loop.also[REFERENCE])
    if algorithm.beta > 0 and reference is None:
        reference = open_reference(run.graphdef, run.params, config.model.dtype, adapters=True)
    policy, varied = Policy(loop, algorithm, reference), make_varied(algorithm)
    trained = trained_of(run.params, run.trainable)

    # --- sample: the prompts of a step take turns, whatever their bucket and microbatch
    taking_turns = turns(config, run.decoder, shuffled)

    def sample(step: int, again: int, weights: dict, microbatches: Sequence[Microbatch]) -> list[Sampled]:
        key = jax.random.fold_in(run.key, step)
        tasks = [training_task(micro, group, shuffled) for micro in microbatches]
        return run.decoder.answers(weights, tasks, jax.random.fold_in(key, again) if again else key, **taking_turns)

    # --- one microbatch: what its completions are worth
    def judged(step: int, micro: Microbatch, host: Sampled) -> Judgement:
        rows, texts = rows_of(micro.bucket, group, shuffled), texts_of(run.tokenizer, host)
        scores = judge(micro, texts, host, rows, step=step, share=run.share)
        check_rewards(scores.rollout)
        sent = (micro.arrays, *ordered(host, group), scores.rollout)
        arrays, ids, sampled, length, ended, worth = put_batch(sent, mesh)
        return Judgement(micro, rows, arrays, ids, sampled, length, ended, worth, host, texts, scores)

    # --- the prompts of a step, and more of them while too few groups have different rewards
    def answers(step: int, microbatches: Sequence[Microbatch]) -> tuple[list[Judgement], list[bool]]:
        with loop.phase("generate"):
            weights = run.decoder.weights(combine(loop.state.params, run.frozen), eight_bits=config.model.rollout_dtype)
        answered: list[Judgement] = []
        groups: list[float] = []
        for again in range(1 + config.rl.refill):
            with loop.phase("generate"):
                completions = sample(step, again, weights, microbatches)
            with loop.phase("reward"):
                new = [judged(step, micro, host) for micro, host in zip(microbatches, completions, strict=True)]
                answered += new
                groups += [float(varied(one.scores)) for one in new] if config.rl.refill else []
            if again == config.rl.refill or sum(groups) >= enough:
                break
            microbatches = loop.more()
        learned = [bool(count) for count in groups] if any(groups) else [True] * len(answered)
        return answered, learned

    def train_step(step: int, microbatches: Sequence[Microbatch]) -> tuple[Tally, list[Rollout]]:
        answered, learned = answers(step, microbatches)
        rollouts, passes, tally = policy.compare(answered, learned)
        with loop.phase("update"):
            used = [i for i, is_used in enumerate(learned) if is_used]
            tally = tally.add(*policy.learn([rollouts[i] for i in used], [passes[i] for i in used]))
        policy.renew_reference(step + 1)
        for rollout, is_used in zip(rollouts, learned, strict=True):
            flops = step_flops(
                run.config, rollout.micro.bucket, len(rollout.micro.rows), group, shuffled,
                float(rollout.host.length.mean()), reference=is_used and policy.reference is not None,
                updates=is_used * config.rl.updates, passes=is_used * policy.passes_of(rollout.micro.bucket.kind),
                trained=trained,
            )  # fmt: skip
            tally = tally.add(score_sums(rollout) | {"flops": (flops, 1.0)}, score_maxima(rollout))
        if config.rl.refill:
            tally = tally.add({"refill/rounds": (len(answered) / config.batch.per_step, 1.0)})
        return tally.add(user_failures(judge, run.share)), rollouts

    # --- what is kept and shown of completions
    def write(step: int, rollouts: list[Rollout]) -> None:
        if run.share.owner:
            write_rollouts(run.workdir, step, jax.process_index(), rollout_rows(step, rollouts))

    def pictures(step: int, rollouts: list[Rollout]) -> None:
        log_pictures(loop.writer, step, rollouts, run.config)

    def samples(step: int, rollouts: list[Rollout]) -> None:
        for line in sample_lines(step, rollouts):
            say(line)

    # --- loop
    train = config.train
    shown = Hook(pictures, steps=train.pictures_every, first=1), Hook(samples, steps=train.samples_every, first=1)
    return loop.run(train_step, Hook(write, steps=1), *shown)


def command() -> None:
    run_distributed(main, lambda: settings.parse(sys.argv, __doc__))


if __name__ == "__main__":
    command()
