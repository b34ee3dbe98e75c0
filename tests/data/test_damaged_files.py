"""Indexes, journals and answers that are not what was written: refused by name, or done again."""

from __future__ import annotations

import json
import shutil

import pytest
from cases import record
from damage import HARMS, flip, harmed
from etils import epath

from jvr1.data.index_file import IndexEntry, load_index, save_index
from jvr1.data.pipeline import FailureJournal
from jvr1.errors import UserError
from jvr1.eval.journal import AnswerJournal as Answers
from jvr1.eval.journal import claim
from jvr1.model.media import Probe
from jvr1.questions.replies import Question, Reply, from_line, to_line

SETTINGS = {"frames": 16, "pixels": [1, 2]}
ENTRIES = [IndexEntry(row, (Probe(240, 320, 100, 25.0),), 400 + row, "video", None) for row in range(64)]


def test_an_index_harmed_anywhere_is_refused_by_name(tmp_path):
    save_index(tmp_path / "kept" / "a.jsonl", ENTRIES, SETTINGS)
    assert load_index(tmp_path / "kept" / "a.jsonl", SETTINGS) == ENTRIES
    for file, harm, copy in harmed(tmp_path / "kept", ".", tmp_path / "copy"):
        with pytest.raises(
            UserError, match=rf"(there is no index )?.*{file}( is damaged| is no index of this version|; make it)"
        ) as error:
            load_index(copy / "a.jsonl", SETTINGS)
        assert "\n" not in str(error.value), harm


@pytest.mark.parametrize("left", [0, 19, 63])
def test_an_index_cut_at_a_line_s_end_is_refused(tmp_path, left):
    file = tmp_path / "a.jsonl"
    save_index(file, ENTRIES, SETTINGS)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: left + 1]))
    with pytest.raises(UserError, match=f"a.jsonl is damaged: {left} of 64 entries are in it; remove it"):
        load_index(file, SETTINGS)


def test_a_number_of_an_index_that_changed_is_noticed(tmp_path):
    file = tmp_path / "a.jsonl"
    save_index(file, ENTRIES, SETTINGS)
    file.write_text(file.read_text().replace("[3, [[240, 320", "[3, [[240, 321"))
    with pytest.raises(UserError, match="its entries are not those that were written"):
        load_index(file, SETTINGS)


def write_journal(folder) -> None:
    (folder / "journal").mkdir(parents=True)
    for step in (1, 2):
        rows = [[step, place, "truncated: x", f"id{place}"] for place in range(step)]
        (folder / "journal" / f"step-{step:07d}.process-0.json").write_text(json.dumps(rows))


FAILED = [(1, 0, "truncated: x"), (2, 0, "truncated: x"), (2, 1, "truncated: x")]


def test_a_journal_harmed_anywhere_is_refused_by_name_or_known_to_the_checkpoint(tmp_path):
    write_journal(tmp_path / "kept")
    assert FailureJournal(tmp_path / "kept", 0, 0.1).rows() == FAILED
    for file, harm, copy in harmed(tmp_path / "kept", ".", tmp_path / "copy"):
        if harm == "deleted":
            known = [list(row) for row in FAILED]  # as JSON gives it back
            assert FailureJournal(copy, 0, 0.1, known=known).rows() == FAILED
            continue
        with pytest.raises(UserError, match=rf"{file} is damaged; remove it") as error:
            FailureJournal(copy, 0, 0.1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{}", "[1]", "[[1, 2]]", '[["a", 1, "x", null]]', "null"])
def test_a_journal_of_another_form_is_refused_by_name(tmp_path, content):
    write_journal(tmp_path)
    (tmp_path / "journal" / "step-0000002.process-0.json").write_text(content)
    with pytest.raises(UserError, match=r"step-0000002\.process-0\.json is damaged"):
        FailureJournal(tmp_path, 0, 0.1)


def test_answers_that_are_damaged_are_asked_again(tmp_path):
    """The others are found to the letter."""
    reply = Reply("ordered", 0, "<think>ü</think><answer>A</answer>", "A", 1.0, 9, True, {"robust": 1.0})
    records = [record(n) for n in range(8)]
    questions = [Question(record, None, (reply,), n) for n, record in enumerate(records)]
    folder = epath.Path(tmp_path / "kept")
    claim(folder, SETTINGS, write=True)
    Answers(folder, 0).add(questions)
    for harm in (*HARMS.values(), flip):
        shutil.copytree(folder, tmp_path / "copy")
        copy = epath.Path(tmp_path / "copy")
        harm(tmp_path / "copy" / "answers.partial-0.jsonl")
        found = Answers(copy, 0).read()
        assert len(found) < 8
        assert all(from_line(line, records) == questions[n] for n, line in found.items())
        shutil.rmtree(copy)
    for line in (
        '{"number": 1}',
        '{"number": 1, "error": null, "replies": [{}]}',
        '{"number": "1", "error": null}',
        "7",
    ):
        (folder / "answers.partial-0.jsonl").write_text(line + "\n" + to_line(questions[3]) + "\n")
        assert list(Answers(folder, 0).read()) == [3]


@pytest.mark.parametrize("content", ["", "[1]", "null", "\x00{"])
def test_settings_of_answers_that_cannot_be_read_are_named(tmp_path, content):
    folder = epath.Path(tmp_path)
    claim(folder, SETTINGS, write=True)
    (folder / "answers.jsonl").write_text("")
    (folder / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"holds answers and no readable settings\.json; name another --out"):
        claim(folder, SETTINGS, write=True)
