"""What a step's completions leave behind: rows of the rollout file, sums for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jvr1 import config as settings
from jvr1.data.batch import Arrays, Bucket, Microbatch
from jvr1.data.share import Share
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.questions.asking import VARIANTS
from jvr1.rl import tgrpo
from jvr1.rl.judge import Judge, Judged
from jvr1.rl.tgrpo import Advantages
from jvr1.rollout.decoder import Decoder, queue_shapes
from jvr1.rollout.tasks import Sampled, SlotShape, Task
from jvr1.train.metrics import Sums


@dataclass(frozen=True)
class Judgement:
    """A microbatch sampled and judged. On the device: arrays, ids [B,G,C], sampled log-probabilities, length and ended
    [B,G], scores; on the host, this process's rows: completions, texts, what they were worth."""

    micro: Microbatch
    rows: tuple[int, ...]
    arrays: Arrays
    ids: jax.Array
    sampled: jax.Array
    length: jax.Array
    ended: jax.Array
    scores: tgrpo.RolloutScores
    host: Sampled
    texts: list[list[str]]
    judged: Judged


@dataclass(frozen=True)
class Rollout(Judgement):
    """The same compared within groups. On the device: advantage [B,G], mask [B,G,C]; on the host, this process's rows:
    result. tape: tokens of the tapes on which completions are read; None: of none. denominator: its part of the
    step's."""

    advantage: jax.Array
    mask: jax.Array
    tape: int | None
    denominator: float
    result: Advantages


def rows_of(bucket: Bucket, group: int, shuffled: int) -> tuple[int, ...]:
    """Completions of each stream: `group` on ordered frames, and for videos `shuffled` on shuffled ones."""
    return (group, shuffled) if bucket.kind == "video" and shuffled else (group,)


def slot_count(config: ConfigDict) -> int:
    """Prompts under way while tokens are sampled: rl.slots, or all of a step."""
    return config.rl.slots or config.batch.micro * config.batch.per_step


def slot_shapes(config: ConfigDict, model: ModelConfig, generation: Any, shuffled: int) -> tuple[SlotShape, ...]:
    """Shapes of the slots in which a run samples on a mesh: as few as pay, whatever its buckets."""
    rows = {bucket: rows_of(bucket, config.rl.group, shuffled) for bucket in settings.buckets(config)}
    wanted = [SlotShape(bucket.prompt, bucket.completion, rows[bucket]) for bucket in rows]
    prompts = config.batch.micro * config.batch.per_step
    return queue_shapes(model, generation, config.model.dtype, wanted, slot_count(config), prompts)


def turns(config: ConfigDict, decoder: Decoder, shuffled: int) -> dict[str, Any]:
    """How the prompts of a step take turns, for `Decoder.answers`."""
    shapes = slot_shapes(config, decoder.model, decoder.generation, shuffled)
    how = {"slots": slot_count(config), "lanes": config.rl.lanes, "prepare": config.batch.per_step > 1}
    return how | {"shapes": shapes} | dict(config.sampling)


def training_task(micro: Microbatch, group: int, shuffled: int) -> Task:
    """What the decoder is asked for a microbatch."""
    rows, pairs = rows_of(micro.bucket, group, shuffled), None
    if micro.arrays.visual is not None:
        pairs = np.stack([micro.arrays.visual.pair, micro.arrays.shuffled][: len(rows)], axis=1)
    return Task(micro, micro.arrays, pairs, rows)


def ordered(sampled: Sampled, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, log-probabilities, lengths of the completions that are learned from, and whether they ended."""
    return (
        sampled.ids[:, :group],
        sampled.logprobs[:, :group],
        sampled.length[:, :group],
        sampled.ended[:, :group],
    )


def reward_parts(judged: Judged, group: int, config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """The rewards [B,G,K] of ordered completions, accuracy, format and the user's own, nan for no opinion, and their
    weights [B,K]."""
    form = np.asarray([[score.format for score in row[:group]] for row in judged.rows])
    given = np.stack([judged.rollout.accuracy, form], axis=-1).astype(np.float32)
    weights = np.tile(np.asarray([1.0, config.rl.format_weight], np.float32), (len(given), 1))
    if judged.values is not None and judged.weighing is not None:
        given = np.concatenate([given, judged.values[:, :group]], axis=-1)
        weights = np.concatenate([weights, judged.weighing], axis=-1)
    return given, weights


def rollout_rows(step: int, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Every sampled completion with its scores, one dict each."""
    rows = []
    for rollout in rollouts:
        values, scored = rollout.judged.values, rollout.judged.scored
        for b, row in enumerate(rollout.micro.rows):
            if row.record is None or row.error is not None:
                continue
            for r, text in enumerate(rollout.texts[b]):
                score, ordered = rollout.judged.rows[b][r], r < rollout.rows[0]
                rows.append(
                    {
                        "step": step,
                        "microbatch": row.micro,
                        "row": row.place,
                        "problem_id": row.record.problem_id,
                        "data_source": row.record.data_source,
                        "problem_type": row.record.problem_type,
                        "data_type": row.record.data_type,
                        "problem": row.record.problem,
                        "options": row.record.options,
                        "path": row.record.path,
                        "start": row.record.start,
                        "end": row.record.end,
                        "frames": VARIANTS[not ordered],
                        "completion": text,
                        "solution": row.record.solution,
                        "answer": score.answer,
                        "accuracy": score.accuracy,
                        "format": score.format,
                        "tokens": int(rollout.host.length[b, r]),
                        "ended": bool(rollout.host.ended[b, r]),
                        "rewards": {} if values is None else _opinions(rollout.judged.names, values[b, r]),
                        "reward": float(rollout.result.reward[b, r]) if ordered and scored[b, r] else None,
                        "advantage": float(rollout.result.advantage[b, r]) if ordered else None,
                        "temporal_signal": float(rollout.result.signal[b]),
                    }
                )
    return rows


def _opinions(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: float(v) if np.isfinite(v) else None for name, v in zip(names, values, strict=True)}


def check_rewards(scored: tgrpo.RolloutScores) -> None:
    """Raises UserError for a valid row's reward that is no number: the gradient of its whole step would be none."""
    if not np.isfinite(np.asarray(scored.reward)[np.asarray(scored.valid)]).all():
        raise UserError("a reward is not finite: values of reward.user by their weights are too large")


def score_sums(rollout: Rollout) -> dict[str, tuple[float, float]]:
    """Sums for the log, of valid ordered rows: rewards by kind and problem type, accuracy by modality, problem type and
    source, completion lengths. `reward/bonus` is what T-GRPO added for length and order. Completions without a reward
    are in none but those of lengths."""
    sums: dict[str, tuple[float, float]] = {}

    def add(name: str, total: float, count: float) -> None:
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + total, before[1] + count)

    g, judged, sampled, scored = rollout.rows[0], rollout.judged, rollout.host, rollout.judged.scored
    for b, row in enumerate(rollout.micro.rows):
        if row.record is None or row.error is not None:
            continue
        keep, kind = scored[b], row.record.problem_type
        scores, n = [s for s, kept in zip(judged.rows[b][:g], keep, strict=True) if kept], int(keep.sum())
        accuracy, reward = sum(s.accuracy for s in scores), float(rollout.result.reward[b][keep].sum())
        add("reward/accuracy", accuracy, n)
        add("reward/format", sum(s.format for s in scores), n)
        add("reward/bonus", reward - float(judged.rollout.reward[b][keep].sum()), n)
        if judged.values is not None:
            add("reward/unscored", g - n, g)
            for k, name in enumerate(judged.names):
                given = judged.values[b, :g, k]
                given = given[np.isfinite(given)]
                add(f"reward/user/{name}", float(given.sum()), len(given))
        add(f"reward/{kind}", reward, n)
        for group in (rollout.micro.bucket.kind, kind, row.record.data_source):
            add(f"accuracy/{group}", accuracy, n)
        cut = float((~sampled.ended[b, :g]).sum())
        add("completion/length", float(sampled.length[b, :g].sum()), g)
        add("completion/cut_off", cut, g)
        add(f"completion/cut_off/{kind}", cut, g)
        add("completion/tokens", float(sampled.length[b].sum()), 1.0)
    return sums


def user_failures(judge: Judge, share: Share) -> Sums:
    """How often the user's rewards failed since the last call, by cause. What failed as none did before is shown."""
    if judge.user is None:
        return {}
    for line in judge.user.failures.take_told():
        tqdm.write(f"process {jax.process_index()}: {line}" if jax.process_count() > 1 else line)
    # a step's count, not a mean: over the owners of rows, whose numbers alone are added up, `parts` makes 1
    parts = len(share.parts) / share.ways
    return {f"reward/user_failed/{cause}": (n, parts) for cause, n in judge.user.failures.take().items()}


def score_maxima(rollout: Rollout) -> dict[str, float]:
    """Maxima for the log."""
    return {"completion/max": float(rollout.host.length[:, : rollout.rows[0]].max(initial=0))}
