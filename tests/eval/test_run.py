"""Questions answered and scored, without a model: a decoder that answers from a list."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import raw_config
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Bucket, Microbatch, Row, empty_example, stack
from jvr1.data.records import parse_record
from jvr1.eval.report import as_table, percent
from jvr1.eval.run import Judge, Sampled, Summary, answer_questions, as_json, as_metrics, summarise, texts_of
from jvr1.model.config import from_hf
from jvr1.rl.user_reward import UserReward

VIDEO, IMAGE = Bucket("video", 4, 1, 66, 4), Bucket("image", 1, 1, 54, 4)
CONFIG = from_hf(raw_config())
WORDS = ["<end>", "A", "B", "wrong"]


class Tokenizer(PreTrainedTokenizerBase):
    """Ids are places in WORDS."""

    def __init__(self):
        pass

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(f"<think>.</think><answer>{WORDS[i]}</answer>" if i < 3 else "wrong" for i in ids)


def record(number: int, kind: str, answer: str, source: str):
    raw = {
        "problem_id": number, "problem": "?", "data_type": kind, "problem_type": "multiple choice",
        "options": ["A. x", "B. y"], "solution": f"<answer>{answer}</answer>", "path": "./a", "data_source": source,
    }  # fmt: skip
    return parse_record(raw)


def micro(bucket: Bucket, *rows: tuple) -> Microbatch:
    """Rows of (record, error)."""
    arrays = stack([empty_example(bucket, CONFIG)] * len(rows))
    valid = np.asarray([r is not None and error is None for r, error in rows])
    return Microbatch(
        bucket, arrays._replace(valid=valid), tuple(Row(0, i, r, error) for i, (r, error) in enumerate(rows))
    )


def sampled(ids: list[list[int]]) -> Sampled:
    """One token and the end a row; ids [B,R]."""
    shape = (len(ids), len(ids[0]))
    tokens = np.stack([np.asarray(ids), np.zeros(shape)], -1).astype(np.int32)
    return Sampled(tokens, np.full(shape, 2, np.int32), np.ones(shape, bool), np.zeros((*shape, 2), np.float32))


MICROBATCHES = [
    micro(VIDEO, (record(1, "video", "A", "order"), None), (record(2, "video", "B", "order"), None)),
    micro(VIDEO, (record(3, "video", "A", "order"), "decode"), (None, None)),
    micro(IMAGE, (record(4, "image", "B", "colour"), None), (None, None)),
]
ANSWERS = [sampled([[1, 2], [3, 2]]), sampled([[1, 1], [1, 1]]), sampled([[2], [1]])]


@pytest.fixture
def answers():
    asked = []

    def decode(arrays, bucket, rows):
        asked.append((bucket.kind, tuple(rows)))
        return ANSWERS[len(asked) - 1]

    found = list(answer_questions(MICROBATCHES, decode, Judge("robust"), Tokenizer()))
    assert asked == [("video", (1, 1)), ("video", (1, 1)), ("image", (1,))]
    return found


def test_texts_leave_the_end_token_out():
    done = sampled([[1, 2]])
    assert texts_of(Tokenizer(), done) == [[f"<think>.</think><answer>{x}</answer>" for x in "AB"]]
    cut = done._replace(ended=np.zeros((1, 2), bool))  # no end token came: all are text
    assert texts_of(Tokenizer(), cut)[0][0].endswith("<answer><end></answer>")


def test_every_question_is_answered_once_and_a_video_s_twice(answers):
    got = [(a.problem_id, a.variant, a.accuracy, a.format, a.answer, a.error) for a in answers]
    assert got == [
        (1, "ordered", 1.0, 1.0, "A", None),
        (1, "shuffled", 0.0, 1.0, "B", None),
        (2, "ordered", 0.0, 0.0, None, None),
        (2, "shuffled", 1.0, 1.0, "B", None),
        (3, "ordered", 0.0, 0.0, None, "decode"),
        (4, "ordered", 1.0, 1.0, "B", None),
    ]
    assert all(a.length == 2 and a.ended for a in answers if a.error is None)
    assert as_json(answers[0])["task"] == "order"


def test_summaries_by_task(answers):
    summaries = summarise(answers)
    assert list(summaries) == ["colour", "order"]
    assert summaries["order"] == Summary(questions=2, ordered=0.5, shuffled=0.5, format=0.5, length=2.0, failed=1)
    assert summaries["colour"] == Summary(1, 1.0, None, 1.0, 2.0, 0)
    metrics = as_metrics(summaries)
    assert metrics["order/ordered"] == 0.5
    assert "colour/shuffled" not in metrics
    assert as_table(summaries).splitlines() == [
        "| task | questions | ordered | shuffled | format | length | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| colour | 1 | 100.0 |  | 100.0 | 2.0 | 0 |",
        "| order | 2 | 50.0 | 50.0 | 50.0 | 2.0 | 1 |",
    ]
    assert percent(1 / 3) == "33.3"


def test_a_task_whose_media_all_failed_has_no_accuracy_to_divide():
    only = summarise(list(answer_questions([MICROBATCHES[1]], lambda *_: ANSWERS[1], Judge("robust"), Tokenizer())))
    assert only["order"] == Summary(0, 0.0, None, 0.0, 0.0, 1)


def test_a_judge_adds_accuracy_format_and_a_user_s_own():
    calls = []

    class Own(UserReward):
        def __init__(self):
            pass

        def __call__(self, completion, gold, problem_type):
            calls.append((gold, problem_type))
            return 3.0

    judge = Judge("robust", format_weight=0.5, user=Own(), user_weight=0.1)
    done = ANSWERS[0]
    judged = judge(MICROBATCHES[0], texts_of(Tokenizer(), done), done, (1, 1))
    np.testing.assert_allclose(judged.rollout.reward, [[1 + 0.5 + 0.3], [0.3]], rtol=1e-6)
    np.testing.assert_array_equal(judged.rollout.accuracy, [[1], [0]])
    np.testing.assert_array_equal(judged.rollout.shuffled_accuracy, [[0], [1]])
    np.testing.assert_array_equal(judged.user, [[3], [3]])
    assert len(calls) == 2  # the shuffled rows earn no reward
    assert judged.rollout.is_video.all()
    failed = judge(MICROBATCHES[1], texts_of(Tokenizer(), ANSWERS[1]), ANSWERS[1], (1, 1))
    assert not failed.rollout.valid.any()
    assert not failed.rollout.reward.any()
    assert not failed.rollout.shuffled_valid.any()
