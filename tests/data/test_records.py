"""Record files: what is read, what is refused and in which words, and media in buckets."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jvr1.data import cache, json_file, records
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.media import MediaError
from jvr1.data.records import Record, load_records, media_path, parse_record
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

GOOD = {
    "problem_id": 2,
    "problem": "What appears on the screen in Russian?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. A prompt", "B. A countdown"],
    "process": "<think>...</think>",
    "solution": "<answer>A</answer>",
    "path": "./LLaVA-Video-178K/some/clip.mp4",
    "data_source": "LLaVA-Video-178K/some",
}
EXPECTED = Record(
    2,
    "What appears on the screen in Russian?",
    "video",
    "multiple choice",
    ("A. A prompt", "B. A countdown"),
    "<answer>A</answer>",
    "<think>...</think>",
    "./LLaVA-Video-178K/some/clip.mp4",
    "LLaVA-Video-178K/some",
)


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_array(tmp_path, indent, encoding):
    file = write(tmp_path / "a.json", "\n " + json.dumps([GOOD, GOOD], indent=indent), encoding)
    assert load_records(file) == [EXPECTED, EXPECTED]
    assert load_records(str(file)) == [EXPECTED, EXPECTED]


def test_jsonl_with_blank_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", f"\n{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\r\n")
    assert load_records(file) == [EXPECTED, EXPECTED]


@given(
    items=st.lists(st.recursive(st.integers() | st.text() | st.none(), st.lists, max_leaves=6), max_size=6),
    chunk=st.integers(1, 9),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_streamed_array_equals_json_loads(tmp_path_factory, items, chunk, indent, ascii_only):
    """Whatever the chunks, in which an item, an escape or a number may be cut."""
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    file = write(tmp_path_factory.mktemp("a") / "a.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "_CHUNK", chunk)
        assert list(json_file.json_values(file)) == items


def test_optional_fields():
    record = parse_record(
        {k: GOOD[k] for k in ("problem_id", "problem", "data_type", "problem_type", "solution", "path")}
        | {"options": None, "process": ""}
    )
    assert (record.options, record.process, record.data_source) == ((), None, "")


def test_text_and_several_images():
    text = parse_record({**GOOD, "data_type": "text", "path": None})
    assert (text.path, text.paths) == (None, ())
    several = parse_record({**GOOD, "data_type": "image", "path": ["a.png", "b.png"]})
    assert several.path == several.paths == ("a.png", "b.png")
    assert parse_record(GOOD).paths == ("./LLaVA-Video-178K/some/clip.mp4",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem_id": None}, "field 'problem_id' must be a number or a string, got nothing"),
        ({"problem_id": True}, "field 'problem_id' must be a number or a string, got a boolean"),
        ({"problem": ""}, "field 'problem' must be a non-empty string, got an empty string"),
        ({"problem": ["x"]}, "field 'problem' must be a non-empty string, got a list"),
        ({"data_type": "audio"}, "field 'data_type' must be one of image, video, text; got 'audio'"),
        ({"data_type": None}, "field 'data_type' must be one of image, video, text; got nothing"),
        ({"problem_type": "essay"}, "field 'problem_type' must be one of multiple choice, numerical, OCR, free-form"),
        ({"options": "A"}, "field 'options' must be a list of strings or null"),
        ({"options": ["A", 3]}, "field 'options' must be a list of strings or null"),
        ({"solution": None}, "field 'solution' must be a non-empty string, got nothing"),
        ({"solution": 3}, "field 'solution' must be a non-empty string, got a number"),
        ({"process": 3}, "field 'process' must be a string or null, got a number"),
        ({"data_source": {}}, "field 'data_source' must be a string or null, got an object"),
        ({"path": None}, "field 'path' must be a path relative to the media root, got nothing"),
        ({"path": ""}, "field 'path' '' is no file name"),
        ({"path": "./"}, "field 'path' './' is no file name"),
        ({"path": "a\0b"}, "is no file name"),
        ({"path": "/etc/passwd"}, "field 'path' '/etc/passwd' is absolute"),
        ({"path": "C:/clip.mp4"}, "is absolute"),
        ({"path": "gs://bucket/clip.mp4"}, "is absolute"),
        ({"path": "../clip.mp4"}, "field 'path' '../clip.mp4' leaves the media root"),
        ({"path": "a/../../clip.mp4"}, "leaves the media root"),
        ({"path": ".."}, "leaves the media root"),
        ({"path": "a\\..\\b"}, "has a backslash"),
        ({"path": ["a.mp4"]}, "a list of paths for images only"),
        ({"data_type": "image", "path": []}, "a list of paths for images only, and not an empty one"),
        ({"data_type": "image", "path": ["a.png", "../b.png"]}, "field 'path' '../b.png' leaves the media root"),
        ({"data_type": "text"}, "field 'path' must be absent for data_type 'text'"),
    ],
)
def test_a_faulty_record_is_named_with_its_field(tmp_path, change, words):
    file = write(tmp_path / "a.json", json.dumps([GOOD, {**GOOD, "problem_id": 7, **change}]))
    with pytest.raises(UserError) as raised:
        load_records(file)
    message = str(raised.value)
    assert message.startswith(f"{file}: record 1")
    assert words in message
    assert "\n" not in message


def test_the_first_few_problems_are_shown_one_a_line(tmp_path):
    file = write(tmp_path / "a.jsonl", "\n".join(json.dumps({**GOOD, "path": "../x"}) for _ in range(9)) + "\n[1]")
    with pytest.raises(UserError) as raised:
        load_records(file)
    lines = str(raised.value).split("\n")
    assert [line.split(": ")[1] for line in lines[:5]] == [f"record {n} (problem_id 2)" for n in range(5)]
    assert lines[5:] == [f"{file}: 5 more faulty records"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no records"),
        ("[]", "holds no records"),
        ("problem,solution", "neither a JSON array nor JSONL: it begins with 'p'"),
        ('[{"problem": 1}, {"pro', "record 1 is not valid JSON"),
        ('[{"problem": 1} {"problem": 1}]', "record 0 is not valid JSON: expected ',' or ']'"),
        ('[{"problem": 1},', "record 1 is not valid JSON: the file ends too early"),
        ('{"problem": 1}\n{"problem"\n', "line 2 is not a JSON object"),
        ("[3]", "record 0: is a number where an object with fields is expected"),
        ("[" * 100_000, "record 0 is not valid JSON"),
    ],
)
def test_files_that_are_no_records(tmp_path, text, words):
    file = write(tmp_path / "a.json", text)
    with pytest.raises(UserError, match=r"a\.json") as raised:
        load_records(file)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_records(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        load_records(tmp_path)
    (tmp_path / "a.json").write_bytes(b'[{"problem": "\xff\xfe"}]')
    with pytest.raises(UserError, match="not UTF-8"):
        load_records(tmp_path / "a.json")


def test_repeated_strings_are_kept_once(tmp_path):
    file = write(tmp_path / "a.json", json.dumps([GOOD] * 3))
    first, *others = load_records(file)
    assert all(o.data_source is first.data_source and o.problem_type is first.problem_type for o in others)
    assert not hasattr(first, "__dict__")


def test_resolve_stays_under_the_root(tmp_path):
    assert media_path(tmp_path, "./a/../b.mp4") == tmp_path / "b.mp4"
    assert str(media_path("gs://bucket/data", "./a.mp4")) == "gs://bucket/data/a.mp4"
    for path in ("/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(UserError, match="relative to the media root"):
            media_path(tmp_path, path)


def test_symbolic_links_under_the_root_are_followed(tmp_path):
    """A part of the set on another disk: a decision, stated at `media_path`."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "part").symlink_to(tmp_path / "disk")
    assert media_path(tmp_path / "root", "part/a.mp4").read_bytes() == b"x"


# ------------------------------------------------------------------------------------------------ buckets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket/ is a folder here."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    real = epath.Path
    paths = lambda *parts: real(str(parts[0]).replace("gs://bucket", str(folder)), *parts[1:])  # noqa: E731
    monkeypatch.setattr(records.epath, "Path", paths)
    return folder


def kept(store):
    return sum(file.stat().st_size for file in Path(store.folder, "files").iterdir())


def test_records_in_a_bucket(bucket):
    write(bucket / "a.json", json.dumps([GOOD]))
    assert load_records("gs://bucket/a.json") == [EXPECTED]


def test_a_whole_number_may_be_written_as_a_float():
    """As tables have it where some row has none."""
    assert parse_record(GOOD | {"problem_id": 2.0}) == EXPECTED
    assert isinstance(parse_record(GOOD | {"problem_id": 2.0}).problem_id, int)
    with pytest.raises(UserError, match="field 'problem_id' must be a number or a string"):
        parse_record(GOOD | {"problem_id": 2.5})


def test_a_local_root_needs_no_copies(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with MediaCache(str(tmp_path)).local("./a.bin") as file:
        assert file == tmp_path / "a.bin"


def test_copies_are_kept_within_their_bound_least_recently_used_out(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 4500)
    for number in (0, 1, 2, 0, 3, 0, 4, 0):
        with store.local(f"{number}.bin") as file:
            assert file.read_bytes() == bytes([number]) * 1000
        time.sleep(0.002)  # times of last use differ
        assert kept(store) <= 4500
    (bucket / "0.bin").unlink()
    with store.local("0.bin") as file:
        assert file.read_bytes() == bytes(1000)
    assert not list(Path(store.folder, "pins").iterdir())


def test_a_copy_that_is_forgotten_is_fetched_anew(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 4500)
    for forgotten, found in ((False, bytes(1000)), (True, b"new")):
        if forgotten:
            store.forget("0.bin")
            store.forget("../none")
        with store.local("0.bin") as file:
            assert file.read_bytes() == found
        (bucket / "0.bin").write_bytes(b"new")


def test_a_copy_in_use_survives_eviction(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 1500)
    with store.local("0.bin") as file:
        with store.local("1.bin"), store.local("2.bin"):
            assert kept(store) <= 1500
        assert file.read_bytes() == bytes(1000)


def test_what_cannot_be_fetched_is_named(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 500)
    for path, cause in (("none.bin", "missing"), ("0.bin", "too-large")):
        with pytest.raises(MediaError) as raised, store.local(path):
            pass
        assert raised.value.cause == cause
    with pytest.raises(UserError, match="leaves the media root"), store.local("../x"):
        pass
    assert kept(store) == 0


def test_pins_of_dead_processes_are_removed(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 1500)
    with store.local("0.bin"):
        pass
    left = Path(store.folder, "pins", "1-abc.bin")
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    with store.local("1.bin"):
        assert not left.exists()


def fetch_many(store, seed):
    for turn in range(40):
        number = (turn * seed + seed) % 8
        with store.local(f"{number}.bin") as file:
            assert file.read_bytes() == bytes([number]) * 1000


def test_processes_share_the_copies(bucket, tmp_path):
    store = MediaCache("gs://bucket", str(tmp_path / "copies"), 3500)
    context = multiprocessing.get_context("fork")  # keeps the bucket's stand-in
    processes = [context.Process(target=fetch_many, args=(store, seed)) for seed in (1, 3, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert kept(store) <= 3500 + len(processes) * 1000


def test_a_remote_root_wants_a_folder():
    with pytest.raises(UserError, match="name a local folder"):
        MediaCache("gs://bucket")
    with pytest.raises(UserError, match="at least 1 byte"):
        MediaCache("gs://bucket", "x", 0)


def test_reader_reads_relative_to_the_root(tmp_path):
    from media_files import clip

    clip(tmp_path / "clip.mp4")
    read = MediaReader(MediaCache(str(tmp_path)))
    media = read("./clip.mp4", "video", VideoSampling(), PixelLimits(784, 400 * 784), RULES)
    assert media.frames.shape == (4, 84, 112, 3)
    assert cache.is_remote("gs://a/b")
    assert not cache.is_remote("/a/b")
