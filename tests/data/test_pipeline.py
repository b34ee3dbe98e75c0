"""The same batches whatever the workers, processes and restarts; failures in their place, journalled, replayed."""

import json
import multiprocessing
import threading
from itertools import chain

import numpy as np
import pytest
from cases import IMAGE, TEXT, VIDEO, encoder, record
from painted import Paint

from jvr1.data.batch import Microbatch, Row, empty_example, stack_examples
from jvr1.data.pipeline import FailureJournal, Pipeline, ahead
from jvr1.data.schedule import Pool, Schedule, Sequential
from jvr1.data.share import Share
from jvr1.data.store import RecordStore

BATCH, PER_STEP, SEED = 4, 2, 7


def records_of(broken=(), flaky=(), slow=()):
    """21 clips, 14 pictures, 4 texts; `broken`, `flaky` and `slow` are numbers of clips and pictures."""
    records = []
    for n in range(39):
        kind = "video" if n < 21 else "image" if n < 35 else "text"
        fault = next((f for f, rows in (("broken", broken), ("flaky", flaky), ("slow", slow)) if n in rows), "good")
        path = None if kind == "text" else f"{fault}-{n}.mp4"
        records.append(record(n, path, kind, process=f"<think>clip {n}</think>"))
    return records


def pools():
    return [Pool(VIDEO, np.arange(21), 1.0), Pool(IMAGE, np.arange(21, 35), 1.0), Pool(TEXT, np.arange(35, 39), 2.0)]


@pytest.fixture
def made(tmp_path, config, tokenizer):
    """Makes pipelines that share one helper process."""
    one = encoder(config, tokenizer, Paint(tmp_path))

    def make(records=None, *, workers=0, process=0, processes=1, planner=None, seed=SEED):
        store = RecordStore.write(tmp_path / "store", records or records_of())
        return Pipeline(
            planner or Schedule(pools(), BATCH, SEED),
            store,
            one,
            seed=seed,
            per_step=PER_STEP,
            workers=workers,
            share=Share((process,), processes),
        )

    yield make
    one.read.close()


def leaves(arrays):
    return [x for leaf in arrays for x in (leaf if isinstance(leaf, tuple) else [leaf]) if x is not None]


def same(one, other):
    """Whether two microbatches are equal to the bit."""
    assert one.bucket == other.bucket
    assert one.rows == other.rows
    for a, b in zip(leaves(one.arrays), leaves(other.arrays), strict=True):
        assert (a.dtype, a.shape, type(a)) == (b.dtype, b.shape, np.ndarray)
        assert a.tobytes() == b.tobytes()


def run(pipeline, first, last, journal=None, folder=None):
    """Microbatches of the steps, each noted in the journal as the loop does."""
    journal = journal or (FailureJournal(folder, pipeline.share.parts[0], 1.0) if folder else None)
    out = []
    for step, microbatches in enumerate(pipeline.steps(first, last, dict(journal.failed) if journal else {}), first):
        if journal:
            journal.note(step, microbatches)
        out.append(microbatches)
    return out


def flat(steps):
    return list(chain.from_iterable(steps))


def all_same(one, other):
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            same(x, y)


# --- determinism


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_a_restart_in_mid_epoch_goes_on_with_the_next_row(made, workers):
    records = records_of(broken=(3, 24))
    whole = run(made(records), 0, 9)  # an epoch has 12 microbatches
    all_same(run(made(records, workers=workers), 3, 8), whole[3:8])
    all_same(run(made(records), 4, 9), whole[4:9])
    assert {m.bucket for step in whole for m in step} == {VIDEO, IMAGE, TEXT}


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_a_step_are_the_same_when_processes_share_them(made, processes):
    records = records_of(broken=(3, 24))
    whole = run(made(records), 2, 7)
    parts = [run(made(records, process=p, processes=processes), 2, 7) for p in range(processes)]
    for step, microbatches in enumerate(whole):
        for m, micro in enumerate(microbatches):
            shares = [part[step][m] for part in parts]
            assert all(share.bucket == micro.bucket for share in shares)
            assert sum((share.rows for share in shares), ()) == micro.rows
            united = zip(*(leaves(share.arrays) for share in shares), strict=True)
            for own, joined in zip(leaves(micro.arrays), united, strict=True):
                assert own.tobytes() == np.concatenate(joined).tobytes()


def test_seeds_differ(made):
    one, other = (run(made(seed=seed), 0, 3) for seed in (7, 8))
    twins = [[m.arrays.shuffled for step in steps for m in step if m.bucket == VIDEO] for steps in (one, other)]
    assert any((a != b).any() for a, b in zip(*twins, strict=True))


def test_numbers_are_unique_within_a_step_and_do_not_depend_on_the_step(made):
    for step in run(made(), 3, 5):
        numbers = np.concatenate([m.arrays.number for m in step])
        assert numbers.tolist() == list(range(PER_STEP * BATCH))


def test_the_twin_differs_for_rows_and_steps_and_images_have_none(made):
    seen = {}
    for step in run(made(), 0, 24):
        for micro in step:
            if micro.bucket == IMAGE:
                np.testing.assert_array_equal(micro.arrays.shuffled, micro.arrays.visual.pair)
            elif micro.bucket == VIDEO:
                pair, shuffled = micro.arrays.visual.pair, micro.arrays.shuffled
                for b in np.flatnonzero(micro.arrays.valid):
                    assert sorted(shuffled[b].reshape(-1).tolist()) == sorted(pair[b].reshape(-1).tolist())
                    assert np.count_nonzero(shuffled[b] != pair[b]) >= 2
                    seen.setdefault(micro.rows[b].record.problem_id, []).append(shuffled[b].tobytes())
    assert max(len(orders) for orders in seen.values()) >= 3
    assert all(len(set(orders)) == len(orders) for orders in seen.values())
    every = [order for orders in seen.values() for order in orders]
    assert len(set(every)) > 0.95 * len(every)


# --- never a substitute


def test_a_broken_medium_leaves_its_row_empty_and_touches_no_other(made, config):
    """Every other row is bit for bit what it is where nothing is broken."""
    good, bad = run(made(), 0, 12), run(made(records_of(broken=(3, 20, 24))), 0, 12)
    seen = []
    for one, other in zip(flat(good), flat(bad), strict=True):
        for b, (row, faulty) in enumerate(zip(one.rows, other.rows, strict=True)):
            own = [x[b] for x in leaves(other.arrays)]
            assert (row.micro, row.place) == (faulty.micro, faulty.place)
            if row.record is None or faulty.error:
                number = other.arrays.number[b]
                empty = leaves(empty_example(other.bucket, config)._replace(number=number))
                assert [x.tobytes() for x in own] == [np.asarray(x).tobytes() for x in empty]
                assert not other.arrays.valid[b]
            else:
                assert [x.tobytes() for x in own] == [x[b].tobytes() for x in leaves(one.arrays)]
                assert other.arrays.valid[b]
                text = f"clip {row.record.problem_id}"
                assert row.record.process == f"<think>{text}</think>"
            if faulty.error:
                assert (faulty.error, faulty.cause) == ("corrupt", "corrupt")
                assert faulty.record.problem_id == row.record.problem_id
                seen.append(faulty.record.problem_id)
    assert {*seen} == {3, 20, 24}


def test_the_batch_carries_what_global_denominators_need(made):
    """Target tokens and rows add up over microbatches and processes to those of the whole step."""
    records = records_of(broken=(3, 24))
    whole = run(made(records), 0, 6)
    shares = [run(made(records, process=p, processes=2), 0, 6) for p in range(2)]

    def counts(steps):
        return np.array(
            [
                [sum(int(m.arrays.valid.sum()) for m in s), sum(int(m.arrays.target_mask.sum()) for m in s)]
                for s in steps
            ]
        )

    np.testing.assert_array_equal(counts(whole), sum(counts(share) for share in shares))
    for micro in flat(whole):
        arrays = micro.arrays
        assert not arrays.target_mask[~arrays.valid].any()
        assert (arrays.target_mask[arrays.valid].sum(1) > 0).all()
        lengths = arrays.target_mask.sum(1, keepdims=True)
        np.testing.assert_array_equal(arrays.target_mask, np.arange(arrays.target.shape[1]) < lengths)


# --- the journal


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "cause"), [("flaky", "unreadable"), ("slow", "timeout")])
def test_a_row_that_failed_once_fails_alike_after_a_restart(made, tmp_path, fault, cause):
    """With one process, then with two, and once more with one: though its medium can be read by now."""
    records = records_of(**{fault: (9,)})
    first = run(made(records), 0, 6, folder=tmp_path)
    failed = [row for step in first for micro in step for row in micro.rows if row.error]
    assert [(row.error, row.record.problem_id) for row in failed] == [(cause, 9)]
    assert (tmp_path / f"{fault}-9.mp4").exists()
    all_same(run(made(records), 0, 6, folder=tmp_path), first)
    for process in range(2):
        again = run(made(records, process=process, processes=2), 0, 6, folder=tmp_path)
        rows = [row for step in again for micro in step for row in micro.rows]
        own = [r for step in first for m in step for r in m.rows[2 * process : 2 * process + 2]]
        assert rows == own
    all_same(run(made(records), 0, 6, folder=tmp_path), first)


def test_without_the_journal_the_row_would_come_back(made):
    records = records_of(flaky=(9,))
    first, second = (run(made(records), 0, 6) for _ in range(2))
    valid = [sum(int(m.arrays.valid.sum()) for m in flat(steps)) for steps in (first, second)]
    assert valid[1] == valid[0] + 1


@pytest.fixture
def micro(config):
    """A microbatch whose row at `place` failed; without one, all were read."""
    nothing = stack_examples([empty_example(TEXT, config)] * BATCH)

    def make(number, place=None, error="timeout: no result"):
        rows = (Row(number, p, record(10 * number + p), error if p == place else None) for p in range(BATCH))
        return Microbatch(TEXT, nothing, tuple(rows))

    return make


def test_the_journal_names_the_row_and_its_record(tmp_path, micro):
    journal = FailureJournal(tmp_path, 0, 1.0)
    assert journal.note(4, [micro(8), micro(9)]) == []
    assert not (tmp_path / "journal").exists()
    assert [row.record.problem_id for row in journal.note(5, [micro(10), micro(11, 2)])] == [112]
    (file,) = (tmp_path / "journal").iterdir()
    assert json.loads(file.read_text()) == [[11, 2, "timeout: no result", 112]]
    assert FailureJournal(tmp_path, 0, 1.0).failed == {(11, 2): "timeout: no result"}


def test_a_process_that_takes_over_rows_forgets_none(tmp_path, micro):
    """One process wrote for place 3; then it is one of two, owns places 0 and 1 only, and fails at 0."""
    for process, place in ((0, 3), (0, 0), (1, 2)):
        FailureJournal(tmp_path, process, 1.0).note(2, [micro(4, place)])
    assert set(FailureJournal(tmp_path, 0, 1.0).failed) == {(4, 3), (4, 0), (4, 2)}


def test_too_many_failures_stop_the_run_with_a_summary(tmp_path, micro):
    journal = FailureJournal(tmp_path, 0, 0.2, enough=8)
    journal.note(0, [micro(0, 1)])  # a quarter, but of four rows only
    journal.note(1, [micro(1, 2, "timeout: 60 s"), micro(2)])
    journal.note(2, [micro(3, 0, "missing")])
    journal.note(3, [micro(4, 0, "missing")])
    assert journal.excess is None
    journal.note(4, [micro(5, 0, "timeout: 61 s")])
    words = "5 of 24 rows could not be read (3 timeout, 2 missing); data.max_failed allows 20.0%"
    assert journal.excess == words
    assert (5, 0) in FailureJournal(tmp_path, 0, 0.2).failed


def test_rows_that_fill_up_are_no_failures(made, tmp_path):
    pipeline = made(planner=Sequential({VIDEO: [0], TEXT: [35, 36]}, BATCH))
    journal = FailureJournal(tmp_path, 0, 0.0, enough=1)
    microbatches = list(pipeline.microbatches(0, 2, {}))
    assert journal.note(0, microbatches) == []
    assert [m.arrays.valid.tolist() for m in microbatches] == [[True] + [False] * 3, [True] * 2 + [False] * 2]


# --- threads and processes


@pytest.mark.slow
def test_a_run_that_stops_early_leaves_no_worker_behind(made):
    before = set(multiprocessing.active_children())
    stream = made(workers=1).steps(0, 1000, {})
    next(stream)
    assert set(multiprocessing.active_children()) > before
    stream.close()
    left = set(multiprocessing.active_children()) - before
    for child in left:
        child.join(10)
    assert not set(multiprocessing.active_children()) - before


def test_ahead_gives_the_items_in_order_and_errors_in_their_place():
    def items():
        yield from range(5)
        raise KeyError("five")

    stream = ahead(items(), 2)
    assert [next(stream) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="five"):
        next(stream)
    assert list(ahead((n for n in range(3)), 1)) == [0, 1, 2]


def test_ahead_makes_no_more_than_it_may_and_closes_what_it_reads():
    closed, begun = threading.Event(), []

    def items():
        try:
            for n in range(100):
                begun.append(n)
                yield n
        finally:
            closed.set()

    stream = ahead(items(), 2)
    assert next(stream) == 0
    stream.close()
    assert closed.wait(30)
    assert len(begun) <= 5
