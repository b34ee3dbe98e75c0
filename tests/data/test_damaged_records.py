"""One damaged record costs only itself and is named; a file that is not what it seems says what it is."""

from __future__ import annotations

import json
import os

import media_files
import pytest
from PIL import Image

from jvr1.data.index import VisualTokens, build_index
from jvr1.data.index_summary import summarise_index
from jvr1.data.records import load_records, read_records
from jvr1.data.store import RecordStore
from jvr1.errors import UserError
from jvr1.model.media import PixelLimits, VideoSampling

GOOD = {
    "problem_id": 2, "problem": "which?", "data_type": "image", "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>", "process": "<think>a</think>",
    "path": "a.png", "data_source": "x",
}  # fmt: skip
HALF = "cut \ud83d"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("problem", HALF), ("options", ["A. red", HALF]), ("solution", HALF), ("process", HALF), ("path", "\udcb2.png"),
        ("path", ["a.png", "\udcb2.png"]), ("data_source", HALF), ("task", HALF), ("problem_id", HALF),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lines", [False, True])
def test_half_a_character_costs_its_record(tmp_path, capsys, field, value, lines):
    rows = [GOOD, {**GOOD, "problem_id": "x"} | {field: value}, GOOD]
    file = tmp_path / "a.json"
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    records = load_records(file)
    assert len(records) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"left out: {file}: record 1 (problem_id ")
    assert f"field {field!r} holds \\ud" in told
    assert told.count("\n") == 1
    assert len(RecordStore.write(tmp_path / "store", records)) == 2
    found, (fault,) = read_records(file)
    assert list(found) == [0, 2]
    assert json.dumps([fault.problem_id, fault.message], ensure_ascii=False).encode()


def test_what_the_program_does_not_read_may_hold_anything(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{**GOOD, "comment": HALF}]))
    assert len(load_records(file)) == 1


def test_whole_pairs_are_characters(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[" + json.dumps({**GOOD, "problem": "😀?"}) + "]")  # written as \ud83d\ude00
    assert load_records(file)[0].problem == "😀?"


def test_nothing_left_is_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{**GOOD, "problem": HALF}]))
    with pytest.raises(UserError, match=r"record 0 .*half of a character"):
        load_records(file)


@pytest.mark.parametrize("between", ["", "\n", " \n\n "])
@pytest.mark.parametrize("parts", [(2, 3), (0, 2), (2, 0, 1), (1, 1, 1)])
def test_arrays_one_after_the_other_are_all_read(tmp_path, between, parts):
    file = tmp_path / "a.json"
    numbers = iter(range(100))
    file.write_text(between.join(json.dumps([{**GOOD, "problem_id": next(numbers)} for _ in range(n)]) for n in parts))
    assert [r.problem_id for r in load_records(file)] == list(range(sum(parts)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}] {"b": 2}', "'{' follows the array that ends with record 0"),
        ('[{"a": 1}], [{"b": 2}]', "',' follows the array that ends with record 0"),
        (
            json.dumps({"data": [GOOD]}),
            "is one object that holds its records in 'data'; the file must be that list itself",
        ),
        (json.dumps({"version": 1, "rows": [GOOD, GOOD]}, indent=1), "holds its records in 'rows'"),
        (json.dumps({"data": []}), "field 'problem_id' must be a number or a string"),
    ],
)
def test_what_follows_or_wraps_is_said(tmp_path, text, words):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        load_records(file)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_number_of_thousands_of_digits_costs_its_record(tmp_path):
    digits = "1" * 5000
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD).replace(": 2,", f": {digits},") + "\n")
    found, (fault,) = read_records(file)
    assert list(found) == [0]
    assert fault.message == "field 'problem_id' must be a number or a string, got a number beyond all bounds"
    file.write_text(json.dumps({**GOOD, "unread": 1}).replace(": 1}", f": {digits}}}"))
    assert len(load_records(file)) == 1


def test_names_that_no_file_system_takes_cost_their_records(tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    (tmp_path / "file").write_text("x")
    paths = ["a.png", "n" * 300 + ".png", "loop.png", "file/a.png", "d/" * 3000 + "a.png", "none.png", "." + "/a.png"]
    (tmp_path / "r.json").write_text(json.dumps([{**GOOD, "path": path} for path in paths]))
    limits = PixelLimits(784, 100 * 784)
    measure = VisualTokens(VideoSampling(), limits, limits)
    entries = build_index(load_records(tmp_path / "r.json"), str(tmp_path), {}, measure, 1)
    assert [entry.cause for entry in entries] == [
        None, "unreadable", "unreadable", "missing", "unreadable", "missing", None,
    ]  # fmt: skip
    shown = str(summarise_index(entries))
    assert f"missing (such as record 3: {tmp_path / 'file/a.png'} does not exist)" in shown
    assert all(len(line) < 400 for line in shown.splitlines())


def test_a_question_without_end_costs_only_itself(tmp_path):
    """Three records of one picture, one of which takes longer to measure than a call may."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    rows = [{**GOOD, "problem": text} for text in ("which?", "x" * 10_000_000, "and which?")]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    entries = build_index(
        load_records(tmp_path / "r.json"), str(tmp_path), {}, media_files.hang_on_ten_megabytes, 1, timeout=1
    )
    assert [entry.cause for entry in entries] == [None, "timeout", None]
    assert [[probe.height for probe in entry.media] for entry in entries] == [[56], [56], [56]]
    assert "its text was not tokenised" in entries[1].error


@pytest.mark.parametrize("field", ["data_type", "problem_type", "path", "problem_id"])
def test_a_value_without_end_is_named_in_short(tmp_path, field):
    file = tmp_path / "a.json"
    value = "../" + "x" * 1_000_000
    other = {"solution": None} if field == "problem_id" else {}
    file.write_text(json.dumps([{**GOOD, field: value, **other}]))
    with pytest.raises(UserError, match=r"\.\./x+ \.\. x") as raised:
        load_records(file)
    assert len(str(raised.value)) < 500


def test_an_id_of_several_lines_stays_in_its_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{**GOOD, "problem_id": "a\nb\x1b[2J", "solution": None}]))
    with pytest.raises(UserError, match=r"\(problem_id 'a\\nb\\x1b\[2J'\)"):
        load_records(tmp_path / "a.json")
