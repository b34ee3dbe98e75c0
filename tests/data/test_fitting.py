"""Buckets fitted to questions: all fit, few, no more padding than needed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import raw_config
from runs import REPOSITORY

from jvr1.config import from_file
from jvr1.data.batch import MAX_BUCKETS, Bucket, Need, choose_bucket, make_buckets
from jvr1.data.fitting import (
    MAX_SHAPES,
    Misfit,
    fit_buckets,
    fit_training,
    in_buckets,
    misfits,
    padding_of,
    round_prompt,
)
from jvr1.data.index_file import IndexEntry
from jvr1.data.index_summary import keeps_them, summarise_index
from jvr1.model.families import from_hf
from jvr1.plan.planning import named_model
from tools.benchmarks.data import mixture_needs

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


def test_pictures_of_hundreds_of_sizes():
    """More widths than shapes are tried."""
    needs = [Need("image", 1, w, 40 * w, 1) for w in range(1, 2 * MAX_SHAPES)]
    buckets = fit_buckets(needs, 8, UNITS)
    assert len(buckets) <= MAX_BUCKETS
    exact = sum(n.steps * n.windows * UNITS + n.prompt for n in needs)
    assert slots(buckets, needs) < 1.5 * exact


@pytest.mark.parametrize("most", [1, 2, 3])
def test_as_few_as_asked(most):
    needs = [Need("video", 2 * i, 8, 300 * i, 1) for i in range(1, 9)]
    assert len(fit_buckets(needs, 8, UNITS, most)) == most


# --- of a training run


def fits(needs, buckets) -> bool:
    return all(choose_bucket(need, buckets, CONFIG)[0] is not None for need in needs)


@given(st.lists(NEEDS, min_size=1, max_size=60), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_a_run_s_buckets_hold_all_and_are_few(needs, most):
    counted = Counter(needs)
    most = max(most, len({need.kind for need in needs}))
    buckets = fit_training(counted, 24, UNITS, most, 0.15)
    assert len(set(buckets)) == len(buckets) <= most
    assert fits(needs, buckets)
    assert all(b.completion == 24 for b in buckets)
    assert make_buckets([(b.kind, b.steps, b.windows, b.prompt, b.completion) for b in buckets]) == buckets
    assert fit_training(Counter(reversed(needs)), 24, UNITS, most, 0.15) == buckets


def test_fewer_buckets_than_allowed_where_padding_stays_below_the_bound():
    needs = Counter({Need("video", 8, 8, 600 + 40 * i, 1): 10 for i in range(8)})
    loose, tight = (fit_training(needs, 8, UNITS, 8, padding) for padding in (0.5, 0.02))
    assert len(loose) < len(tight) <= 8
    assert padding_of(needs, tight, UNITS).prompt <= 0.04


def test_padding_is_counted_over_all_records():
    needs = {Need("video", 4, 8, 300, 1): 3, Need("video", 2, 4, 500, 1): 1, Need("image", 9, 9, 9, 1): 5}
    found = padding_of(needs, [Bucket("video", 4, 8, 600, 8)], UNITS)
    assert found.prompt == pytest.approx(1 - (3 * 300 + 500) / (4 * 600))
    assert found.visual == pytest.approx(1 - (3 * 32 + 8) / (4 * 32))


@pytest.mark.parametrize("name", ["tgrpo_7b", "tgrpo_qwen3vl_8b"])
def test_the_published_mixture_simulated(name):
    """2,000 rows of it under a config's limits: none is dropped, at most 15% of prompt tokens and of windows pad."""
    config = from_file(str(REPOSITORY / "configs" / f"{name}.py"))
    units = named_model(config.model.source).vision.units
    needs = Counter(need for need, _ in mixture_needs(2000, config))
    auto = config.data.auto
    buckets = fit_training(needs, auto.completion, units, auto.shapes, auto.padding)
    assert len(buckets) <= 8
    assert fits(needs, buckets)
    assert padding_of(needs, buckets, units).worst <= 0.15


def test_entries_go_where_they_fit_and_misfits_are_summed_up():
    buckets = (Bucket("video", 4, 8, 600, 8), Bucket("video", 4, 16, 900, 8))
    sizes = [(4, 8, 600), (4, 9, 600), (5, 8, 60), (7, 9, 1000), (4, 8, 901)]
    entries = [IndexEntry(row, (), p, "video", None, f, w, 1) for row, (f, w, p) in enumerate(sizes)]
    entries += [IndexEntry(5, (), 0, None, "missing: a.mp4"), IndexEntry(6, (), 9, "text", None)]
    placed = in_buckets(entries, buckets, CONFIG)
    assert [one.bucket for one in placed] == [buckets[0].name, buckets[1].name, None, None, None, None, None]
    assert [one.cause for one in placed[2:]] == [
        *["too many temporal steps"] * 2,
        "too many prompt tokens",
        "missing",
        "no text bucket",
    ]
    found = misfits(placed)
    assert found == {
        "too many temporal steps": [Misfit("video", "temporal steps", 2, 5, 7, 4, Need("video", 7, 9, 1000, 1))],
        "too many prompt tokens": [Misfit("video", "prompt tokens", 1, 901, 901, 900, Need("video", 4, 8, 901, 1))],
    }
    summary = summarise_index(placed)
    assert "2 of kind video need 5 to 7, 4 are allowed" in str(summary)
    assert "1 of kind video need 901, 900 are allowed" in str(summary)
    how = {"drawn": ["video", "text"], "fitted": False, "trained": False}
    assert list(keeps_them(summary, buckets, 950, 8, **how)) == [
        "  one bucket more would hold those of kind video: ('video', 7, 9, 1024, 8)",
        "  --config.data.buckets=auto --config.data.auto.prompt=1000 keeps all of kind text, video",
    ]
    assert list(keeps_them(summarise_index(placed[:2]), buckets, 950, 8, **how)) == []
    *_, of_eight = keeps_them(summary, buckets * 4, 950, 768, **how | {"drawn": ["video"]})
    assert [*keeps_them(summary, buckets * 4, 950, 768, **how | {"drawn": ["video"]})] == [of_eight]
    auto = "--config.data.buckets=auto --config.data.auto.prompt=1000"
    assert of_eight == f"  {auto} --config.data.auto.completion=8 keeps all of kind video"
    (of_fitted,) = keeps_them(summary, buckets, 950, 768, **how | {"fitted": True})
    assert of_fitted == "  --config.data.auto.prompt=1000 keeps all of kind text, video"
    *_, learned = keeps_them(summary, buckets, 2000, 0, **how | {"trained": True})
    assert learned == "  --config.data.buckets=auto --config.data.auto.completion=1 keeps all of kind text, video"
    assert list(keeps_them(summary, buckets, 950, 8, **how | {"drawn": ["image"]})) == []


def test_prompts_are_rounded_by_little():
    assert [round_prompt(n) for n in (1, 66, 255, 256, 300, 513, 1024, 1025)] == [8, 72, 256, 256, 304, 544, 1024, 1088]
