"""What a log shows of a group: every completion with its rewards and advantage, the best first; texts as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import markdown
import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jvr1.data.batch import Row
from jvr1.data.records import Record
from jvr1.questions.replies import Question, reply
from jvr1.train.metrics import MetricsWriter
from jvr1.train.pictures import group_table, one_line, sample_lines
from jvr1.train.rollouts import Rollout
from jvr1.train.validation import answers_of, keep_answers, log_answers, validation_line

TEXTS = ["<think>a</think><answer>A</answer>", "<answer>B|C</answer>", "third", "fourth, shuffled"]


def record(number: int = 0, gold: str = "B|C") -> Record:
    options = ("A. red", "B. blue")
    return Record(number, "which?", "video", "multiple choice", options, f"<answer>{gold}</answer>", None, "v.mp4", "s")


def made(**fields: Any) -> Rollout:
    """One with these fields alone, in the form that is read."""
    one = object.__new__(Rollout)
    for name, value in fields.items():
        object.__setattr__(one, name, value)
    return one


def rollout(rows: tuple[Row, ...], own: bool = False) -> Any:
    """One of three ordered completions and a shuffled one a question; the second is the best."""
    scores = [SimpleNamespace(accuracy=a, format=f, answer=x) for a, f, x in ((0, 1, "A"), (1, 1, "B|C"), (0, 0, None))]
    scores.append(SimpleNamespace(accuracy=0, format=0, answer=None))
    count = len(rows)
    return made(
        rows=(3, 1),
        micro=SimpleNamespace(rows=rows),
        texts=[TEXTS] * count,
        host=SimpleNamespace(length=np.full((count, 4), 7), ended=np.tile([True, True, False, True], (count, 1))),
        judged=SimpleNamespace(
            rows=[scores] * count, names=("style",), scored=np.ones((count, 3), bool),
            values=np.tile(np.float32([[0.5], [0.25], [np.nan], [0]]), (count, 1, 1)) if own else None,
        ),
        result=SimpleNamespace(
            reward=np.tile([1.0, 2.0, 0.0], (count, 1)), advantage=np.tile([0.0, 1.25, -1.25], (count, 1))
        ),
    )  # fmt: skip


def test_a_group_is_shown_whole_the_best_first():
    columns, rows = group_table(rollout((Row(0, 0, record()),), own=True), 0)
    assert columns == [
        "frames", "reward", "advantage", "accuracy", "format", "style", "tokens", "answer", "completion"
    ]  # fmt: skip
    assert rows == [
        ["ordered", "2", "+1.25", "1", "1", "0.25", "7", "B|C", TEXTS[1]],
        ["ordered", "1", "+0", "0", "1", "0.5", "7", "A", TEXTS[0]],
        ["ordered", "0", "-1.25", "0", "0", "nan", "7, cut off", "", TEXTS[2]],
        ["shuffled", "", "", "0", "0", "0", "7", "", TEXTS[3]],
    ]


def test_a_sample_is_a_question_with_its_best_and_its_worst():
    rows = (Row(0, 0, None), Row(0, 1, record(1)), Row(0, 2, record(2), "corrupt: x"), Row(0, 3, record(3, "A")))
    lines = sample_lines(4, [rollout(rows)])
    assert lines == [
        "step 4 asks: which? A. red B. blue [right: B|C]",
        f"  reward 2, advantage +1.25: {TEXTS[1]}",
        "  reward 0, advantage -1.25: third",
    ]
    assert "[right: A]" in sample_lines(5, [rollout(rows)])[0]  # another question at the next step
    assert sample_lines(1, [rollout(rows[:1])]) == []


def test_long_texts_keep_both_ends():
    text = one_line("begin " + "x" * 500 + "\n\nend", 100)
    assert len(text) <= 100
    assert text.startswith("begin x")
    assert text.endswith("x end")
    assert one_line("a\n b", 100) == "a b"


@pytest.fixture
def board(tmp_path):
    """A writer, and what it wrote under a tag."""
    writer = MetricsWriter(tmp_path)

    def read(tag: str) -> str:
        writer.flush()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()

    return writer, read


def test_a_table_s_cells_are_texts_whatever_they_hold(board):
    writer, read = board
    cells = ["<think>a</think> | b", "*x* _y_ `z` [l](m) # ~ \\ & <b>", "two <i>\nlines"]
    writer.table(1, "t", "**asked**\n|x|", ["a", "b", "c"], [cells])
    page = markdown.markdown(read("t"), extensions=["markdown.extensions.tables"])  # as TensorBoard renders it
    shown = [cell.split("</td>")[0].removeprefix(">") for cell in page.split("<td")[1:]]
    escaped = [c.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ") for c in cells]
    assert shown == ["1", *escaped[:2]]
    assert f"<p><strong>1</strong> {escaped[2]}</p>" in page
    assert page.count("<th") == 1 + 3  # and thead
    assert "<strong>**asked**</strong>" in page
    assert page.count("<table>") == 1


def test_a_validation_in_a_line():
    metrics = {
        "bar/ordered": 0.5,
        "bar/format": 1.0,
        "order/ordered": 0.125,
        "order/shuffled": 0.25,
        "order/length": 9.0,
    }
    assert validation_line(3, metrics) == "step 3 valid, ordered (shuffled): bar 0.50  order 0.12 (0.25)"


def questions(right: bool) -> list[Question]:
    given = "B" if right else "A"
    found = []
    for number in range(30):
        one = record(number, "B")
        replies = [
            reply(variant, 0, f"<answer>{text}</answer>", 5, True, one.solution, one.problem_type, one.options)
            for variant, text in (("ordered", given), ("shuffled", "A"))
        ]
        found.append(Question(one, None, tuple(replies), number))
    return [*found, Question(record(30), "corrupt: x", (), 30)]


def test_a_validation_is_kept_and_some_of_it_shown(tmp_path, board):
    writer, read = board
    keep_answers(epath.Path(tmp_path), 7, questions(right=True), "robust")
    kept = [line for line in (tmp_path / "validation" / "step-7.jsonl").read_text().splitlines() if line]
    assert len(kept) == 30
    said = answers_of(questions(right=True)[3], "robust")
    assert said["replies"]["ordered"] == {"answer": "B", "accuracy": 1.0, "completion": "<answer>B</answer>"}
    assert said["replies"]["shuffled"]["accuracy"] == 0.0
    assert (said["number"], said["gold"], said["task"]) == (3, "B", "s")
    log_answers(writer, 7, questions(right=True), "robust")
    assert read("valid/answers").count(" | s | ") == 12
    assert "30 questions, 12 shown" in read("valid/answers")
