"""Several rewards of a user's own in the judge: names, weights, opinions, an accuracy, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jvr1.config import default
from jvr1.data.batch import Arrays, Microbatch, Row, make_buckets
from jvr1.data.records import parse_record
from jvr1.data.share import Share
from jvr1.errors import UserError
from jvr1.questions.own_accuracy import with_own_accuracy
from jvr1.questions.replies import Question, reply
from jvr1.rl import judge as judging
from jvr1.rl.judge import make_judge
from jvr1.rollout.tasks import Sampled
from jvr1.train.rollouts import user_failures

BUCKET = make_buckets((("video", 4, 1, 66, 6),))[0]
GOLD = "<answer>[2, 4]</answer>"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def record(kind: str = "temporal grounding", solution: str = GOLD, **more):
    raw = {
        "problem_id": 7, "problem": "when is it blue?", "data_type": "video", "problem_type": kind, "path": "a.mp4",
        "solution": solution, "data_source": "own",
    }  # fmt: skip
    return parse_record(raw | more)


def micro(*records):
    """A row each; None is one that could not be read."""
    rows = [Row(0, i, one or record(), None if one else "missing") for i, one in enumerate(records)]
    valid = np.asarray([one is not None for one in records])
    return Microbatch(BUCKET, Arrays(*[None] * 5, valid, np.full(len(rows), 8), None), tuple(rows))


def sampled(texts):
    shape = (len(texts), len(texts[0]))
    return Sampled(np.zeros((*shape, 6), np.int32), np.full(shape, 5), np.ones(shape, bool), np.zeros((*shape, 6)))


def told(text: str, answer: str) -> str:
    return f"<think>{text}</think><answer>{answer}</answer>"


def made(records=None, **settings):
    config = default()
    for name, given in settings.items():
        config.reward[name] = given
    return make_judge(config, [record()] if records is None else records)


def judged(judge, micro_, texts, rows=(2,), **how):
    return judge(micro_, texts, sampled(texts), rows, **how)


def test_rewards_by_name_and_weight_and_one_without_an_opinion_is_no_term():
    user = "user_rewards:iou, user_rewards:style"
    judge = made(user=user, user_weight=2.0, user_weights=("short=0.5", "iou=10"))
    assert judge.user.names == ("iou", "short", "calm")
    texts = [[told("a?", "[2, 3]"), "[0, 4]"]]
    found = judged(judge, micro(record()), texts)
    np.testing.assert_array_equal(found.values, [[[0.5, 0, np.nan], [0, 1, 1]]])
    # accuracy 0.5 + format 1 + 10 x 0.5; then 0 + 0 + 10 x 0 + 0.5 x 1 + 2 x 1
    np.testing.assert_allclose(found.rollout.reward, [[0.5 + 1 + 5, 0.5 + 2]])
    assert found.rollout.scored.all()
    judge.user.close()


def test_a_failed_call_masks_its_row_or_scores_what_is_set():
    texts = [[told("fine", "[2, 4]"), told("fail", "[2, 4]")], [told("fail", "[2, 4]"), told("fine", "[2, 4]")]]
    rows = micro(record(), None)
    judge = made(user="user_rewards:fails_where_asked")
    found = judged(judge, rows, texts)
    np.testing.assert_array_equal(found.rollout.scored[0], [True, False])
    np.testing.assert_array_equal(found.scored, [[True, False], [False, False]])
    np.testing.assert_allclose(found.rollout.reward[0], [2.5, 2.0])
    assert not found.rollout.reward[1].any()
    (line,) = judge.user.failures.take_told()
    assert line == (
        "reward.user user_rewards:fails_where_asked failed (exception): ConnectionError: the judge is not there; "
        "the row is not scored"
    )
    judged(judge, rows, texts)
    assert judge.user.failures.take_told() == []  # of its kind the first is told
    judge.user.close()
    judge = made(user="user_rewards:fails_where_asked", user_failure=-1.0)
    found = judged(judge, rows, texts)
    assert found.rollout.scored.all()
    np.testing.assert_allclose(found.rollout.reward[0], [2.5, 1.0])
    judge.user.close()


def test_failures_are_counted_for_the_step_and_once_for_rows_that_several_processes_hold():
    judge = made(user="user_rewards:fails_where_asked")
    judged(judge, micro(record()), [[told("fail", "1"), told("fail", "1")]])
    # two processes with a half each, each of which another holds too: the owners' sums are what is added up
    first = user_failures(judge, Share((0,), 2, owner=True, shared=True))
    second = user_failures(judge, Share((1,), 2, owner=True, shared=True))  # none since
    assert set(first) == {f"reward/user_failed/{cause}" for cause in ("exception", "timeout", "value", "died")}
    total, parts = (sum(x) for x in zip(*(s["reward/user_failed/exception"] for s in (first, second)), strict=True))
    assert total / parts == 2
    judge.user.close()


def test_above_a_share_of_failures_the_run_ends():
    judge = made(user="user_rewards:fails_where_asked", max_failed=0.25)
    good, bad = told("fine", "1"), told("fail", "1")
    judged(judge, micro(record()), [[bad] * 20 + [good] * 40], (60,))
    assert judge.excess() is None  # too few to tell
    judged(judge, micro(record()), [[good] * 20], (20,))
    assert judge.excess() is None  # 20 of 80
    judged(judge, micro(record()), [[bad]], (1,))
    assert judge.excess() == (
        "reward.user failed for 21 of 81 rows (21 exception); reward.max_failed allows 25.0%"
    )  # fmt: skip
    judge.user.close()


def test_an_accuracy_of_the_user_s_is_the_accuracy_everywhere():
    """By kinds' own scores 0.95 would be 1 - 0.05/2 of a number; here it is what the user says, shuffled rows too."""
    judge = made(
        [record(), record("regression", "<answer>2</answer>")],
        user="user_rewards:iou,user_rewards:fails_where_asked",
        user_accuracy=("temporal grounding=iou", "regression=fails_where_asked"),
        user_weight=100.0,
    )
    texts = [
        [told("", "[2, 3.9]"), told("", "[0, 2.2]"), told("", "[2, 3]")],
        [told("too much", "2"), told("fail", "2"), told("", "2")],
    ]
    found = judged(judge, micro(record(), record("regression", "<answer>2</answer>")), texts)
    np.testing.assert_allclose(found.rollout.accuracy, [[0.95, 0.05], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(found.rollout.scored, [[True, True], [False, False]])
    np.testing.assert_allclose(found.rollout.shuffled_accuracy, [[0.5], [0.5]])
    assert found.rollout.shuffled_valid.all()
    assert [round(s.accuracy, 6) for s in found.rows[0]] == [0.95, 0.05, 0.5]
    # the accuracy is no term of its own; the other reward's is, of the ordered rows: 100 x 0.5
    np.testing.assert_allclose(found.rollout.reward[0], [0.95 + 1 + 50, 0.05 + 1 + 50], atol=1e-5)
    assert judge.user.failures.take()["value"] == 1  # 2.0 is no accuracy
    judge.user.close()


def test_processes_with_the_same_rows_go_on_with_what_their_owner_was_given(monkeypatch):
    judge = made(user="user_rewards:dice")
    shared = Share((0,), 1, owner=True, shared=True)
    sent = []
    monkeypatch.setattr(judging, "from_owner", lambda value, share: sent.append(value) or sent[0])
    texts = [[told("", "1"), told("", "2")]]
    first = judged(judge, micro(record()), texts, share=shared)
    second = judged(judge, micro(record()), texts, share=replace(shared, owner=False))
    assert sent[1] is None  # it asked nobody
    np.testing.assert_array_equal(first.rollout.reward, second.rollout.reward)
    np.testing.assert_array_equal(first.values, second.values)
    judge.user.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user": "user_rewards:wrong_name"}, r"takes 'text', which is no field of a row \(completion, .*\) or of its"),
        (
            {"user": "user_rewards:needs_an_answer"},
            r"record 7 with the completion 'A first try.' \(exception\): TypeErr",
        ),
        (
            {"user": "user_rewards:echo_gold"},
            r"\(exception\): ValueError: could not convert string to float: '<answer>",
        ),
        ({"user": "no_such_module:reward"}, "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ({"user": "user_rewards:style,user_rewards:short"}, "two values of reward.user have the name 'short'"),
        (
            {"user": "user_rewards:style", "user_weights": ("calm=1", "loud=2")},
            "user_weights names 'loud'; .* short, calm",
        ),
        (
            {"user": "user_rewards:style", "user_accuracy": ("OCR=no",)},
            "reward.user_accuracy names 'no'; on a first try",
        ),
        (
            {"user": "user_rewards:style", "user_accuracy": ("essay=calm",)},
            "names the problem type 'essay'; use one of mu",
        ),
    ],
)
def test_what_goes_wrong_is_said_before_the_first_step(settings, message):
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_a_name_that_comes_later_is_a_failure():
    judge = made(user="user_rewards:another_name")
    found = judged(judge, micro(record()), [["soon", "later"]])
    np.testing.assert_array_equal(found.rollout.scored, [[True, False]])
    assert "gave 'late', which it did not give when it was tried" in judge.user.failures.take_told()[0]
    judge.user.close()


def test_validation_and_evaluation_follow_it():
    judge = made(
        [record(), record("regression", "<answer>2</answer>")],
        user="user_rewards:iou,user_rewards:fails_where_asked",
        user_accuracy=("temporal grounding=iou", "regression=fails_where_asked"),
    )

    def question(kind, solution, *texts):
        one = record(kind, solution)
        replies = [reply("ordered", i, t, 5, True, one.solution, kind) for i, t in enumerate(texts)]
        return Question(one, None, tuple(replies), 3)

    asked = [
        question("temporal grounding", GOLD, told("", "[2, 3.9]"), told("", "[0, 2.2]")),
        question("numerical", "<answer>2</answer>", told("", "2")),
        question("regression", "<answer>2</answer>", told("", "2"), told("fail", "2")),
    ]
    first, second, third = with_own_accuracy(asked, judge.user)
    for mode in ("robust", "eval-reference"):
        assert [r.accuracy[mode] for r in first.replies] == pytest.approx([0.95, 0.05])
    assert second is asked[1]
    assert (third.cause, third.replies) == ("not scored", ())
    assert with_own_accuracy(asked, None) == asked
    judge.user.close()
