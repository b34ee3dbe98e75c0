"""Buckets fitted to questions: all fit, few, no more padding than needed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import raw_config

from jvr1.data.batch import MAX_BUCKETS, Bucket, Need, choose_bucket
from jvr1.data.fitting import MAX_SHAPES, fit_buckets
from jvr1.model.families import from_hf

CONFIG = from_hf(raw_config())
UNITS = CONFIG.vision.units
NEEDS = st.builds(
    Need,
    st.sampled_from(["video", "image"]), st.integers(1, 32), st.integers(1, 26), st.integers(1, 9000), st.just(1),
) | st.builds(Need, st.just("text"), st.just(0), st.just(0), st.integers(1, 500), st.just(1))  # fmt: skip


def slots(buckets, needs) -> int:
    """Token slots all questions take, each in the bucket it is put into."""
    total = 0
    for need in needs:
        bucket, reason = choose_bucket(need, buckets, CONFIG)
        assert bucket is not None, reason
        total += bucket.steps * bucket.windows * UNITS + bucket.prompt
    return total


@given(st.lists(NEEDS, min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_every_question_fits_and_buckets_are_few(needs):
    buckets = fit_buckets(needs, 24, UNITS)
    assert 1 <= len(buckets) <= MAX_BUCKETS
    assert {b.kind for b in buckets} == {n.kind for n in needs}
    assert len(set(buckets)) == len(buckets)
    assert all(b.completion == 24 and b.prompt % 64 == 0 for b in buckets)
    sizes = [b.steps * b.windows * UNITS + b.prompt for b in buckets]
    assert sizes == sorted(sizes, reverse=True)
    assert buckets == fit_buckets(list(reversed(needs)), 24, UNITS)
    one_a_kind = [
        Bucket(kind, *(max(getattr(n, f) for n in needs if n.kind == kind) for f in ("steps", "windows")), 1 << 14, 24)
        for kind in {n.kind for n in needs}
    ]
    assert slots(buckets, needs) <= slots(one_a_kind, needs)


def test_few_shapes_are_met_exactly():
    needs = [Need("video", 4, 8, 600, 1)] * 50 + [Need("video", 8, 12, 1300, 1)] * 50 + [Need("image", 1, 4, 90, 1)]
    got = [(b.kind, b.steps, b.windows, b.prompt) for b in fit_buckets(needs, 8, UNITS)]
    assert got == [("video", 8, 12, 1344), ("video", 4, 8, 640), ("image", 1, 4, 128)]


def test_nearly_equal_shapes_share_a_bucket():
    needs = [Need("video", 8, 12, 1000 + 64 * i, 1) for i in range(3)]
    assert len(fit_buckets(needs, 8, UNITS)) == 1


def test_thousands_of_shapes():
    needs = [
        Need("video", f, w, 40 * f + 50 * p, 1) for f, w, p in itertools.product(range(1, 33), (8, 12, 20), range(9))
    ]
    assert len({(n.steps, n.windows, -(-n.prompt // 64)) for n in needs}) > MAX_SHAPES
    buckets = fit_buckets(needs, 8, UNITS)
    assert len(buckets) == MAX_BUCKETS
    exact = sum(n.steps * n.windows * UNITS + n.prompt for n in needs)
    assert slots(buckets, needs) < 1.5 * exact


@pytest.mark.parametrize("most", [1, 2, 3])
def test_as_few_as_asked(most):
    needs = [Need("video", 2 * i, 8, 300 * i, 1) for i in range(1, 9)]
    assert len(fit_buckets(needs, 8, UNITS, most)) == most
