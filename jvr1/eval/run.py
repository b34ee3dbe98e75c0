"""Questions answered and scored: the one implementation for validation in training, the demo and `evaluate`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Microbatch, shuffled_order
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.eval.score import Question, grouped, reply
from jvr1.eval.suites import task_of
from jvr1.rl.rewards import Score, score
from jvr1.rl.tgrpo import Rollout
from jvr1.rl.user_reward import UserReward

VARIANTS = ("ordered", "shuffled")
"""What training compares, in rollouts and in validation."""
ORDERS = (*VARIANTS, "reversed", "single")
"""Orders of a video's frames that an evaluation may compare."""


class Sampled(NamedTuple):
    """What came back from the device for this process's rows (see `generate.Completions`)."""

    ids: Int[np.ndarray, "B R C"]
    length: Int[np.ndarray, "B R"]
    ended: Bool[np.ndarray, "B R"]
    logprobs: Float[np.ndarray, "B R C"]


def texts_of(tokenizer: PreTrainedTokenizerBase, sampled: Sampled) -> list[list[str]]:
    """The completions as text, without their end token."""
    kept = sampled.length - sampled.ended
    return [
        [str(tokenizer.decode(ids[:n], skip_special_tokens=True)) for ids, n in zip(row, lengths, strict=True)]
        for row, lengths in zip(sampled.ids, kept, strict=True)
    ]


@dataclass(frozen=True)
class Judged:
    """Scores of a microbatch: per row for the record, as the arrays T-GRPO takes, and what a user's own reward gave
    the ordered rows [B,G] (None: there is none)."""

    rows: list[list[Score]]
    rollout: Rollout
    user: np.ndarray | None = None


@dataclass(frozen=True)
class Judge:
    """Scores texts against records: accuracy in a mode of `rl.rewards`, format, and a user's own reward.

    reward = accuracy + format_weight * format + user_weight * user.
    """

    mode: str
    format_weight: float = 1.0
    user: UserReward | None = None
    user_weight: float = 1.0

    def __call__(
        self, micro: Microbatch, texts: Sequence[Sequence[str]], sampled: Sampled, rows: Sequence[int]
    ) -> Judged:
        scores: list[list[Score]] = []
        total, own = np.zeros(sampled.length.shape, np.float32), np.zeros(sampled.length.shape, np.float32)
        for b, (row, completions) in enumerate(zip(micro.rows, texts, strict=True)):
            if row.record is None or row.error is not None:
                scores.append([Score(0.0, 0.0, None)] * len(completions))
                continue
            gold, kind, options = row.record.solution, row.record.problem_type, row.record.options
            scores.append([score(text, gold, kind, self.mode, options) for text in completions])
            for r, (text, one) in enumerate(zip(completions, scores[-1], strict=True)):
                total[b, r] = one.accuracy + self.format_weight * one.format
                if self.user is not None and r < rows[0]:
                    own[b, r] = self.user(text, gold, kind)
        total += self.user_weight * own
        accuracy = np.asarray([[s.accuracy for s in row] for row in scores], np.float32)
        g, valid = rows[0], np.asarray(micro.arrays.valid)
        shuffled = accuracy[:, g:]
        return Judged(
            scores,
            Rollout(
                accuracy=accuracy[:, :g],
                reward=total[:, :g],
                length=sampled.length[:, :g].astype(np.int32),
                shuffled_accuracy=shuffled,
                shuffled_valid=np.broadcast_to(valid[:, None], shuffled.shape).copy(),
                valid=valid,
                is_video=np.full(len(valid), micro.bucket.kind == "video"),
                distinct_frames=np.asarray(micro.arrays.distinct, np.int32),
            ),
            own[:, :g] if self.user is not None else None,
        )


@dataclass(frozen=True)
class Asking:
    """How questions are put: a video's frames in which ORDERS ('ordered' among them), how many samples of
    each, drawn how (temperature 0: the best token). Errors: UserError for what is not possible."""

    variants: tuple[str, ...] = ("ordered",)
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        unknown = [v for v in self.variants if v not in ORDERS]
        if unknown:
            raise UserError(f"there is no variant {unknown[0]!r}; use {', '.join(ORDERS)}")
        if "ordered" not in self.variants or len(set(self.variants)) < len(self.variants):
            raise UserError(f"variants {','.join(self.variants)} must hold 'ordered', and each name once")
        if self.samples < 1 or not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise UserError("evaluation needs samples >= 1, temperature >= 0 and 0 < top_p <= 1")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(f"{self.samples} samples at temperature 0 would all be the same; set a temperature above 0")


VALIDATION = Asking(VARIANTS)


class Task(NamedTuple):
    """A microbatch to answer: rows[s] completions of each prompt for each stream s, whose frames pairs[:, s] names
    (None: no media). most: tokens a row may have (None: what its bucket holds)."""

    micro: Microbatch
    arrays: Arrays
    pairs: Int32[np.ndarray, "B S F 2"] | None
    rows: tuple[int, ...]
    most: Int32[np.ndarray, "B R"] | None = None


class Done(NamedTuple):
    """Row `row` of a task, answered: `sampled` without the axis B."""

    task: Task
    row: int
    sampled: Sampled


Decode = Callable[[Iterable[Task]], Iterator[list[Done]]]
"""The device's part: answers every row of every task, in any order; lists of what has ended since the last."""


def answer_questions(
    microbatches: Iterable[Microbatch], decode: Decode, tokenizer: PreTrainedTokenizerBase, asking: Asking
) -> Iterator[list[Question]]:
    """Answers every row: a video's `samples` times in each variant, any other's on what it is. Lists of questions as
    their answers come."""
    for done in decode(_task(micro, asking) for micro in microbatches):
        yield [_question(one, tokenizer, asking) for one in done if one.task.micro.rows[one.row].record is not None]


def _variants(micro: Microbatch, asking: Asking) -> tuple[str, ...]:
    return asking.variants if micro.bucket.kind == "video" else ("ordered",)


def _task(micro: Microbatch, asking: Asking) -> Task:
    variants = _variants(micro, asking)
    identities = [0 if row.record is None else identity(row.record) for row in micro.rows]
    pairs = None
    if micro.arrays.visual is not None:
        visual = micro.arrays.visual
        pairs = np.stack([frame_streams(*v, variants) for v in zip(visual.pair, visual.hw, identities, strict=True)])
    arrays = micro.arrays._replace(number=np.asarray(identities, np.int32))
    return Task(micro, arrays, pairs, (asking.samples,) * len(variants))


def _question(done: Done, tokenizer: PreTrainedTokenizerBase, asking: Asking) -> Question:
    row, sampled, variants = done.task.micro.rows[done.row], done.sampled, _variants(done.task.micro, asking)
    assert row.record is not None
    if row.error is not None:
        return Question(row.record, row.error, number=row.number)
    record, samples = row.record, asking.samples
    (texts,) = texts_of(tokenizer, Sampled(*(x[None] for x in sampled)))
    replies = [
        reply(
            variants[r // samples], r % samples, text, int(sampled.length[r]), bool(sampled.ended[r]),
            record.solution, record.problem_type, record.options,
        )
        for r, text in enumerate(texts)
    ]  # fmt: skip
    return Question(record, None, tuple(replies), row.number)


IDENTITIES = 2**19
"""Questions' numbers, of which random keys are made: below 2^31 when multiplied by `train.queue.MAX_ROWS`."""


def identity(record: Record) -> int:
    """A number of a question that no batch, bucket or device changes: its shuffle and its samples come from it."""
    text = json.dumps([record.problem_id, record.path, record.problem])
    return zlib.crc32(text.encode()) % IDENTITIES


def frame_streams(
    pair: Int32[np.ndarray, "F 2"], hw: Int32[np.ndarray, "F W L 2"], seed: int, variants: Sequence[str]
) -> Int32[np.ndarray, "S F 2"]:
    """`pair` with a clip's frames in another order, for each variant; padded steps stay as they are.

    ordered; shuffled: one permutation, by the seed; reversed; single: the middle frame everywhere.
    """
    real = (hw[..., 0] >= 0).any(axis=(1, 2))
    n = int(pair[real].max(initial=-1)) + 1
    orders = {
        "ordered": np.arange(n),
        "shuffled": shuffled_order(n, np.random.default_rng(seed)),
        "reversed": np.arange(n)[::-1],
        "single": np.full(n, n // 2),
    }
    out = np.repeat(pair[None], len(variants), axis=0)
    for s, variant in enumerate(variants):
        out[s, real] = orders[variant][pair[real]]
    return out.astype(np.int32)


# --- validation in training -------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """One task: questions answered on ordered frames, mean accuracy ordered and shuffled (None: no video), format
    rate, mean length in tokens, and questions whose media failed."""

    questions: int
    ordered: float
    shuffled: float | None
    format: float
    length: float
    failed: int


def summarise(questions: Iterable[Question], mode: str) -> dict[str, Summary]:
    """By task, in alphabetical order; accuracy in a mode of `eval.score`."""
    groups = grouped(list(questions), lambda q: task_of(q.record))
    return {task: _summary(group, mode) for task, group in groups.items()}


def _summary(questions: Sequence[Question], mode: str) -> Summary:
    found = [r for q in questions for r in q.replies]
    ordered = [r for r in found if r.variant == "ordered"]
    shuffled = [r.accuracy[mode] for r in found if r.variant == "shuffled"]

    def mean(values: Sequence[float | int]) -> float:
        return float(np.mean(values)) if len(values) else 0.0

    return Summary(
        sum(q.error is None for q in questions),
        mean([r.accuracy[mode] for r in ordered]),
        mean(shuffled) if shuffled else None,
        mean([r.format for r in ordered]),
        mean([r.length for r in ordered]),
        sum(q.error is not None for q in questions),
    )


def as_metrics(summaries: dict[str, Summary]) -> dict[str, float]:
    """Flat names for a log: 'order/ordered', 'order/shuffled', 'order/format', ..."""
    return {
        f"{task}/{name}": float(value)
        for task, summary in summaries.items()
        for name, value in summary._asdict().items()
        if value is not None
    }
