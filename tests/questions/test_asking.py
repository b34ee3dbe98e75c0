"""Questions answered and scored, without a model: a decoder that answers from a list."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import raw_config
from transformers import PreTrainedTokenizerBase

from jvr1.data.batch import Bucket, Clip, Microbatch, Row, build_example, empty_example, stack_examples
from jvr1.data.records import parse_record
from jvr1.errors import UserError
from jvr1.eval.report import as_table, percent
from jvr1.model.families import from_hf
from jvr1.questions.asking import IDENTITIES, VALIDATION, Asking, answer_questions, frame_streams, identity
from jvr1.questions.summary import TaskSummary, as_metrics, summarise
from jvr1.rl.judge import Judge
from jvr1.rl.user_reward import Outcome, UserReward
from jvr1.rl.user_values import UserValues
from jvr1.rollout.tasks import Done, Sampled, texts_of

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
    arrays = stack_examples([empty_example(bucket, CONFIG)] * len(rows))
    valid = np.asarray([r is not None and error is None for r, error in rows])
    return Microbatch(
        bucket, arrays._replace(valid=valid), tuple(Row(0, i, r, error, 10 + i) for i, (r, error) in enumerate(rows))
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
def questions():
    asked = []

    def decode(tasks):
        """The rows of each microbatch in turn, the last first."""
        for task, answers in zip(tasks, ANSWERS, strict=True):
            streams, bucket = 2 if task.micro.bucket.kind == "video" else 1, task.micro.bucket
            assert task.pairs.shape == (2, streams, bucket.steps, 2)
            asked.append((bucket.kind, task.rows))
            yield [Done(task, b, Sampled(*(x[b] for x in answers))) for b in (1, 0)]

    batches = list(answer_questions(MICROBATCHES, decode, Tokenizer(), VALIDATION))
    assert asked == [("video", (1, 1)), ("video", (1, 1)), ("image", (1,))]
    assert [len(batch) for batch in batches] == [2, 1, 1]
    return [question for batch in batches for question in batch[::-1]]


def test_texts_leave_the_end_token_out():
    done = sampled([[1, 2]])
    assert texts_of(Tokenizer(), done) == [[f"<think>.</think><answer>{x}</answer>" for x in "AB"]]
    cut = done._replace(ended=np.zeros((1, 2), bool))  # no end token came: all are text
    assert texts_of(Tokenizer(), cut)[0][0].endswith("<answer><end></answer>")


def test_every_question_is_answered_once_and_a_video_s_twice(questions):
    got = [
        (q.record.problem_id, r.variant, r.accuracy["robust"], r.format, r.answer) for q in questions for r in q.replies
    ]
    assert got == [
        (1, "ordered", 1.0, 1.0, "A"),
        (1, "shuffled", 0.0, 1.0, "B"),
        (2, "ordered", 0.0, 0.0, None),
        (2, "shuffled", 1.0, 1.0, "B"),
        (4, "ordered", 1.0, 1.0, "B"),
    ]
    assert [(q.record.problem_id, q.error, q.number) for q in questions] == [
        (1, None, 10), (2, None, 11), (3, "decode", 10), (4, None, 10),
    ]  # fmt: skip
    assert all(r.length == 2 and r.ended for q in questions for r in q.replies)


def test_summaries_by_task(questions):
    summaries = summarise(questions, "robust")
    assert list(summaries) == ["colour", "order"]
    assert summaries["order"] == TaskSummary(questions=2, ordered=0.5, shuffled=0.5, format=0.5, length=2.0, failed=1)
    assert summaries["colour"] == TaskSummary(1, 1.0, None, 1.0, 2.0, 0)
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
    def decode(tasks):
        return ([Done(task, b, Sampled(*(x[b] for x in ANSWERS[1]))) for b in (0, 1)] for task in tasks)

    (failed,) = answer_questions([MICROBATCHES[1]], decode, Tokenizer(), VALIDATION)
    assert summarise(failed, "robust")["order"] == TaskSummary(0, 0.0, None, 0.0, 0.0, 1)


def test_samples_and_variants_have_their_places():
    """Streams in the order asked for, a stream's samples side by side."""
    asked = []

    def decode(tasks):
        for task in tasks:
            asked.append((task.rows, task.arrays.number.tolist()))
            yield [Done(task, b, Sampled(*(x[0] for x in sampled([[1, 2, 3, 1, 1, 2]])))) for b in (0, 1)]

    (batch,) = answer_questions(
        [MICROBATCHES[0]], decode, Tokenizer(), Asking(("ordered", "single", "reversed"), 2, 1.0)
    )
    assert [(r.variant, r.sample, r.answer) for r in batch[0].replies] == [
        ("ordered", 0, "A"), ("ordered", 1, "B"), ("single", 0, None), ("single", 1, "A"), ("reversed", 0, "A"),
        ("reversed", 1, "B"),
    ]  # fmt: skip
    assert asked == [((2, 2, 2), [identity(q.record) for q in batch])]
    assert len({0, *asked[0][1]}) == 3
    assert all(0 <= n < IDENTITIES for n in asked[0][1])


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_variants_are_orders_of_the_frames_sent(frames):
    """What the model is shown, frame by frame; padded steps stay as they are."""
    clip = Clip(np.random.default_rng(0).integers(0, 256, (frames, 56, 56, 3), np.uint8), 1.0)
    steps = (frames + 1) // 2
    ids = np.asarray([CONFIG.vision_start_token, *[CONFIG.video_token] * 4 * steps, 5], np.int32)
    bucket = Bucket("video", 6, 1, 66, 4)
    example = build_example(ids, [clip], np.zeros(0, np.int32), bucket, CONFIG, np.random.default_rng(1))
    variants = ("ordered", "shuffled", "reversed", "single")
    made = frame_streams(example.visual.pair, example.visual.hw, 7, variants)
    assert made.shape == (4, 6, 2)
    assert made.dtype == np.int32
    shown = dict(zip(variants, made[:, :steps].reshape(4, -1).tolist(), strict=True))
    n = frames
    padded = list(range(n)) + [n - 1] * (n % 2)  # an odd last frame is paired with itself
    order = dict(enumerate(dict.fromkeys(shown["shuffled"])))
    assert shown["ordered"] == padded
    assert shown["reversed"] == [n - 1 - i for i in padded]
    assert shown["single"] == [n // 2] * len(padded)
    assert sorted(order.values()) == list(range(n))
    assert shown["shuffled"] == [order[i] for i in padded]
    assert n == 1 or shown["shuffled"] != padded
    np.testing.assert_array_equal(made[:, steps:], np.broadcast_to(example.visual.pair[steps:], (4, 6 - steps, 2)))
    np.testing.assert_array_equal(made, frame_streams(example.visual.pair, example.visual.hw, 7, variants))


def test_an_identity_is_the_question_s():
    first, same, other = (record(n, "video", "A", s) for n, s in ((1, "x"), (1, "y"), (2, "x")))
    assert identity(first) == identity(same) != identity(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("ordered", "backwards"),), "there is no variant 'backwards'; use ordered, shuffled, reversed, single"),
        ((("shuffled",),), "must hold 'ordered'"),
        ((("ordered", "ordered"),), "each name once"),
        ((("ordered",), 4, 0.0), "4 samples at temperature 0 would all be the same"),
        ((("ordered",), 0), "samples >= 1"),
        ((("ordered",), 1, -1.0), "temperature >= 0"),
        ((("ordered",), 1, 1.0, 0.0), "top_p"),
    ],
)
def test_what_cannot_be_asked(arguments, message):
    with pytest.raises(UserError) as error:
        Asking(*arguments)
    assert message in str(error.value)


class Texts(Tokenizer):
    """Answers with the texts of the options."""

    def decode(self, ids, skip_special_tokens):
        return "".join(f"<think>.</think><answer>{('', 'x', 'y')[i]}</answer>" for i in ids)


def test_options_are_known_by_their_texts_in_validation_and_training():
    def decode(tasks):
        for task in tasks:
            yield [Done(task, 0, Sampled(*(x[0] for x in ANSWERS[0])))]

    ((question,),) = answer_questions(MICROBATCHES[:1], decode, Texts(), VALIDATION)
    assert [r.accuracy["robust"] for r in question.replies] == [1, 0]
    assert [r.accuracy["eval-reference"] for r in question.replies] == [0, 0]
    done = sampled([[1, 2], [1, 2]])
    judged = Judge("robust")(MICROBATCHES[0], texts_of(Texts(), done), done, (1, 1))
    np.testing.assert_array_equal(judged.rollout.accuracy, [[1], [0]])


def test_a_judge_adds_accuracy_format_and_a_user_s_own():
    calls = []

    class Own(UserReward):
        spec = "own"

        def __init__(self):
            pass

        def __call__(self, rows):
            calls.extend((row.gold, row.problem_type) for row in rows)
            return [Outcome({"own": 3.0}) for _ in rows]

    user = UserValues([Own()], weight=0.1)
    user.try_out([MICROBATCHES[0].rows[0].record], "robust")
    calls.clear()
    judge = Judge("robust", format_weight=0.5, user=user)
    done = ANSWERS[0]
    judged = judge(MICROBATCHES[0], texts_of(Tokenizer(), done), done, (1, 1))
    np.testing.assert_allclose(judged.rollout.reward, [[1 + 0.5 + 0.3], [0.3]], rtol=1e-6)
    np.testing.assert_array_equal(judged.rollout.accuracy, [[1], [0]])
    np.testing.assert_array_equal(judged.rollout.shuffled_accuracy, [[0], [1]])
    np.testing.assert_array_equal(judged.values[:, 0], [[3], [3]])
    assert np.isnan(judged.values[:, 1]).all()
    assert len(calls) == 2  # the shuffled rows earn no reward
    assert judged.rollout.is_video.all()
    failed = judge(MICROBATCHES[1], texts_of(Tokenizer(), ANSWERS[1]), ANSWERS[1], (1, 1))
    assert not failed.rollout.valid.any()
    assert not failed.rollout.reward.any()
    assert not failed.rollout.shuffled_valid.any()
