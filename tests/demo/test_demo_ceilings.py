"""Answers can be read off the decoded pixels; the time-blind ceilings are what enumeration and shuffling give."""

from collections import Counter, defaultdict
from fractions import Fraction
from itertools import permutations
from math import comb

import numpy as np
import pytest

from jvr1.demo.dataset import questions, task_table
from jvr1.demo.questions import HARD, TASKS
from jvr1.demo.scenes import BACKGROUND, GLYPHS, PALETTE

ORDINALS = ["first", "second", "third", "fourth"]
NAMES, VALUES = list(PALETTE), np.array(list(PALETTE.values()), float)


# --- a solver that knows the drawing but only sees decoded pixels ---------------------------------------------


def seen(frame: np.ndarray) -> tuple[str, float, float] | None:
    """Colour and place (row, column) of the one thing inside a frame's border; None for an empty frame."""
    inside = frame[4:-4, 4:-4].astype(float)
    rows, columns = np.nonzero(np.abs(inside - BACKGROUND).max(-1) > 60)
    if len(rows) < 20:
        return None
    distance = np.abs(np.median(inside[rows, columns], axis=0) - VALUES).sum(-1)
    assert np.sort(distance)[1] - distance.min() > 60, "colours do not stand apart"
    return NAMES[int(distance.argmin())], float(rows.mean()), float(columns.mean())


def colours_in_turn(views: list) -> list[str]:
    """Colours by the mean place of their frames in the clip."""
    at = defaultdict(list)
    for i, view in enumerate(views):
        at[view[0]].append(i)
    return sorted(at, key=lambda c: (np.mean(at[c]), at[c]))


def solve(record: dict, views: list) -> str:
    """The answer to a question from what is seen in each frame, in the order given."""
    task, words = record["data_source"], record["problem"].rstrip("?").split()
    if task == "motion":
        (_, y0, x0), (_, y1, x1) = views[0], views[-1]
        dy, dx = y1 - y0, x1 - x0
        word = ("up" if dy < 0 else "down") if abs(dy) > abs(dx) else ("left" if dx < 0 else "right")
    elif task == "blinks":
        lit = [view is not None for view in views]
        word = str(sum(b and not a for a, b in zip([False, *lit], lit, strict=False)))
    else:
        turn = colours_in_turn(views)
        if task == "order":
            word = turn[ORDINALS.index(words[-1])]
        elif task == "before":
            word = "yes" if turn.index(words[1]) < turn.index(words[4]) else "no"
        else:
            word = turn[(turn.index(words[-1]) + 1) % 4]
    letters = {o[3:]: o[0] for o in record["options"]}
    return f"<answer>{letters.get(word, word)}</answer>"


TEMPORAL = [t for t in (*TASKS, *HARD) if t.temporal]


@pytest.fixture(scope="module")
def clips(data) -> dict:
    """Of each temporal kind: records and what is seen in their frames."""
    names = ("sft", "valid", "test", "hard")
    return {t.name: [(r, [seen(f) for f in frames]) for r, frames in data.clips(t.name, *names)] for t in TEMPORAL}


@pytest.mark.parametrize("task", TEMPORAL, ids=lambda t: t.name)
def test_frames_in_order_give_the_answer(task, clips):
    assert len(clips[task.name]) >= 12
    for record, views in clips[task.name]:
        assert solve(record, views) == record["solution"]


@pytest.mark.parametrize("task", TEMPORAL, ids=lambda t: t.name)
def test_shuffled_frames_give_no_more_than_the_ceiling(task, clips):
    rng = np.random.default_rng(0)
    right = []
    for record, views in clips[task.name][:48]:
        for _ in range(400 // len(clips[task.name][:48])):
            shuffled = [views[i] for i in rng.permutation(len(views))]
            right.append(solve(record, shuffled) == record["solution"])
    margin = 4 * (task.ceiling * (1 - task.ceiling) / len(right)) ** 0.5
    assert np.mean(right) <= task.ceiling + margin
    assert np.mean(right) >= task.ceiling / 2


# --- ceilings by enumeration: each scene with its probability and answer, frames as a multiset ---------------


def best(scenes: list[tuple[tuple, str, Fraction]]) -> Fraction:
    """Accuracy of the best answer to each multiset of frames."""
    by_frames: dict = defaultdict(Counter)
    for frames, answer, probability in scenes:
        by_frames[frozenset(Counter(frames).items())][answer] += probability
    assert sum(p for c in by_frames.values() for p in c.values()) == 1
    return sum(max(c.values()) for c in by_frames.values())


def turns(answer) -> list[tuple[tuple, str, Fraction]]:
    """The 24 orders of four colours, two frames each."""
    each = Fraction(1, 24)
    return [(tuple(c for c in turn for _ in "12"), answer(turn), each) for turn in permutations("abcd")]


def enumerated(task: str) -> Fraction:
    if task == "order":
        return best(turns(lambda turn: turn[2]))
    if task == "before":
        return best(turns(lambda turn: str(turn.index("a") < turn.index("b"))))
    if task == "after":  # asked only where "a" is not last
        asked = [(frames, turn) for frames, turn, _ in turns(lambda turn: turn) if turn[3] != "a"]
        return best([(frames, turn[turn.index("a") + 1], Fraction(1, 18)) for frames, turn in asked])
    if task == "motion":
        paths = {way: [(axis, i) for i in range(8)] for way, axis in (("right", "x"), ("down", "y"))}
        paths |= {back: paths[way][::-1] for way, back in (("right", "left"), ("down", "up"))}
        return best([(tuple(path), way, Fraction(1, 4)) for way, path in paths.items()])
    lit = [tuple(bits >> i & 1 for i in range(8)) for bits in range(256) if bits.bit_count() == 4]
    runs = {p: sum(b > a for a, b in zip((0, *p), p, strict=False)) for p in lit}
    count = Counter(runs.values())
    assert count == {r: comb(3, r - 1) * comb(5, r) for r in (1, 2, 3, 4)}
    return best([(p, str(r), Fraction(1, 4 * count[r])) for p, r in runs.items()])


@pytest.mark.parametrize("task", TEMPORAL, ids=lambda t: t.name)
def test_ceilings_are_those_of_enumeration(task):
    assert task.ceiling == pytest.approx(float(enumerated(task.name)), abs=1e-12)


@pytest.mark.parametrize("task", TEMPORAL, ids=lambda t: t.name)
def test_what_is_drawn_agrees_with_the_enumeration(task):
    """A table from a time-blind view to the commonest answer, learned on half of the questions, tried on the rest."""

    def view(q) -> tuple:
        once = {f.tobytes(): f for f in q.frames[::2]}.values()
        places = [v[1:] for v in map(seen, once) if v]
        moves = tuple(len({place[axis] for place in places}) > 1 for axis in (0, 1))
        asked = tuple(w for w in q.problem.rstrip("?").split() if w in (*NAMES, *ORDINALS))
        return asked, moves if task.name == "motion" else len(places)

    drawn, half = list(questions([task], 480, seed=7)), 240
    table: dict = defaultdict(Counter)
    for q in drawn[:half]:
        table[view(q)][q.answer] += 1
    known = [q for q in drawn[half:] if view(q) in table]
    right = np.mean([table[view(q)].most_common(1)[0][0] == q.answer for q in known])
    assert len(known) > 180
    assert right <= task.ceiling + 4 * (task.ceiling * (1 - task.ceiling) / len(known)) ** 0.5


def test_the_table_names_every_kind(data):
    table = task_table()
    found = {r["data_source"] for n in ("sft", "rl", "valid", "test", "hard") for r in data.records[n]}
    assert set(table) == found
    assert {n for n, t in table.items() if t["hard"]} == {r["data_source"] for r in data.records["hard"]}
    assert all(t["ceiling"] == 1 for t in table.values() if not t["temporal"])
    for name in ("sft", "test", "hard"):
        for r in data.records[name]:
            assert r["problem_type"] == table[r["data_source"]]["problem_type"]


# --- single frames --------------------------------------------------------------------------------------------


def read_glyphs(mask: np.ndarray) -> str:
    """Text of glyphs at twice their size, by trying every place."""
    shapes = {g: np.array([[r >> (4 - c) & 1 for c in range(5)] for r in rows], bool) for g, rows in GLYPHS.items()}
    for top in range(4, 39, 2):
        for left in range(4, 19, 2):
            cells = [mask[top + 1 : top + 14 : 2, left + 12 * i + 1 : left + 12 * i + 10 : 2] for i in range(3)]
            found = [next((g for g, s in shapes.items() if np.array_equal(s, c)), None) for c in cells]
            if all(found) and mask.sum() == 4 * sum(int(shapes[g].sum()) for g in found):
                return "".join(found)
    return ""


def test_single_frames_show_their_answers():
    tasks = {t.name: t for t in TASKS if not t.temporal}
    for q in questions([tasks["read"]], 16, seed=1):
        assert read_glyphs((q.frames[0] != BACKGROUND).any(-1)) == q.answer
    for q in questions([tasks["bar"]], 18, seed=1):
        assert (q.frames[0] != BACKGROUND).any(-1).sum() == 32 * int(q.answer)
    for q in questions([tasks["squares"]], 20, seed=1):
        assert (q.frames[0] != BACKGROUND).any(-1).sum() == 100 * int(q.answer)
    for q in questions([tasks["describe"], tasks["colour"]], 36, seed=1):
        assert seen(q.frames[0])[0] in q.answer
