"""Buckets, the static-shape example, its shuffled twin, rows that hold nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import IMAGE, VIDEO, random_model, raw_config

from jvr1.data.batch import (
    Bucket,
    Clip,
    Need,
    build_example,
    choose_bucket,
    empty_example,
    make_buckets,
    shuffled_order,
    stack_examples,
)
from jvr1.errors import UserError
from jvr1.model.families import from_hf
from jvr1.model.vision_language import merge

CONFIG = from_hf(raw_config())
BUCKETS = make_buckets(
    [
        ("video", 4, 8, 400, 16),
        ("video", 8, 8, 600, 16),
        ("video", 8, 12, 700, 16),
        ("video", 8, 12, 700, 32),
        ("image", 1, 12, 300, 16),
        ("image", 3, 5, 300, 16),
    ]
)


# --- buckets


def need(kind="video", steps=4, windows=8, prompt=400, completion=16):
    return Need(kind, steps, windows, prompt, completion)


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        (need(), 0),
        (need(steps=1, windows=1, prompt=1, completion=1), 0),
        (need(prompt=401), 1),
        (need(steps=5), 1),
        (need(windows=9), 2),
        (need(windows=9, completion=17), 3),
        (need("image", 1, 12, 20), 4),
        (need("image", 1, 4, 20), 4),
        (need("image", 2, 4, 20), 5),
    ],
)
def test_the_cheapest_bucket_that_holds_the_example(wanted, place):
    assert choose_bucket(wanted, BUCKETS, CONFIG) == (BUCKETS[place], None)
    assert choose_bucket(wanted, BUCKETS[::-1], CONFIG) == (BUCKETS[place], None)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (need(prompt=701), "too many prompt tokens: 701, where the video bucket has 700"),
        (need(steps=9), "too many temporal steps: 9, where the video bucket has 8"),
        (need(windows=13), "too many windows a frame: 13, where the video bucket has 12"),
        (need(completion=33), "too many completion tokens: 33, where the video bucket has 32"),
        (need("image", 3, 6, 20), "too many windows a frame: 6, where the image bucket has 5"),
        (need("text", 0, 0, 20), "no text bucket"),
    ],
)
def test_what_fits_no_bucket_has_a_reason(wanted, reason):
    assert choose_bucket(wanted, BUCKETS, CONFIG) == (None, reason)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds 0 shapes; use 1 to 8"),
        ([("image", 1, 1, n + 1, 4) for n in range(9)], "holds 9 shapes"),
        ([("image", 1, 1, 8)], "must be rows of"),
        ([("image", 1, 1, "x", 8)], "must be rows of"),
        ([("film", 1, 1, 8, 8)], "with kind one of text, image, video"),
        ([("text", 1, 1, 8, 8)], "text has F = W = 0"),
        ([("video", 0, 1, 8, 8)], "the others at least 1"),
        ([("video", 1, 1, 8, 0)], r"is not \(kind, F, W, P, C\)"),
        ([("video", 1, 1, 8, 8)] * 2, "twice"),
    ],
)
def test_impossible_buckets_are_one_line(rows, words):
    with pytest.raises(UserError, match=words):
        make_buckets(rows)


# --- examples


def clip(frames=7, seconds=0.5, height=112, width=140, seed=0):
    rng = np.random.default_rng(seed)
    return Clip(rng.integers(0, 256, (frames, height, width, 3), np.uint8), seconds)


def ids_of(clips, token=VIDEO, before=3, after=4):
    parts = [np.full(before, 5)]
    for one in clips:
        grid = one.grid(CONFIG)
        parts += [np.full(grid.steps * grid.height * grid.width // 4, token), np.full(after, 6)]
    return np.concatenate(parts).astype(np.int32)


def example(clips, bucket, token=VIDEO, seed=0, target=()):
    order = np.random.default_rng(seed)
    return build_example(ids_of(clips, token), clips, np.array(target, np.int32), bucket, CONFIG, order)


def assert_equal(one, other):
    for name, a, b in zip(one._fields, one, other, strict=True):
        if isinstance(a, tuple):
            assert_equal(a, b)
        elif a is None or b is None:
            assert a is b, name
        else:
            np.testing.assert_array_equal(a, b, name)
            assert np.asarray(a).dtype == np.asarray(b).dtype, name


def test_shapes_and_padding():
    """7 frames are 4 steps; 112x140 is 4 x 5 merged tokens in 2 windows of the bucket's 4."""
    t = 3 + 4 * 20 + 4
    with pytest.raises(ValueError, match="do not fit"):
        example([clip()], Bucket("video", 4, 4, t - 1, 6))
    one = example([clip()], Bucket("video", 5, 4, t + 9, 6), target=[7, 8])
    prompt, visual = one.prompt, one.visual
    assert visual.frames.shape == (10, 4, 64, 588)
    assert (visual.frames[7:] == 0).all()
    assert (visual.frames[:, 2:] == 0).all()
    assert visual.pair.tolist() == [[0, 1], [2, 3], [4, 5], [6, 6], [0, 0]]
    assert (visual.hw[4] == -1).all()
    assert (visual.hw[:, 2:] == -1).all()
    assert (prompt.mask.sum(), prompt.mask[:t].all()) == (t, True)
    assert (prompt.visual_index >= 0).tolist() == (prompt.ids == VIDEO).tolist()
    assert len(set(prompt.visual_index[prompt.visual_index >= 0].tolist())) == 80
    assert one.target.tolist() == [7, 8, 0, 0, 0, 0]
    assert one.target_mask.tolist() == [True, True, False, False, False, False]
    assert (bool(one.valid), int(one.distinct)) == (True, 7)
    for leaf, empty in zip(one, empty_example(Bucket("video", 5, 4, t + 9, 6), CONFIG), strict=True):
        if not isinstance(leaf, tuple):
            assert (np.shape(leaf), np.asarray(leaf).dtype) == (np.shape(empty), np.asarray(empty).dtype)


SMALL = Bucket("video", 4, 1, 40, 6)


def small(frames=8, seed=0):
    return clip(frames, height=56, width=56, seed=seed)


@pytest.mark.parametrize(("frames", "tokens"), [(10, 20), (8, 20)])
def test_what_does_not_fit_raises_and_is_never_cut(frames, tokens):
    bucket = Bucket("video", 4, 1, tokens, 6)
    with pytest.raises(ValueError, match="not fit"):
        example([small(frames)], bucket)
    with pytest.raises(ValueError, match="not fit"):
        example([small()], SMALL, target=[1] * 7)
    with pytest.raises(ValueError, match="not fit"):
        example([clip(8, height=56, width=140)], Bucket("video", 4, 1, 60, 6))


def test_several_images_of_different_sizes_in_one_prompt():
    clips = [clip(1, 0.0, 56, 56), clip(1, 0.0, 28, 140, seed=1), clip(1, 0.0, 112, 112, seed=2)]
    one = example(clips, Bucket("image", 4, 2, 60, 4), token=IMAGE)
    assert one.visual.pair.tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]
    index = one.prompt.visual_index[one.prompt.visual_index >= 0]
    units = 2 * CONFIG.vision.units
    assert (index // units).tolist() == [0] * 4 + [1] * 5 + [2] * 16
    assert (one.visual.hw[..., 0] >= 0).sum((1, 2)).tolist() == [16, 20, 64, 0]
    assert int(one.distinct) == 3
    np.testing.assert_array_equal(one.shuffled, one.visual.pair)


@pytest.mark.parametrize("bucket", [SMALL, Bucket("image", 1, 1, 9, 3), Bucket("text", 0, 0, 9, 3)])
def test_an_empty_row_is_zeros(bucket):
    one = empty_example(bucket, CONFIG)
    assert not one.valid
    assert not one.target_mask.any()
    assert one.prompt.mask.tolist() == [True] + [False] * (bucket.prompt - 1)
    for leaf in (one.prompt.ids, one.prompt.positions, one.target, one.distinct):
        assert not np.any(leaf)
    assert (one.prompt.visual_index == -1).all()
    if bucket.steps:
        assert not one.visual.frames.any()
        assert (one.visual.hw == -1).all()
    else:
        assert one.visual is None
        assert one.shuffled is None


def test_stacked_rows_are_the_rows():
    rows = [example([small(seed=n)], SMALL, seed=n, target=[n]) for n in range(2)] + [empty_example(SMALL, CONFIG)]
    batch = stack_examples(rows)
    for b, row in enumerate(rows):
        assert_equal(batch._replace(**{f: _row(getattr(batch, f), b) for f in batch._fields}), row)
    text = stack_examples([empty_example(Bucket("text", 0, 0, 9, 3), CONFIG)] * 2)
    assert (text.visual, text.shuffled, text.prompt.ids.shape) == (None, None, (2, 9))


def _row(leaf, b):
    return leaf._replace(**{f: x[b] for f, x in leaf._asdict().items()}) if hasattr(leaf, "_asdict") else leaf[b]


# --- the shuffled twin


def inversions(order):
    return int(np.triu(order[:, None] > order[None], 1).sum())


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 16])
def test_permutations_are_far_from_the_identity_and_otherwise_uniform(n):
    rng = np.random.default_rng(n)
    drawn = [shuffled_order(n, rng) for _ in range(400)]
    assert all(sorted(order.tolist()) == list(range(n)) for order in drawn)
    assert min(inversions(order) for order in drawn) >= n * (n - 1) / 8
    if n == 4:  # the 24 permutations but the identity and the three of one inversion
        kinds = {tuple(order.tolist()) for order in drawn}
        assert kinds == {p for p in itertools.permutations(range(4)) if inversions(np.array(p)) >= 2}


def test_one_frame_has_nothing_to_shuffle():
    assert shuffled_order(1, np.random.default_rng(0)).tolist() == [0]
    one = example([small(1)], SMALL)
    np.testing.assert_array_equal(one.shuffled, one.visual.pair)
    assert int(one.distinct) == 1


@pytest.mark.parametrize("frames", [7, 8])
def test_the_twin_is_the_example_of_really_shuffled_frames(frames):
    """Permuting `pair` and permuting the clip give the tower the same pixels, and the same tokens come out."""
    ordered = small(frames)
    one = example([ordered], SMALL, seed=4)
    real = slice(0, (frames + 1) // 2)
    order = shuffled_order(frames, np.random.default_rng(4))
    shuffled = example([Clip(ordered.frames[order], ordered.seconds_per_step)], SMALL, seed=9)
    assert_equal(shuffled.prompt, one.prompt)
    assert sorted(set(one.shuffled[real].reshape(-1).tolist())) == list(range(frames))
    np.testing.assert_array_equal(
        shuffled.visual.frames[shuffled.visual.pair][real], one.visual.frames[one.shuffled][real]
    )

    graphdef, params = random_model(CONFIG)
    tower = merge(graphdef, params).visual
    batch = stack_examples([one._replace(visual=one.visual._replace(pair=one.shuffled)), shuffled, one])
    tokens = np.asarray(tower(jax.tree.map(jnp.asarray, batch.visual)))[:, real]
    permuted, really, plain = tokens
    np.testing.assert_allclose(permuted, really, rtol=1e-5, atol=1e-5)
    assert np.abs(permuted - plain).max() > 0.05
