"""Question files of other forms: fields under other names, Parquet, saved datasets; what is refused, in which words."""

import datetime
import hashlib
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from runs import REPOSITORY

from jvr1.data.index_file import file_stamp
from jvr1.data.inspection import inspect_records
from jvr1.data.records import load_records
from jvr1.data.rows import FieldMap, field_map, no_fields, raw_rows
from jvr1.errors import UserError

THEIRS = [
    {"qid": "a", "question": "Which?", "video": "a.mp4", "choices": ["A. red", "B. blue"], "answer": "B", "hard": True},
    {"qid": "b", "question": "When?", "video": "b.mp4", "choices": ["A. 1", "B. 2"], "answer": "A", "hard": False},
]
PAIRS = (
    "problem_id=qid", "problem=question", "path=video", "options=choices", "solution=answer", "data_type:video",
    "problem_type:multiple choice", "data_source:own",
)  # fmt: skip
FIELDS = field_map(PAIRS)


def facts(records):
    return [(r.problem_id, r.problem, r.path, r.options, r.solution, r.data_type, r.data_source) for r in records]


WANTED = [
    ("a", "Which?", "a.mp4", ("A. red", "B. blue"), "<answer>B</answer>", "video", "own"),
    ("b", "When?", "b.mp4", ("A. 1", "B. 2"), "<answer>A</answer>", "video", "own"),
]


def as_jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in THEIRS))
    return folder / "a.jsonl"


def as_parquet(folder):
    parquet.write_table(pa.Table.from_pylist(THEIRS), folder / "a.parquet")
    return folder / "a.parquet"


def as_folder_of_parquet(folder):
    (folder / "set").mkdir()
    for number, one in enumerate(THEIRS):
        parquet.write_table(pa.Table.from_pylist([one]), folder / "set" / f"train-0000{number}.parquet")
    (folder / "set" / "README.md").write_text("a card")
    return folder / "set"


def as_saved_dataset(folder):
    """What `datasets` writes by save_to_disk: Arrow streams and their description."""
    (folder / "saved").mkdir()
    for number, one in enumerate(THEIRS):
        table = pa.Table.from_pylist([one])
        with ipc.new_stream(str(folder / "saved" / f"data-0000{number}-of-00002.arrow"), table.schema) as stream:
            stream.write_table(table)
    parts = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "saved" / "state.json").write_text(json.dumps({"_data_files": parts}))
    (folder / "saved" / "cache-1a2b.arrow").write_bytes((folder / "saved" / "data-00000-of-00002.arrow").read_bytes())
    return folder / "saved"


def as_folder_named_like_a_file(folder):
    return as_folder_of_parquet(folder).rename(folder / "set.parquet")


@pytest.mark.parametrize(
    "write", [as_jsonl, as_parquet, as_folder_of_parquet, as_saved_dataset, as_folder_named_like_a_file]
)
def test_files_are_read_under_their_own_names(tmp_path, write):
    file = write(tmp_path)
    records = load_records(file, FIELDS)
    assert facts(records) == WANTED
    assert [record.further for record in records] == [{"hard": True}, {"hard": False}]
    assert inspect_records(dict(enumerate(records))) == []
    whole = b"".join(
        (b"" if part == file else part.name.encode() + b"\0") + part.read_bytes()
        for part in (sorted(file.iterdir()) if file.is_dir() else [file])
        if not part.name.startswith("cache-")
    )
    assert file_stamp(file)["sha256"] == hashlib.sha256(whole).hexdigest()


def test_a_folder_s_stamp_is_of_all_its_files(tmp_path):
    folder = as_folder_of_parquet(tmp_path)
    stamps = [file_stamp(folder)]
    (folder / "README.md").write_text("another")
    stamps.append(file_stamp(folder))
    (folder / "README.md").rename(folder / "card.md")
    stamps.append(file_stamp(folder))
    assert len({stamp["sha256"] for stamp in stamps}) == 3


def test_what_a_renamed_field_becomes():
    fields = field_map(["solution=gold", "process=why", "options=choices", "problem=q"])
    raw = {"gold": 12, "why": "it is", "choices": [1, "B. two"], "q": None}
    assert fields(raw, 5) == {
        "problem_id": 5, "solution": "<answer>12</answer>", "process": "<think>it is</think>",
        "options": ["1", "B. two"],
    }  # fmt: skip
    tagged = {"gold": "so <answer>B</answer>", "why": "<think>x</think>"}
    assert fields(tagged, 0) == {"problem_id": 0, "solution": tagged["gold"], "process": tagged["why"]}
    ours = {"problem_id": 3, "solution": "B", "process": "x"}
    assert fields(ours, 0) == ours  # a file in our form beside it
    given = field_map(["data_type:video", "path=file"])
    assert given({"data_type": "image"}, 0)["data_type"] == "image"
    assert given({"data_type": None}, 0)["data_type"] == "video"
    assert [given(raw, 0)["path"] for raw in ({"path": "a", "file": "b"}, {"path": "a", "file": None})] == ["b", "a"]
    assert FieldMap()(ours, 0) is ours
    assert (FieldMap().told, field_map(["path=video"]).told) == ({}, {"fields": [("path", "video")]})


@pytest.mark.parametrize("pair", ["video", "path=", "=video", "film=video", "colour:red", 3])
def test_what_is_no_field(pair):
    words = no_fields(("path=video", pair))
    assert words
    assert repr(pair) in words
    if isinstance(pair, str):
        with pytest.raises(UserError, match=r"data\.fields holds"):
            field_map([pair])
    assert no_fields(PAIRS) is None


def test_media_inside_a_table(tmp_path):
    """Columns of images have bytes and paths: the paths are taken, without the bytes; where there are none, refused."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, path in (("named", "a.png"), ("inside", None)):
        column = pa.array([{"bytes": b"\x89PNG", "path": path}], kind)
        day = pa.array([datetime.date(2026, 11, 27)])
        table = pa.table({"image": column, "blob": pa.array([b"x"]), "day": day, "none": pa.array([None], pa.string())})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert list(raw_rows(tmp_path / "named.parquet")) == [{"image": "a.png", "day": "2026-11-27"}]
    with pytest.raises(UserError, match="column 'image' holds the media themselves; write them to files"):
        list(raw_rows(tmp_path / "inside.parquet", field_map(["path=image"])))
    assert list(raw_rows(tmp_path / "inside.parquet")) == [{"day": "2026-11-27"}]  # nothing reads the column


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_several_media_inside_a_table(tmp_path, suffix):
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    media = [[{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b.png"}], [], None]
    table = pa.table({"images": pa.array(media, kind), "number": [1, 2, 3]})
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, file)
    else:
        with ipc.new_stream(str(file), table.schema) as stream:
            stream.write_table(table)
    assert list(raw_rows(file, field_map(["path=images"]))) == [
        {"problem_id": 0, "path": ["a.png", "b.png"], "number": 1},
        {"problem_id": 1, "path": [], "number": 2},
        {"problem_id": 2, "number": 3},
    ]


def test_a_record_that_holds_a_list_of_objects_is_one_where_others_follow(tmp_path):
    records = [{"question": f"Which {n}?", "steps": [{"text": "look"}]} for n in range(2)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    found = list(raw_rows(tmp_path / "a.jsonl", field_map(["problem=question"])))
    assert found == [{"problem_id": n, "problem": f"Which {n}?", "steps": [{"text": "look"}]} for n in range(2)]
    (tmp_path / "wrapped.jsonl").write_text(json.dumps({"data": records}) + "\n\n")
    with pytest.raises(UserError, match="is one object that holds its records in 'data'"):
        list(raw_rows(tmp_path / "wrapped.jsonl"))


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "a.parquet").write_text("not a table")
    (tmp_path / "several").mkdir()
    for split in ("train", "test"):
        (tmp_path / "several" / split).mkdir()
    (tmp_path / "several" / "dataset_dict.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for folder, parts in (("shards", ("easy-00000-of-00001", "hard-00000-of-00001")), ("plain", ("train", "test_1"))):
        (tmp_path / folder).mkdir()
        for part in parts:
            parquet.write_table(pa.Table.from_pylist(THEIRS), tmp_path / folder / f"{part}.parquet")
    (tmp_path / "stateless").mkdir()
    (tmp_path / "stateless" / "state.json").write_text("[]")
    for name, words in (
        ("a.parquet", "a.parquet cannot be read: "),
        ("none.parquet", "none.parquet does not exist"),
        ("several", "several holds the splits test, train; name one of these folders"),
        ("empty", "empty is a folder; name a .json or .jsonl file"),
        ("shards", "shards holds files of the splits easy, hard; name one file"),
        ("plain", "plain holds files of the splits test, train; name one file"),
        ("stateless", "state.json is damaged"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load_records(tmp_path / name)
        assert "\n" not in str(error.value)


def test_without_pyarrow_a_line_says_what_to_install(tmp_path):
    """JSON needs none of it."""
    as_parquet(tmp_path)
    as_jsonl(tmp_path)
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from jvr1.data.rows import raw_rows\nfrom jvr1.errors import run_main\n"
        "print(len(list(raw_rows('a.jsonl'))))\nrun_main(lambda: list(raw_rows('a.parquet')))"
    )
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {"PYTHONPATH": str(REPOSITORY)}}
    done = subprocess.run([sys.executable, "-c", code], **how, check=False)
    assert (done.returncode, done.stdout) == (2, "2\n")
    assert done.stderr == "error: tables are read by pyarrow, which is not there: pip install 'jvr1[tables]'\n"
