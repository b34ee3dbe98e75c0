"""What a decoder is asked, and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Microbatch
from jvr1.data.prompts import opened


class Sampled(NamedTuple):
    """What came back from the device for this process's rows (see `generate.Completions`)."""

    ids: Int[np.ndarray, "B R C"]
    length: Int[np.ndarray, "B R"]
    ended: Bool[np.ndarray, "B R"]
    logprobs: Float[np.ndarray, "B R C"]


def texts_of(tokenizer: PreTrainedTokenizerBase, sampled: Sampled) -> list[list[str]]:
    """The completions as text, without their end token, with what the prompt has opened of them."""
    kept, begun = sampled.length - sampled.ended, opened(tokenizer)
    return [
        [begun + str(tokenizer.decode(ids[:n], skip_special_tokens=True)) for ids, n in zip(row, lengths, strict=True)]
        for row, lengths in zip(sampled.ids, kept, strict=True)
    ]


class Task(NamedTuple):
    """A microbatch to answer: rows[s] completions of each prompt for each stream s, whose frames pairs[:, s] names
    (None: no media). most: tokens a row may have (None: what its bucket holds)."""

    micro: Microbatch
    arrays: Arrays
    pairs: Int32[np.ndarray, "B S F 2"] | None
    rows: tuple[int, ...]
    most: Int32[np.ndarray, "B R"] | None = None

    @property
    def limits(self) -> Int32[np.ndarray, "B R"]:
        """The most tokens of each row."""
        whole = np.full((len(self.arrays.valid), sum(self.rows)), self.micro.bucket.completion, np.int32)
        return whole if self.most is None else np.minimum(self.most, whole)

    def alike(self, other: Task) -> bool:
        """Whether one program encodes the prompts of both."""
        return (self.micro.bucket, self.rows) == (other.micro.bucket, other.rows)

    def own(self, sampled: Sampled) -> Sampled:
        """A prompt's part of what a slot with room for more sampled."""
        r, c = sum(self.rows), self.micro.bucket.completion
        return Sampled(sampled.ids[:r, :c], sampled.length[:r], sampled.ended[:r], sampled.logprobs[:r, :c])


class SlotShape(NamedTuple):
    """What slots are made for: prompts and completions of so many tokens, rows[s] completions of stream s."""

    prompt: int
    completion: int
    rows: tuple[int, ...]

    def takes(self, other: SlotShape) -> bool:
        """Whether a prompt of the other shape can be answered in such a slot."""
        shorter = other.prompt <= self.prompt and other.completion <= self.completion
        return shorter and other.rows == self.rows[: len(other.rows)]

    def with_room_for(self, other: SlotShape) -> SlotShape | None:
        """The smallest shape that takes both; None where they share no streams."""
        rows = max(self.rows, other.rows, key=len)
        joined = SlotShape(max(self.prompt, other.prompt), max(self.completion, other.completion), rows)
        return joined if joined.takes(self) and joined.takes(other) else None

    def tokens(self) -> int:
        """Keys and values of a slot, in tokens of one line."""
        return len(self.rows) * self.prompt + sum(self.rows) * self.completion


PADDING = 0.15
"""What a step of decoding may read, where slots are few, beyond what it would in slots made for the very prompts."""


def shared_shapes(
    wanted: Sequence[SlotShape], slots: int, weights: int, token: int, *, all_at_once: bool
) -> tuple[SlotShape, ...]:
    """Few shapes that take all that are wanted, so that prompts of different buckets take turns in one queue.

    A step of decoding `slots` prompts reads `weights` bytes, and `token` bytes for each token that a slot has room for.
    Where all prompts are under way at once, a queue of two shapes decodes as long as the longest completion, two queues
    twice as long: shapes are joined, the largest first, as long as one step then reads less than one of each. Where
    prompts wait for slots, every slot's padding is read for as long as there are prompts: PADDING bounds it.
    """

    def step(shape: SlotShape) -> int:
        return weights + slots * token * shape.tokens()

    shapes: list[SlotShape] = []
    for shape in sorted(set(wanted), key=SlotShape.tokens, reverse=True):
        for i, other in enumerate(shapes):
            joined = other.with_room_for(shape)
            most = step(other) + step(shape) if all_at_once else (1 + PADDING) * step(shape)
            if joined and step(joined) <= most:
                shapes[i] = joined
                break
        else:
            shapes.append(shape)
    return tuple(shapes)


class Done(NamedTuple):
    """Row `row` of a task, answered: `sampled` without the axis B."""

    task: Task
    row: int
    sampled: Sampled


Decode = Callable[[Iterable[Task]], Iterator[list[Done]]]
"""The device's part: answers every row of every task, in any order; lists of what has ended since the last."""
