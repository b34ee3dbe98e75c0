"""Static shapes for questions whose sizes are not known beforehand: measured first, then put into a few buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from jvr1.data.batch import MAX_BUCKETS, Bucket, Need
from jvr1.data.encode import Encoder
from jvr1.data.index import IndexEntry
from jvr1.data.prompts import PlaceholderError
from jvr1.data.records import Record
from jvr1.model.media import Probe

PROMPT_STEP = 64
MAX_SHAPES = 200
WORTHWHILE = 0.02


@dataclass(frozen=True)
class Measuring:
    """An index measure (`data.index.Measure`) that keeps sizes and puts nothing into buckets yet."""

    encoder: Encoder

    def __call__(self, record: Record, media: tuple[Probe, ...]) -> tuple[int, str | None, str | None]:
        try:
            return self.encoder.need(record, media).prompt, record.data_type, None
        except PlaceholderError as error:
            return 0, None, f"visual placeholder: {error}"

    def fingerprint(self) -> dict[str, Any]:
        """Of an encoder, without its buckets."""
        return {name: value for name, value in self.encoder.fingerprint().items() if name != "buckets"} | {"needs": 1}


def need_of(record: Record, entry: IndexEntry, encoder: Encoder) -> Need:
    """What a measured record takes of a bucket."""
    steps, windows, _ = encoder.extent(record, entry.media)
    return Need(record.data_type, steps, windows, entry.prompt_tokens, 1)


def fit_buckets(needs: Sequence[Need], completion: int, units: int, most: int = MAX_BUCKETS) -> tuple[Bucket, ...]:
    """At most `most` buckets that hold all needs, the largest first: what lacks memory fails at once.

    Shapes of one kind are merged pair by pair, always the pair that adds the fewest token slots over all questions,
    until there are few enough and another merge would add more than 2%. units: merged tokens a window.
    """
    step, shapes = PROMPT_STEP, _shapes(needs, PROMPT_STEP)
    while len(shapes) > MAX_SHAPES:
        step *= 2
        shapes = _shapes(needs, step)
    kinds = sorted({kind for kind, *_ in shapes})
    table = np.asarray([(kinds.index(kind), *size, n) for (kind, *size), n in sorted(shapes.items())], np.int64)
    while len(table) > 1:
        extra = _extra(table, units)
        a, b = np.unravel_index(np.argmin(extra), extra.shape)
        total = float((_slots(table, units) * table[:, 4]).sum())
        if not np.isfinite(extra[a, b]) or (len(table) <= most and extra[a, b] > WORTHWHILE * total):
            break
        merged = np.concatenate([np.maximum(table[a, :4], table[b, :4]), table[[a, b], 4:].sum(0)])
        table = np.concatenate([np.delete(table, [a, b], axis=0), merged[None]])
    order = np.argsort(-_slots(table, units), kind="stable")
    return tuple(Bucket(kinds[k], int(f), int(w), int(p), completion) for k, f, w, p, _ in table[order])


def _shapes(needs: Sequence[Need], step: int) -> Counter[tuple[str, int, int, int]]:
    """Distinct shapes and how many need them, prompts rounded up to `step`; coarse steps round the clip as well."""
    coarse = step // PROMPT_STEP
    return Counter((n.kind, _up(n.steps, coarse), n.windows, _up(n.prompt, step)) for n in needs)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _slots(table: Int64[np.ndarray, "*n 5"], units: int) -> Int64[np.ndarray, "*n"]:
    """Token slots of one row of a shape (kind, F, W, P, questions): what a question costs, roughly."""
    return table[..., 1] * table[..., 2] * units + table[..., 3]


def _extra(table: Int64[np.ndarray, "n 5"], units: int) -> np.ndarray:
    """Token slots that merging each pair would add; infinite for a pair that cannot be merged."""
    joint = np.maximum(table[:, None], table[None])
    own = _slots(table, units)
    slots = _slots(joint, units)
    n = table[:, 4]
    added = (slots - own[:, None]) * n[:, None] + (slots - own[None]) * n[None]
    allowed = np.triu(table[:, None, 0] == table[None, :, 0], 1)
    return np.where(allowed, added, np.inf)
