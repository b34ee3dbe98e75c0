"""Indexing: a mixture of good and broken media, resuming, stale settings, summary, the command line."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import media_files
import pytest
from media_files import BROKEN, GOOD, LATE, clip, write_broken, write_good

from jvr1 import config as settings
from jvr1.commands import index as tool
from jvr1.data import index
from jvr1.data.index import VisualTokens, build_index
from jvr1.data.index_file import (
    IndexEntry,
    as_json_values,
    differing,
    file_stamp,
    load_index,
    save_index,
    settings_hash,
)
from jvr1.data.index_summary import summarise_index
from jvr1.data.records import Record, parse_record
from jvr1.errors import UserError
from jvr1.model.media import PixelLimits, Probe, VideoSampling

SETTINGS = {"video": VideoSampling(), "limits": (1, 2)}
REPOSITORY = Path(__file__).parents[2]


def record(path, data_type="video", problem="what is it", number=0):
    options, process = ("A. a",), None
    return Record(number, problem, data_type, "multiple choice", options, "<answer>A</answer>", process, path, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_good(folder)
    write_broken(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(folder):
    """Broken media among good ones, text, several images, a long problem, two records of one clip."""
    records = [record(name, kind) for name, kind in GOOD.items()]
    for place, (name, (kind, _)) in enumerate(BROKEN.items()):
        records.insert(2 * place % len(records), record(name, kind))
    records += [record(None, "text"), record("plain.mp4", problem="a question of rather too many words")]
    records += [record(("picture.png", "wrong-extension.png"), "image"), record(("picture.png", "absent.png"), "image")]
    return records, build_index(records, str(folder), SETTINGS, media_files.measure, 2)


def test_counts_match(mixed):
    records, entries = mixed
    assert [entry.row for entry in entries] == list(range(len(records)))
    expected = Counter(cause for name, (_, cause) in BROKEN.items() if name not in LATE)
    expected["missing"] += 1
    expected["too-long"] += 1
    assert Counter(entry.cause for entry in entries if entry.error) == expected
    for one, entry in zip(records, entries, strict=True):
        assert (entry.bucket is None) == (entry.error is not None)
        if entry.bucket is not None:
            assert (entry.bucket, entry.prompt_tokens) == (one.data_type, 3)


def test_entries_say_what_the_files_are(mixed):
    records, entries = mixed
    found = {one.path: entry for one, entry in zip(records, entries, strict=True)}
    assert found["odd.mp4"].media == (Probe(65, 101, 12, 10.0),)
    assert found["picture.png", "wrong-extension.png"].media == (Probe(60, 80, 1, 0.0),) * 2
    assert (found[None].media, found[None].bucket) == ((), "text")


def test_the_number_of_workers_changes_nothing(mixed, folder):
    records, entries = mixed
    assert build_index(records[:12], str(folder), SETTINGS, media_files.measure, 1) == entries[:12]


def test_media_of_several_records_are_probed_together():
    records = [record("a.mp4"), record("b.mp4"), record("a.mp4"), record(None, "text"), record(None, "text")]
    assert index._jobs(records, {}) == [[0, 2], [1], [3], [4]]
    assert index._jobs(records, {row: entry(row, 1, "video") for row in (0, 3)}) == [[1], [2], [4]]


def test_a_medium_that_hangs_costs_its_own_records_alone(folder):
    prober = index._Prober(index.MediaCache(str(folder)), media_files.hang_on_long_problems)
    records = [record("plain.mp4", problem="hang"), record("picture.png", "image"), record("one.mp4")]
    results = list(index._in_helpers(prober, records, [[0], [1], [2]], 1, 1.0))
    assert [entry.cause for (entry,) in results] == ["timeout", None, None]


def test_a_fault_of_the_measure_is_seen(folder):
    with pytest.raises(RuntimeError, match="a fault of the measure"):
        build_index([record("plain.mp4")] * 3, str(folder), SETTINGS, media_files.measure_badly, 2)


def test_an_interrupted_index_goes_on(tmp_path):
    """The second run has no media left to probe but the new one, so the rows before are not done again."""
    records = [record(str(clip(tmp_path / f"{n}.mp4", frames=4 + n).name)) for n in range(4)]
    partial = tmp_path / "partial"
    whole = build_index(records, str(tmp_path), SETTINGS, media_files.measure, 1, partial)
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:3]) + lines[3][:9])  # torn in the middle of a line
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "1.mp4").unlink()
    assert build_index(records, str(tmp_path), SETTINGS, media_files.measure, 1, partial) == whole
    assert len(partial.read_text().splitlines()) == 5
    changed = {**SETTINGS, "limits": (1, 3)}
    again = build_index(records, str(tmp_path), changed, media_files.measure, 1, partial)
    assert [entry.cause for entry in again] == ["missing", "missing", None, None]


def test_saved_and_loaded(mixed, tmp_path):
    _, entries = mixed
    save_index(tmp_path / "new" / "a.index", entries, SETTINGS)
    assert load_index(tmp_path / "new" / "a.index", SETTINGS) == entries
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.index"]


def test_a_stale_index_is_refused_and_says_what_changed(tmp_path):
    save_index(tmp_path / "a.index", [], SETTINGS)
    with pytest.raises(UserError) as raised:
        load_index(tmp_path / "a.index", {"video": VideoSampling(max_frames=32), "limits": (1, 2), "seed": 3})
    words = "made with other settings: seed was null, is 3; video.max_frames was 16, is 32; run jvr1 index again"
    assert words in str(raised.value)
    with pytest.raises(UserError, match=r"make it with jvr1 index"):
        load_index(tmp_path / "none.index", SETTINGS)
    for text in ("", "{}\n", "[1,2]\n", "\x00\n"):
        (tmp_path / "b.index").write_text(text)
        with pytest.raises(UserError, match="no index of this version"):
            load_index(tmp_path / "b.index", SETTINGS)
    for line in ("[1, 2]\n", "[1, 2"):
        (tmp_path / "c.index").write_text((tmp_path / "a.index").read_text() + line)
        with pytest.raises(UserError, match="is damaged"):
            load_index(tmp_path / "c.index", SETTINGS)


def test_settings(tmp_path):
    assert as_json_values(SETTINGS)["video"]["max_frames"] == 16
    assert settings_hash(SETTINGS) == settings_hash(as_json_values(SETTINGS)) != settings_hash({})
    assert differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": [2]}}) == ["a.c was 2, is [2]"]
    (tmp_path / "a").write_bytes(b"abc")
    first = file_stamp(tmp_path / "a")
    assert first["bytes"] == 3
    (tmp_path / "a").write_bytes(b"abd")
    assert first != file_stamp(tmp_path / "a")


def entry(row, tokens, bucket, error=None):
    return IndexEntry(row, (Probe(1, 1, 1, 0.0),), tokens, bucket, error)


def test_summary():
    entries = [
        entry(0, 60, "image"),
        entry(1, 100, "image"),
        entry(2, 150, "video"),
        entry(3, 0, None, "missing: a.mp4"),
        entry(4, 900, None, "too-long"),
        entry(5, 0, None, "missing: b.mp4"),
    ]
    found = summarise_index(entries, {"image": 100, "video": 200})
    assert found.dropped == {"missing": 2, "too-long": 1}
    assert found.buckets["image"].padding == pytest.approx(0.2)
    assert found.padding == pytest.approx(1 - 310 / 400)
    assert str(found).splitlines() == [
        "6 records, 3 kept, 3 dropped",
        "  dropped        2  missing (such as record 3: a.mp4)",
        "  dropped        1  too-long (such as record 4)",
        "  bucket         2  image: 80 prompt tokens on average, 20.0% padding of 100",
        "  bucket         1  video: 150 prompt tokens on average, 25.0% padding of 200",
        "expected padding of prompts: 22.5%",
    ]
    assert "padding" not in str(summarise_index(entries))
    assert summarise_index([]).padding is None


def test_visual_tokens(mixed, folder):
    """84x112: 3 x 4 merged tokens; where the least is 128, upscaled to 10 x 14, for sides are rounded up."""
    least, most = PixelLimits(784, 128 * 784), PixelLimits(128 * 784, 128 * 784)
    clips = [record("plain.mp4"), record("picture.png", "image"), record(None, "text"), record("one.mp4")]
    measure = VisualTokens(VideoSampling(), least, least)
    entries = build_index(clips, str(folder), SETTINGS, measure, 1)
    assert [e.prompt_tokens for e in entries] == [2 * 12, 2 * 3, 0, 12]
    measure = VisualTokens(VideoSampling(), least, most)
    assert build_index(clips[:1], str(folder), SETTINGS, measure, 1)[0].prompt_tokens == 2 * 140
    thread = build_index([record("thread.mp4")], str(folder), SETTINGS, measure, 1)
    assert (thread[0].cause, thread[0].bucket) == ("aspect-ratio", None)


# ------------------------------------------------------------------------------------------------ command line


def published(one):
    return {**{f: getattr(one, f) for f in Record.__slots__}, "path": one.path}


def test_command_line(mixed, folder, tmp_path, capsys):
    records, _ = mixed
    data = tmp_path / "a.json"
    data.write_text(json.dumps([published(one) for one in records]))
    tool.main([str(data), "--root", str(folder), "--workers", "1"])
    out = capsys.readouterr().out
    assert f"{len(records)} records, " in out
    assert f"index: {data}.index" in out
    lines = Path(f"{data}.index").read_text().splitlines()
    assert len(lines) == 1 + len(records)
    assert json.loads(lines[0])["settings"]["records"] == file_stamp(data)
    assert not Path(f"{data}.index.partial").exists()
    assert replace(parse_record(json.loads(data.read_text())[0]), extra="") == records[0]  # what `published` adds


def test_what_the_config_says_is_not_said_beside_it(tmp_path):
    """Options of the survey are refused; the workers are the config's but where the command line has some."""
    how = [str(tmp_path / "a.json"), f"--root={tmp_path}", "--config=tiny:rl", "--model=m"]
    for options in (["--fps=1"], ["--max-frames=8", "--image-tokens=64"]):
        given = ", ".join(option.partition("=")[0] for option in options)
        with pytest.raises(UserError, match=f"^{given}: not beside --config, which says it"):
            tool.main([*how, *options])

    def workers(*options: str) -> int:
        return tool.config_of_data(tool.with_overrides(tool.options(), [*how, *options])).data.index_workers

    assert workers() == settings.from_file("tiny:rl").data.index_workers
    assert workers("--config.data.index_workers=5") == 5
    assert workers("--config.data.index_workers=5", "--workers=3") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json", "--root", "."], "none.json does not exist"),
        (["a.json", "--root", "."], "a.json holds no records"),
        (["a.json", "--root", "gs://bucket"], "name a local folder"),
        (["a.json", "--root", ".", "--fps", "0"], "fps is 0.0; it must be positive"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(tmp_path, arguments, words):
    (tmp_path / "a.json").write_text("[]")
    command = [sys.executable, "-m", "jvr1", "index", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps=0"], "--fps is 0.0; it must be positive"),
        (["--min-frames=5", "--max-frames=5"], "--min-frames is 5 and --max-frames is 5; an even number"),
    ],
)
def test_the_tool_names_its_options(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        tool.main([f"{tmp_path}/a.json", f"--root={tmp_path}", *arguments])
    assert str(error.value).startswith(message)
