"""What a decoder is asked, and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Arrays, Microbatch


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
