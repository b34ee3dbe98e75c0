"""Questions answered and scored: the one implementation for validation in training, the demo and `evaluate`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Microbatch, shuffled_order
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.questions.replies import Question, reply
from jvr1.rollout.tasks import Decode, Done, Sampled, Task, texts_of

VARIANTS = ("ordered", "shuffled")
"""What training compares, in rollouts and in validation."""
ORDERS = (*VARIANTS, "reversed", "single")
"""Orders of a video's frames that an evaluation may compare."""


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
            record.solution, record.problem_type, record.options, record.further,
        )
        for r, text in enumerate(texts)
    ]  # fmt: skip
    return Question(record, None, tuple(replies), row.number)


IDENTITIES = 2**19
"""Questions' numbers, of which random keys are made: below 2^31 when multiplied by `rollout.queue.MAX_ROWS`."""


def identity(record: Record) -> int:
    """A number of a question that no batch, bucket or device changes: its shuffle and its samples come from it."""
    part = [] if record.start is None and record.end is None else [record.start, record.end]
    text = json.dumps([record.problem_id, record.path, record.problem, *part])
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
