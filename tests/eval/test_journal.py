"""An evaluation's journal: torn lines, several processes, settings that changed."""

from __future__ import annotations

import json

import pytest
from etils import epath

from jvr1.data.records import parse_record
from jvr1.errors import UserError
from jvr1.eval.journal import ANSWERS, AnswerJournal, claim, write_whole
from jvr1.questions.replies import Question, Reply, from_line

RAW = {
    "problem": "?", "data_type": "video", "problem_type": "numerical", "solution": "<answer>1</answer>",
    "path": "a.mp4",
}  # fmt: skip
RECORDS = [parse_record({"problem_id": number, **RAW}) for number in range(9)]


def question(number: int, text: str = "ünïcode \u2028 猫\nline") -> Question:
    replies = (Reply("ordered", 0, text, "A", 1.0, 7, True, {"robust": 0.1 + 0.2}),)
    return Question(RECORDS[number], None, replies, number)


def test_what_was_written_comes_back(tmp_path):
    failed = Question(RECORDS[3], "missing: x", number=3)
    AnswerJournal(epath.Path(tmp_path), 0).add([question(1), failed])
    AnswerJournal(epath.Path(tmp_path), 1).add([question(2)])
    journal = AnswerJournal(epath.Path(tmp_path), 0)
    journal.add([])
    found = {n: from_line(line, RECORDS) for n, line in journal.read().items()}
    assert found == {1: question(1), 2: question(2), 3: failed}
    journal.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_torn_line_is_no_answer_and_swallows_none(tmp_path, cut):
    AnswerJournal(epath.Path(tmp_path), 0).add([question(0), question(1)])
    file = tmp_path / "answers.partial-0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = AnswerJournal(epath.Path(tmp_path), 0)
    assert set(again.read()) == {0}
    again.add([question(1), question(2)])
    again.add([question(3)])
    found = AnswerJournal(epath.Path(tmp_path), 0).read()
    assert {n: from_line(line, RECORDS) for n, line in found.items()} == {n: question(n) for n in range(4)}


def test_a_finished_evaluation_is_found_again(tmp_path):
    lines = [{"number": 4, "error": None, "replies": [], "benchmark": "x"}, {"number": None, "error": "malformed"}]
    (tmp_path / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(AnswerJournal(epath.Path(tmp_path), 0).read()) == {4}


def test_answers_to_other_settings_are_refused_and_named(tmp_path):
    folder = epath.Path(tmp_path) / "out"
    settings = {"model": "a", "frames": (1, 2), "seed": 0, "x": 1, "y": 2}
    claim(folder, settings, write=False)
    assert not folder.exists()
    claim(folder, settings | {"model": "wrong"}, write=True)
    claim(folder, settings, write=True)  # nothing was answered: the first try stands in nobody's way
    AnswerJournal(folder, 0).add([question(0)])
    claim(folder, settings, write=True)
    with pytest.raises(UserError, match=r'other settings \(model: "a" -> "b"; z: null -> 3\); name another --out'):
        claim(folder, settings | {"model": "b", "z": 3}, write=False)
    with pytest.raises(UserError, match="and 1 more"):
        claim(folder, {"model": "b", "frames": 0, "seed": 1, "x": 2, "y": 2}, write=True)
    for damage in ("write", "unlink"):
        (folder / "settings.json").write_text("{") if damage == "write" else (folder / "settings.json").unlink()
        with pytest.raises(UserError, match=r"no readable settings\.json"):
            claim(folder, settings, write=True)


def test_files_appear_whole(tmp_path):
    write_whole(epath.Path(tmp_path) / "a.txt", "é")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "é"
