"""Which rows come when: coverage, mixing, weights, independence of process and of what was asked before."""

import pickle
from collections import Counter

import numpy as np
import pytest

from jvr1.data.batch import Bucket
from jvr1.data.schedule import Pool, Schedule, Sequential
from jvr1.data.share import Share
from jvr1.errors import UserError


def bucket(kind, size=1):
    return Bucket(kind, 0 if kind == "text" else size, 0 if kind == "text" else size, 64, 16)


IMAGES = (bucket("image", 1), bucket("image", 2))
VIDEOS = (bucket("video", 2), bucket("video", 3), bucket("video", 4))
TEXT = bucket("text")
PER_STEP = 4


def pools(*sizes):
    """Pools of (bucket, rows, weight), their rows numbered through."""
    ends = np.cumsum([n for _, n, _ in sizes])
    return [Pool(b, np.arange(end - n, end), w) for (b, n, w), end in zip(sizes, ends, strict=True)]


def published(batch=8, seed=0, scale=1):
    """44% video, buckets of very different sizes."""
    video = zip(VIDEOS, (60, 310, 70), (1.0, 1.0, 1.0), strict=True)
    image = zip(IMAGES, (500, 60), (1.0, 1.0), strict=True)
    return Schedule(pools(*[(b, scale * n, w) for b, n, w in (*video, *image)]), batch, seed)


def epoch_rows(schedule, epoch=0):
    numbers = range(epoch * schedule.per_epoch, (epoch + 1) * schedule.per_epoch)
    rows = np.concatenate([schedule.micro(n).rows for n in numbers])
    return rows[rows >= 0]


def test_every_row_is_drawn_as_often_as_its_weight_says():
    sizes = ((IMAGES[0], 37, 1.0), (IMAGES[0], 11, 3.0), (VIDEOS[0], 29, 2.0), (TEXT, 5, 1.0), (VIDEOS[1], 7, 0.0))
    given = pools(*sizes)
    schedule = Schedule(given, 4, seed=3)
    for epoch in range(3):
        drawn = Counter(epoch_rows(schedule, epoch).tolist())
        assert drawn == {int(row): pool.weight for pool in given for row in pool.rows if pool.weight}


def test_a_broken_weight_draws_a_new_share_each_epoch():
    schedule = Schedule(pools((IMAGES[0], 40, 1.5)), 4, seed=0)
    extra = []
    for epoch in range(2):
        drawn = Counter(epoch_rows(schedule, epoch).tolist())
        assert (len(drawn), sum(drawn.values()), max(drawn.values())) == (40, 60, 2)
        extra.append({row for row, times in drawn.items() if times == 2})
    assert extra[0] != extra[1]


def test_rows_are_of_their_bucket_and_only_tails_are_filled_up():
    given = pools((IMAGES[0], 10, 1.0), (VIDEOS[0], 9, 1.0))
    schedule = Schedule(given, 4, seed=1)
    assert schedule.per_epoch == 6
    plans = [schedule.micro(n) for n in range(schedule.per_epoch)]
    for pool in given:
        rows = [plan.rows for plan in plans if plan.bucket == pool.bucket]
        assert all((r >= 0).all() for r in rows[:-1])
        assert sorted(np.concatenate(rows).tolist()) == [-1] * (-len(pool.rows) % 4) + pool.rows.tolist()
        assert (np.diff(rows[-1] < 0) >= 0).all()


def kinds_of_steps(schedule, steps, per_step):
    kinds = np.array([schedule.micro(n).bucket.kind for n in range(steps * per_step)])
    return kinds.reshape(steps, per_step)


@pytest.mark.parametrize("per_step", [3, 4, 8])
def test_every_step_mixes_images_and_videos(per_step):
    """Also over the ends of epochs, which no multiple of `per_step` is."""
    schedule = published(batch=2)
    assert schedule.per_epoch % per_step or per_step == 4
    videos = (kinds_of_steps(schedule, 700, per_step) == "video").sum(1)
    share = 220 / 500
    assert (np.abs(videos - per_step * share) < 1).all()
    assert videos.min() >= 1
    assert videos.max() < per_step


def test_three_kinds_mix_as_far_as_their_shares_allow():
    schedule = Schedule(pools((TEXT, 201, 1.0), (IMAGES[0], 500, 1.0), (VIDEOS[0], 300, 1.0)), 1, seed=0)
    kinds = kinds_of_steps(schedule, 1000, 8)
    for kind, share in (("text", 0.2), ("image", 0.5), ("video", 0.3)):
        counts = (kinds == kind).sum(1)
        assert (np.abs(counts - 8 * share) < 2).all()
        assert counts.min() >= 1


def test_buckets_of_a_kind_are_spread_over_the_epoch():
    schedule = published(scale=10)
    buckets = [schedule.micro(n).bucket for n in range(schedule.per_epoch)]
    parts = np.array_split(np.arange(len(buckets)), 10)
    for one in {*VIDEOS, *IMAGES}:
        share = buckets.count(one) / 10
        assert all(abs(sum(buckets[i] == one for i in part) - share) <= 2 for part in parts), one


def test_the_bucket_sequence_is_equal_on_all_processes_for_10_000_steps():
    """Each process makes its own schedule, and one starts in the middle: none has seen what the others have."""
    first, second = published(seed=5), pickle.loads(pickle.dumps(published(seed=5)))
    late = published(seed=5)
    total = 10_000 * PER_STEP
    places = [Share((p,), 2).places(8) for p in range(2)]
    sequence = []
    for number in range(total):
        plan, other = first.micro(number), second.micro(number)
        assert plan.bucket == other.bucket
        sequence.append(plan.bucket)
        if number % 100 == 0:
            united = [plan.rows[places[0]], other.rows[places[1]]]
            np.testing.assert_array_equal(np.concatenate(united), first.micro(number).rows)
    assert [late.micro(n).bucket for n in range(total - 400, total)] == sequence[-400:]
    assert set(sequence) == {*VIDEOS, *IMAGES}


def test_epochs_and_seeds_differ():
    def rows(seed, epoch):
        return epoch_rows(published(seed=seed), epoch).tolist()

    orders = [rows(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_what_was_asked_before_changes_nothing():
    """As when one thread prefetches the next epoch while another is in this one."""
    schedule, fresh = published(), published()
    for number in (0, 500, 126, 125, 10_000, 124, 0, 251):
        plan, again = schedule.micro(number), fresh.micro(number)
        assert plan.bucket == again.bucket
        np.testing.assert_array_equal(plan.rows, published().micro(number).rows)


def test_a_schedule_travels_to_workers():
    schedule = published()
    schedule.micro(3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(schedule)).micro(7).rows, schedule.micro(7).rows)


def test_nothing_to_draw_is_said():
    with pytest.raises(UserError, match="no row is left"):
        Schedule(pools((TEXT, 5, 0.0)), 4, 0)
    with pytest.raises(UserError, match="no row is left"):
        Schedule([], 4, 0)


def test_rows_that_do_not_divide_are_refused():
    assert [list(Share((p,), 2).places(6)) for p in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError, match="6 rows a microbatch cannot be split 4 ways"):
        Share((0,), 4).places(6)


def test_evaluation_takes_every_row_once_in_order():
    plan = Sequential({VIDEOS[0]: [3, 1, 4, 0, 5], TEXT: np.array([9])}, 2)
    assert [(p.bucket, p.rows.tolist()) for p in plan.plans] == [
        (VIDEOS[0], [3, 1]),
        (VIDEOS[0], [4, 0]),
        (VIDEOS[0], [5, -1]),
        (TEXT, [9, -1]),
    ]
    assert plan.micro(2) is plan.plans[2]
