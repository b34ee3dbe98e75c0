"""Which bucket comes when, and which rows: a pure function of (seed, microbatch number)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from jvr1.data.batch import Bucket
from jvr1.errors import UserError


class MicrobatchPlan(NamedTuple):
    """A microbatch of the run: its bucket and B row numbers, -1 where an epoch's tail is filled up."""

    bucket: Bucket
    rows: Int64[np.ndarray, " B"]


class Pool(NamedTuple):
    """Rows of one data set and bucket, drawn `weight` times an epoch."""

    bucket: Bucket
    rows: Int64[np.ndarray, " n"]
    weight: float


class Schedule:
    """An endless plan over epochs. Every process computes all of it; none needs another to know what comes next.

    In an epoch each bucket gives ceil(rows / B) microbatches. Kinds take turns at regular distances, so that among any
    m microbatches in a row a kind with share s has m * s, give or take less than one (of three kinds: than two): every
    optimizer step mixes images and videos. Within its kind a bucket's k-th comes at a random point of its k-th equal
    share of the epoch.
    """

    def __init__(self, pools: Sequence[Pool], batch: int, seed: int):
        self.batch, self.seed = batch, seed
        self.pools = [p for p in pools if round(len(p.rows) * p.weight) > 0]
        if not self.pools:
            raise UserError("no row is left to train on: the index drops them all, or their weights are 0")
        self.buckets = tuple(dict.fromkeys(p.bucket for p in self.pools))
        sizes = [sum(_count(p) for p in self.pools if p.bucket == b) for b in self.buckets]
        self.micros = [-(-n // batch) for n in sizes]
        self.per_epoch = sum(self.micros)
        self._epochs: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}

    def micro(self, number: int) -> MicrobatchPlan:
        """The plan of microbatch `number` of the run."""
        epoch, at = divmod(number, self.per_epoch)
        order, rows = self._kept(epoch)
        bucket, k = order[at]
        return MicrobatchPlan(self.buckets[bucket], rows[bucket][k * self.batch : (k + 1) * self.batch])

    def _kept(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """`_epoch`, kept for an epoch and its neighbours: prefetching crosses into the next before this one ends."""
        made = self._epochs.get(epoch)
        if made is None:
            made = self._epoch(epoch)
            self._epochs = {n: e for n, e in self._epochs.items() if abs(n - epoch) == 1} | {epoch: made}
        return made

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """(bucket, k) of each microbatch in turn, and each bucket's rows in the order drawn, filled up with -1."""
        rows, within, members = [], [], []
        for number, (bucket, count) in enumerate(zip(self.buckets, self.micros, strict=True)):
            rng = np.random.default_rng((self.seed, epoch, number, 1))  # trailing zeros of a seed are ignored
            drawn = np.concatenate([_draw(p, rng) for p in self.pools if p.bucket == bucket])
            drawn = drawn[rng.permutation(len(drawn))]
            rows.append(np.concatenate([drawn, np.full(count * self.batch - len(drawn), -1)]))
            within.append((np.arange(count) + rng.random(count)) / count)
            members.append(np.stack([np.full(count, number), np.arange(count)], -1))
        turn, order = np.concatenate(within), np.concatenate(members)
        kinds = np.repeat([b.kind for b in self.buckets], self.micros)
        when = np.empty(len(order))
        for kind in set(kinds.tolist()):
            own = np.flatnonzero(kinds == kind)
            when[own[np.argsort(turn[own], kind="stable")]] = (np.arange(len(own)) + 0.5) / len(own)
        return order[np.argsort(when, kind="stable")], rows


def _count(pool: Pool) -> int:
    return round(len(pool.rows) * pool.weight)


def _draw(pool: Pool, rng: np.random.Generator) -> Int64[np.ndarray, " count"]:
    """Each row floor(weight) times, and a random share of them once more."""
    whole, rest = divmod(_count(pool), len(pool.rows))
    extra = rng.permutation(pool.rows)[:rest]
    return np.concatenate([np.tile(pool.rows, whole), extra]).astype(np.int64)


class Sequential:
    """Every row once, bucket by bucket in the given order: for validation and evaluation."""

    def __init__(self, rows: Mapping[Bucket, Sequence[int]], batch: int):
        self.batch = batch
        self.plans: list[MicrobatchPlan] = []
        for bucket, numbers in rows.items():
            for start in range(0, len(numbers), batch):
                part = np.asarray(numbers[start : start + batch], np.int64)
                self.plans.append(MicrobatchPlan(bucket, np.concatenate([part, np.full(batch - len(part), -1)])))

    def micro(self, number: int) -> MicrobatchPlan:
        return self.plans[number]
