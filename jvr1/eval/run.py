"""Questions answered and scored: the one implementation for validation in training, the demo and `evaluate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Bucket, Microbatch
from jvr1.rl.rewards import Score, score
from jvr1.rl.tgrpo import Rollout
from jvr1.rl.user_reward import UserReward

VARIANTS = ("ordered", "shuffled")


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
        [tokenizer.decode(ids[:n], skip_special_tokens=True) for ids, n in zip(row, lengths, strict=True)]
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
            gold, kind = row.record.solution, row.record.problem_type
            scores.append([score(text, gold, kind, self.mode) for text in completions])
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
class Answer:
    """One question answered once. `error`: why its media could not be read; nothing else is set then."""

    problem_id: int | str
    task: str
    problem_type: str
    variant: str
    completion: str = ""
    answer: str | None = None
    accuracy: float = 0.0
    format: float = 0.0
    length: int = 0
    ended: bool = False
    error: str | None = None


Decode = Callable[[Arrays, Bucket, Sequence[int]], Sampled]


def answer_questions(
    microbatches: Iterable[Microbatch], decode: Decode, judge: Judge, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Answer]:
    """Answers every row once on ordered frames, and a video's once more on shuffled ones."""
    for micro in microbatches:
        rows = (1, 1) if micro.bucket.kind == "video" else (1,)
        sampled = decode(micro.arrays, micro.bucket, rows)
        texts = texts_of(tokenizer, sampled)
        judged = judge(micro, texts, sampled, rows)
        for b, row in enumerate(micro.rows):
            if row.record is None:
                continue
            name = (row.record.problem_id, row.record.data_source, row.record.problem_type)
            if row.error is not None:
                yield Answer(*name, "ordered", error=row.error)
                continue
            for r in range(sum(rows)):
                one = judged.rows[b][r]
                length, ended = int(sampled.length[b, r]), bool(sampled.ended[b, r])
                yield Answer(*name, VARIANTS[r], texts[b][r], one.answer, one.accuracy, one.format, length, ended)


class Summary(NamedTuple):
    """One task: questions answered on ordered frames, mean accuracy ordered and shuffled (None: no video), format
    rate, mean length in tokens, and questions whose media failed."""

    questions: int
    ordered: float
    shuffled: float | None
    format: float
    length: float
    failed: int


def summarise(answers: Iterable[Answer]) -> dict[str, Summary]:
    """By task, in alphabetical order."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.task].append(answer)
    return {task: _summary(groups[task]) for task in sorted(groups)}


def _summary(answers: Sequence[Answer]) -> Summary:
    ordered = [a for a in answers if a.variant == "ordered" and a.error is None]
    shuffled = [a.accuracy for a in answers if a.variant == "shuffled"]

    def mean(values: Sequence[float | int]) -> float:
        return float(np.mean(values)) if len(values) else 0.0

    return Summary(
        len(ordered),
        mean([a.accuracy for a in ordered]),
        mean(shuffled) if shuffled else None,
        mean([a.format for a in ordered]),
        mean([a.length for a in ordered]),
        sum(a.error is not None for a in answers),
    )


def as_metrics(summaries: dict[str, Summary]) -> dict[str, float]:
    """Flat names for a log: 'order/ordered', 'order/shuffled', 'order/format', ..."""
    return {
        f"{task}/{name}": float(value)
        for task, summary in summaries.items()
        for name, value in summary._asdict().items()
        if value is not None
    }


def as_json(answer: Answer) -> dict:
    return asdict(answer)
