"""The check of a question file: all that is found, as text and as JSON, with media and without, under other names."""

import json

import pytest
from media_files import clip
from PIL import Image
from runs import REPOSITORY

from jvr1.commands import check_data, index, prepare_data
from jvr1.errors import UserError
from jvr1.problems.kinds import KINDS

GOOD = {
    "problem_id": 0, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>", "path": "a.mp4",
}  # fmt: skip
BAD = (
    {"solution": "A"}, {"solution": "<answer>C</answer>"}, {"options": ["red", "blue"]}, {"process": "so red"},
    {"problem_type": "numerical", "solution": "<answer>twelve</answer>"}, {"problem_id": 0}, {"path": "none.mp4"},
    {"path": "a.png"}, {"start": 90}, {"start": 0.2, "end": 60}, {"path": None}, {"problem_type": "quiz"},
)  # fmt: skip
FOUND = [
    (1, "solution", "stands without <answer> tags"), (2, "solution", "names a letter that is no option"),
    (3, "options", "have no letters"), (4, "process", "stands without <think> tags"),
    (5, "solution", "is not one number"), (6, "problem_id", "is that of an earlier record"),
    (7, "path", "cannot be used"), (8, "path", "cannot be used"), (9, "start", "leaves no frame of the video"),
    (10, "end", "is after the video's end"), (11, "path", "cannot be read"), (12, "problem_type", "cannot be read"),
]  # fmt: skip
FIXED = (
    "<answer>B</answer>", "that `options` have", "write them as", "<think>", "write one number", "number the records",
    "put the file there", "set data_type to what", "are seconds of", "leave it out", "data.fields", "data.fields",
)  # fmt: skip
OF_MEDIA = {7, 8, 9, 10}


TINY = f"{REPOSITORY / 'configs' / 'tiny.py'}:rl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    clip(folder / "a.mp4", 12, 56, 56, 4)
    Image.new("RGB", (56, 56)).save(folder / "a.png")
    records = [GOOD, *(GOOD | {"problem_id": n} | bad for n, bad in enumerate(BAD, 1))]
    (folder / "own.json").write_text(json.dumps(records))
    (folder / "good.jsonl").write_text(json.dumps(GOOD))
    return folder


def found(out):
    """Findings but that records lack a chain of thought, which only one has."""
    lacking = "is absent, where other records have one"
    return [(one["row"], one["field"], one["what"]) for one in json.loads(out)["findings"] if one["what"] != lacking]


def test_all_that_is_wrong_is_named_with_its_fix(folder, capsys):
    assert check_data.main([f"{folder}/own.json", f"--root={folder}", "--workers=1", "--json"]) == 1
    out = capsys.readouterr().out
    assert found(out) == FOUND
    told = json.loads(out)
    assert (told["records"], told["unusable"], told["doubtful"]) == (13, 5, 5)
    fixes = {one["row"]: one["fix"] for one in told["findings"] if not one["what"].startswith("is absent")}
    for row, words in enumerate(FIXED, 1):
        assert words in fixes[row]


def test_without_media_what_the_records_say(folder, capsys):
    assert check_data.main([f"{folder}/own.json", "--all"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}/own.json: 13 records, 2 cannot be used, 5 are doubtful"
    named = {int(line.split()[1].rstrip(",")) for line in lines if line.startswith("record ") and "absent" not in line}
    assert {row for row, *_ in FOUND} - named == OF_MEDIA
    assert "record 2 (problem_id 2), solution: names a letter that is no option" in lines
    assert check_data.main([f"{folder}/good.jsonl"]) == 0
    assert capsys.readouterr().out == f"{folder}/good.jsonl: 1 records, 0 cannot be used, 0 are doubtful\n"


def test_a_config_measures_what_its_run_would(folder, folder_of_tokenizer, capsys, tmp_path):
    """One of two questions is longer than the buckets of configs/tiny.py; fitted ones hold it, and no file is probed
    again."""
    records = [GOOD, GOOD | {"problem_id": 1, "problem": "Which colour came first? " * 9}]
    (folder / "two.json").write_text(json.dumps(records))
    how = [f"--root={folder}", f"--config={REPOSITORY / 'configs' / 'tiny.py'}:rl", f"--model={folder_of_tokenizer}"]
    how += [f"--out={tmp_path}", "--workers=1"]
    assert check_data.main([f"{folder}/two.json", *how]) == 1
    out = capsys.readouterr().out
    assert "1 of kind video need" in out
    assert "one bucket more would hold those of kind video: ('video', 4, 1, " in out
    assert " keeps all of kind video" in out
    assert out.endswith(f"runs take it with --config.data.index={tmp_path}\n")
    (folder / "a.mp4").rename(folder / "b.mp4")
    try:
        assert check_data.main([f"{folder}/two.json", *how, "--config.data.buckets=auto"]) == 0
        assert "2 kept, 0 dropped" in capsys.readouterr().out
        index.main([f"{folder}/two.json", *how, "--config.data.video.frames=4", "--config.data.buckets=auto"])
        assert "('video', 2, 1, " in capsys.readouterr().out
    finally:
        (folder / "b.mp4").rename(folder / "a.mp4")
    assert len(list(tmp_path.glob("two-media-*.jsonl"))) == 1
    assert len(list(tmp_path.glob("two-*.jsonl"))) == 3


def test_files_under_other_names(folder, capsys, tmp_path):
    """Of fields, and of files: `prepare_data` takes any."""
    own = {"id": 7, "question": "Which?", "video": "a.mp4", "answer": "B", "choices": ["A. red", "B. blue"]}
    (folder / "theirs.jsonl").write_text(json.dumps(own))
    names = ("problem=question", "path=video", "solution=answer", "options=choices", "problem_id=id")
    fields = [f"--field={one}" for one in (*names, "data_type:video", "problem_type:multiple choice")]
    assert check_data.main([f"{folder}/theirs.jsonl", f"--root={folder}", "--workers=1", *fields]) == 0
    prepare_data.main([str(folder), "theirs.jsonl", "--skip-index", *fields])
    assert "theirs.jsonl: 1 records, 1 with all their media" in capsys.readouterr().out


def test_questions_of_a_config_s_own_kinds_are_prepared(folder, capsys):
    (folder / "shades.jsonl").write_text(json.dumps(GOOD | {"problem_type": "shade"}))
    kinds = [f"--config={TINY}", "--config.data.kinds=('train.own_kind:SHADE',)"]  # tests/ is on the path
    try:
        prepare_data.main([str(folder), "shades.jsonl", "--skip-index", *kinds])
        assert "shades.jsonl: 1 records, 1 with all their media" in capsys.readouterr().out
    finally:
        KINDS.pop("shade", None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "none.json does not exist"),
        (["good.jsonl", "--config=x.py"], "name the folder their paths start from with --root"),
        (
            ["good.jsonl", f"--config={TINY}", "--root=.", "--model=.", "--config.data.max_dropped=2"],
            "data.max_dropped is 2.0; it must be between 0 and 1",
        ),
        (["good.jsonl", "--config.data.fps=1"], "unrecognized arguments: --config.data.fps=1"),
        (["good.jsonl", "--field=film=path"], "fields of a record are problem_id, problem"),
    ],
)
def test_mistakes(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=words):
        check_data.main(arguments)
