"""From sizes to static shapes: which bucket a measured record goes to, and buckets made for what was measured. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64

from jvr1.data.batch import MAX_BUCKETS, MEDIA_KINDS, MISFIT, Bucket, Need, choose_bucket
from jvr1.data.index_file import IndexEntry
from jvr1.model.config import ModelConfig
from jvr1.setting import setting

PROMPT_STEP = 64
MAX_SHAPES = 200
WORTHWHILE = 0.02
_FINE, _TRIED, _SWEEPS, _WIDE = 32, 40, 6, 16
ShapeTable: TypeAlias = Int64[np.ndarray, "... 5"]


@dataclass(frozen=True)
class AutoSettings:
    completion: int = setting(
        768,
        "Completion tokens (C) of the buckets; of train_sft the most tokens of an answer, and C the longest answer's "
        "within it",
        least=1,
    )
    prompt: int = setting(32768, "Most prompt tokens, visual ones with them; longer ones are dropped", least=1)
    shapes: int = setting(
        8, "At most so many buckets, of each kind of media one at least; each compiles once", least=1, most=MAX_BUCKETS
    )
    padding: float = setting(
        0.15,
        "Share of padding, of prompt tokens and of windows, up to which fewer buckets than that are made",
        least=0,
        below=1,
    )


def need_of(entry: IndexEntry) -> Need | None:
    """What a measured record takes of a bucket; None for one that is dropped whatever buckets there are."""
    if entry.bucket is None:
        return None
    return Need(entry.bucket, entry.steps, entry.windows, entry.prompt_tokens, entry.completion)


class Misfit(NamedTuple):
    """What some records need more of than the buckets of their kind have: the side's name, how many, the least and the
    most they need, what there is; what a bucket must be to hold them all."""

    kind: str
    side: str
    records: int
    least: int
    most: int
    allowed: int
    held_by: Need


def misfits(entries: Sequence[IndexEntry]) -> dict[str, list[Misfit]]:
    """Of an index whose records are in buckets: by the cause they are dropped for."""
    found: dict[tuple[str, str, str], list[tuple[int, int, IndexEntry]]] = {}
    for entry in entries:
        told = MISFIT.fullmatch(entry.error or "")
        if told:
            found.setdefault((str(entry.cause), told[3], told[1]), []).append((int(told[2]), int(told[4]), entry))
    causes: dict[str, list[Misfit]] = {}
    for (cause, kind, side), each in sorted(found.items()):
        needed, allowed, own = zip(*each, strict=True)
        sides = (max(getattr(e, name) for e in own) for name in ("steps", "windows", "prompt_tokens", "completion"))
        one = Misfit(kind, side, len(each), min(needed), max(needed), max(allowed), Need(kind, *sides))
        causes.setdefault(cause, []).append(one)
    return causes


def in_buckets(entries: Sequence[IndexEntry], buckets: Sequence[Bucket], model: ModelConfig) -> list[IndexEntry]:
    """The entries of a measured index, each with the name of its bucket, or dropped with the reason."""

    @cache
    def chosen(need: Need) -> tuple[str | None, str | None]:
        bucket, reason = choose_bucket(need, buckets, model)
        return (None, reason) if bucket is None else (bucket.name, None)

    placed = []
    for entry in entries:
        need = need_of(entry)
        name, reason = (None, entry.error) if need is None else chosen(need)
        placed.append(replace(entry, bucket=name, error=reason))
    return placed


# --- what padding costs -----------------------------------------------------------------------------------------------


class Padding(NamedTuple):
    """Shares of padding: of prompt tokens, of the windows of frames."""

    prompt: float
    visual: float

    @property
    def worst(self) -> float:
        return max(self)


def padding_of(needs: Mapping[Need, int], buckets: Sequence[Bucket], units: int) -> Padding:
    """Of needs (each with its number of records) in the buckets that would be chosen; those that fit none left out."""
    table, sizes = _table(needs), _sizes(buckets)
    own, _ = _cheapest(table, sizes, units)
    there = own >= 0
    taken, needed, times = sizes[own[there]], table[there], table[there, _N]
    shares = []
    for amount in (lambda rows: rows[:, _P], lambda rows: rows[:, _F] * rows[:, _W]):
        whole = int((amount(taken) * times).sum())
        shares.append(1 - int((amount(needed) * times).sum()) / whole if whole else 0.0)
    return Padding(*shares)


# --- buckets for what was measured ------------------------------------------------------------------------------------

_K, _F, _W, _P, _N = range(5)
"""Columns of a table of shapes: kind, temporal steps, windows, prompt tokens, records."""


def fit_buckets(needs: Sequence[Need], completion: int, units: int, most: int = MAX_BUCKETS) -> tuple[Bucket, ...]:
    """At most `most` buckets that hold all needs, the largest first: what lacks memory fails at once.

    Shapes of one kind are merged pair by pair, always the pair that adds the fewest token slots over all questions,
    until there are few enough and another merge would add more than 2%. units: merged tokens a window.
    """
    table = _merged(_coarse(_table(Counter(needs)), PROMPT_STEP), units, most, lambda _: True)
    order = np.argsort(-_slots(table, units), kind="stable")
    return _buckets(table[order], completion)


def fit_training(
    needs: Mapping[Need, int], completion: int, units: int, most: int, padding: float
) -> tuple[Bucket, ...]:
    """Buckets for a training run, the largest first: they hold all needs (each with its number of records).

    As `fit_buckets`, but shapes are merged beyond what is needed only while no more than `padding` of prompt tokens and
    of windows are padding; then sides of the shapes are moved while that saves token slots.
    """
    table = _table(needs)

    def allowed(shapes: ShapeTable) -> bool:
        return padding_of(needs, _buckets(_tight(table, shapes, units), completion), units).worst <= padding

    shapes = _merged(_coarse(table, _FINE), units, most, allowed)
    sizes = _moved(table, _tight(table, shapes, units), units)
    return _buckets(sizes[np.argsort(-_slots(sizes, units), kind="stable")], completion)


def _buckets(sizes: ShapeTable, completion: int) -> tuple[Bucket, ...]:
    return tuple(Bucket(MEDIA_KINDS[k], int(f), int(w), int(p), completion) for k, f, w, p, _ in sizes)


def _table(needs: Mapping[Need, int]) -> ShapeTable:
    rows = [(MEDIA_KINDS.index(n.kind), n.steps, n.windows, n.prompt, times) for n, times in needs.items()]
    return np.asarray(sorted(rows), np.int64).reshape(-1, 5)


def _sizes(buckets: Sequence[Bucket]) -> ShapeTable:
    rows = [(MEDIA_KINDS.index(b.kind), b.steps, b.windows, b.prompt, 0) for b in buckets]
    return np.asarray(rows, np.int64).reshape(-1, 5)


def _coarse(table: ShapeTable, step: int) -> ShapeTable:
    """Few enough shapes, prompts rounded up to `step` or a multiple of it; coarse steps round the clip as well,
    coarser ones its windows, both within what the largest of their kind needs."""
    first = step
    most = np.zeros((len(MEDIA_KINDS), _N), np.int64)
    np.maximum.at(most, table[:, _K], table[:, :_N])
    while True:
        rounded = table.copy()
        rounded[:, _F] = _up(table[:, _F], step // first)
        if step > _WIDE * first:
            rounded[:, _W] = _up(table[:, _W], step // (_WIDE * first))
            rounded[:, [_F, _W]] = np.minimum(rounded[:, [_F, _W]], most[table[:, _K]][:, [_F, _W]])
        rounded[:, _P] = _up(table[:, _P], step)
        shapes, place = np.unique(rounded[:, [_K, _F, _W, _P]], axis=0, return_inverse=True)
        if len(shapes) <= MAX_SHAPES:
            break
        step *= 2
    number = np.zeros(len(shapes), np.int64)
    np.add.at(number, place.reshape(-1), table[:, _N])
    return np.column_stack([shapes, number])


def _merged(table: ShapeTable, units: int, most: int, allowed: Callable[[ShapeTable], bool]) -> ShapeTable:
    """Pairs of a kind merged until there are few enough, and beyond while that adds little and is allowed."""
    while len(table) > 1:
        extra = _extra(table, units)
        a, b = np.unravel_index(np.argmin(extra), extra.shape)
        total = float((_slots(table, units) * table[:, _N]).sum())
        if not np.isfinite(extra[a, b]) or (len(table) <= most and extra[a, b] > WORTHWHILE * total):
            break
        joint = np.concatenate([np.maximum(table[a, :_N], table[b, :_N]), table[[a, b], _N:].sum(0)])
        merged = np.concatenate([np.delete(table, [a, b], axis=0), joint[None]])
        if len(table) <= most and not allowed(merged):
            break
        table = merged
    return table


def _tight(table: ShapeTable, sizes: ShapeTable, units: int) -> ShapeTable:
    """Shapes as large as what is put into them needs, prompts rounded up a little; those that stay empty left out."""
    own, _ = _cheapest(table, sizes, units)
    found = []
    for number in range(len(sizes)):
        held = table[own == number]
        if len(held):
            size = np.concatenate([held[:, :_N].max(axis=0), [held[:, _N].sum()]])
            size[_P] = round_prompt(int(size[_P]))
            found.append(size)
    return np.unique(np.stack(found), axis=0)


def _moved(table: ShapeTable, sizes: ShapeTable, units: int) -> ShapeTable:
    """Sides of shapes moved to what some record needs, one at a time, while that saves token slots."""
    best = _cost(table, sizes, units)
    for _ in range(_SWEEPS):
        before = best
        for number in range(len(sizes)):
            for side in (_F, _W, _P):
                for value in _values(table, sizes[number], side):
                    trial = sizes.copy()
                    trial[number, side] = value
                    cost = _cost(table, trial, units)
                    if cost < best:
                        sizes, best = trial, cost
        sizes = _tight(table, sizes, units)
        best = _cost(table, sizes, units)
        if best >= before:
            break
    return sizes


def _values(table: ShapeTable, size: np.ndarray, side: int) -> list[int]:
    """What a side may be tried as: needs of its kind, of prompts a spread of them."""
    needed = np.unique(table[table[:, _K] == size[_K], side])
    if side == _P:
        needed = np.unique(np.quantile(needed, np.linspace(0, 1, _TRIED), method="higher"))
        return sorted({round_prompt(int(value)) for value in needed})
    return [int(value) for value in needed[-_TRIED:]]


def _cost(table: ShapeTable, sizes: ShapeTable, units: int) -> float:
    """Token slots of all records; infinite where one fits nowhere."""
    own, cost = _cheapest(table, sizes, units)
    return math.inf if (own < 0).any() else float((cost * table[:, _N]).sum())


def _cheapest(table: ShapeTable, sizes: ShapeTable, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the shape that `choose_bucket` would take, -1 for none, and its token slots."""
    fits = table[:, None, _K] == sizes[None, :, _K]
    for side in (_F, _W, _P):
        fits &= table[:, None, side] <= sizes[None, :, side]
    cost = np.where(fits, _slots(sizes, units)[None], np.iinfo(np.int64).max)
    own = cost.argmin(axis=1)
    there = fits.any(axis=1)
    return np.where(there, own, -1), cost[np.arange(len(table)), own]


def round_prompt(prompt: int) -> int:
    """Up to a multiple of 64, of shorter prompts of 32, 16 or 8: programs like round sizes, short prompts lose by
    them."""
    step = next((step for step in (64, 32, 16) if prompt >= 16 * step), 8)
    return int(_up(prompt, step))


def _up(n: Any, step: int) -> Any:
    return -(-n // step) * step


def _slots(table: ShapeTable, units: int) -> Int64[np.ndarray, "..."]:
    """Token slots of one row of a shape: what a question costs, roughly."""
    return table[..., _F] * table[..., _W] * units + table[..., _P]


def _extra(table: ShapeTable, units: int) -> np.ndarray:
    """Token slots that merging each pair would add; infinite for a pair that cannot be merged."""
    joint = np.maximum(table[:, None], table[None])
    own = _slots(table, units)
    slots = _slots(joint, units)
    n = table[:, _N]
    added = (slots - own[:, None]) * n[:, None] + (slots - own[None]) * n[None]
    allowed = np.triu(table[:, None, _K] == table[None, :, _K], 1)
    return np.where(allowed, added, np.inf)
