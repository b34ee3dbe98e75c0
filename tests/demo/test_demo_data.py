"""The demo's files: form, balance, disjoint splits, shortcuts, determinism, and what its command refuses."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from demo.conftest import SETTINGS
from PIL import Image

from jvr1.demo.dataset import Settings, apportion, building, finish, items, splits, wanted, write_dataset
from jvr1.demo.questions import COLOURS, HARD, TASKS
from jvr1.demo.scenes import PALETTE
from jvr1.demo.sheet import frames_in, sheet
from jvr1.errors import UserError

FIELDS = ["problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "data_source"]
TYPES = {"multiple choice", "numerical", "OCR", "free-form", "regression"}


def test_records_have_the_published_form(data):
    sizes = {"warmup": 128, "sft": 128, "rl": 128, "valid": 64, "test": 96, "hard": 48, "temporal": 40}
    assert {name: len(records) for name, records in data.records.items()} == sizes
    for name, records in data.records.items():
        for r in records:
            assert [f for f in r if f != "process"] == FIELDS
            assert ("process" in r) == (name in ("warmup", "sft"))
            assert re.fullmatch(r"<think>[a-zA-Z0-9= ]+</think>", r.get("process", "<think>x</think>"))
            assert re.fullmatch(r"<answer>[\w ]+</answer>", r["solution"])
            assert r["problem_type"] in TYPES
            if r["problem_type"] == "multiple choice":
                assert [o[:3] for o in r["options"]] == ["A. ", "B. ", "C. ", "D. "][: len(r["options"])]
                assert len(set(r["options"])) == len(r["options"]) >= 2
                assert r["solution"][8] in "ABCD"[: len(r["options"])]
            else:
                assert r["options"] == []
    ids = [r["problem_id"] for records in data.records.values() for r in records]
    assert len(set(ids)) == len(ids)


def test_temporal_questions_are_as_many_of_each_kind(data):
    kinds = ("order", "motion", "blinks", "before", "after")
    assert Counter(r["data_source"] for r in data.records["temporal"]) == dict.fromkeys(kinds, 8)
    assert "temporal" not in {split.name for split in splits(Settings())}


def test_every_type_of_problem_over_pictures_and_clips(data):
    for name in ("sft", "rl"):
        seen = {(r["problem_type"], r["data_type"]) for r in data.records[name]}
        assert seen == {(t, m) for t in TYPES for m in ("image", "video")}
    assert {(r["data_type"], r["path"]) for r in data.records["warmup"]} == {("text", None)}


def test_media_are_what_their_names_say(data):
    endings = Counter()
    for records in (data.records["sft"], data.records["hard"]):
        for r in records:
            path = data.root / r["path"]
            endings[path.suffix] += 1
            assert r["path"].startswith("./media/")
            if path.suffix == ".mp4":
                with av.open(str(path)) as container:
                    stream = container.streams.video[0]
                    assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 2, 8)
                    assert all(frame.key_frame for frame in container.decode(stream))
            else:
                with Image.open(path) as image:
                    assert (image.format, image.size) == ({".png": "PNG", ".jpg": "JPEG"}[path.suffix], (56, 56))
    assert set(endings) == {".mp4", ".png", ".jpg"}


def test_answers_are_balanced():
    test = next(s for s in splits(Settings()) if s.name == "test")
    drawn = items(test, 4, 0)
    order = [i.question() for i in drawn if i.task.name == "order"]
    assert len(order) >= 512
    for values in (
        Counter(q.letter for q in order),
        Counter(q.answer for q in order),
        Counter(q.problem for q in order),
        Counter(i.question().answer for i in drawn if i.task.name == "motion"),
        Counter(i.question().answer for i in drawn if i.task.name == "blinks"),
    ):
        assert max(values.values()) - min(values.values()) <= 6
    assert Counter(q.letter for q in order).keys() == set("ABCD")
    assert {c for q in order for c in q.options} == set(COLOURS)


def test_shares_add_up():
    assert sum(t.share for t in TASKS) == pytest.approx(1)
    for total in (32, 100, 257, 4096):
        counts = apportion(total, TASKS)
        assert sum(counts) == total
        assert min(counts) >= 1
        assert all(abs(c - t.share * total) < 1 for c, t in zip(counts, TASKS, strict=True))


def test_no_clip_or_picture_is_in_two_places(data):
    prints = Counter(
        hashlib.sha256((data.root / r["path"]).read_bytes()).hexdigest()
        for records in data.records.values()
        for r in records
        if r["path"]
    )
    assert set(prints.values()) == {1}


def border_colour(frames: np.ndarray) -> str | None:
    """The palette's name of the outermost pixels, None where they are dark."""
    edge = np.concatenate([frames[:, :2].reshape(-1, 3), frames[:, -2:].reshape(-1, 3)]).mean(0)
    name = min(PALETTE, key=lambda c: np.abs(edge - PALETTE[c]).sum())
    return name if np.abs(edge - PALETTE[name]).max() < 25 else None


def agreement(data, name: str) -> list[bool]:
    agree = []
    for r, frames in data.clips("order", name):
        options = {o[0]: o[3:] for o in r["options"]}
        border = border_colour(frames)
        assert border in options.values()
        agree.append(border == options[r["solution"][8]])
    return agree


def test_the_shortcut_agrees_as_often_as_asked(data):
    for name, share in (("sft", 0.75), ("rl", 0.75), ("valid", 0.25), ("test", 0.25), ("temporal", 0.25)):
        agree = agreement(data, name)
        assert sum(agree) == round(share * len(agree))
    assert all(border_colour(frames) is None for _, frames in data.clips("motion", "sft"))
    assert all(border_colour(frames) is None for _, frames in data.clips("after", "hard"))


def test_no_borders_unless_asked(tmp_path):
    (split,) = (s for s in splits(Settings(valid=32)) if s.name == "valid")
    for item in items(split, 3, 0):
        assert border_colour(item.question().frames) is None


def test_the_same_settings_make_the_same_files(data, tmp_path):
    write_dataset(tmp_path, SETTINGS)
    again = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    first = {p.relative_to(data.root): p.read_bytes() for p in data.root.rglob("*") if p.is_file()}
    assert again == first


def test_seed_and_sizes_change_what_they_should():
    def texts(settings: Settings, name: str) -> list[str]:
        place, split = next((k, s) for k, s in enumerate(splits(settings)) if s.name == name)
        return [i.question().think for i in items(split, place, settings.seed)]

    assert texts(SETTINGS, "rl") != texts(replace(SETTINGS, seed=6), "rl")
    assert texts(SETTINGS, "rl") != texts(SETTINGS, "sft")
    assert texts(SETTINGS, "test") == texts(replace(SETTINGS, train=256), "test")


def test_a_folder_is_made_whole_once_and_never_overwritten(tmp_path):
    out = tmp_path / "demo"
    assert wanted(out, SETTINGS)
    partial = building(out)
    (partial / "left over").write_text("")
    partial = building(out)
    assert not any(partial.iterdir())
    finish(partial, out, SETTINGS)
    assert not wanted(out, SETTINGS)
    with pytest.raises(UserError, match="made with other settings"):
        wanted(out, replace(SETTINGS, seed=9))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        wanted(tmp_path / "else", SETTINGS)
    with pytest.raises(UserError, match="cannot be written"):
        building(tmp_path / "else" / "file" / "demo")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 3}, "--train is 3; it must be 32 or more"),
        ({"valid": 0}, "--valid is 0"),
        ({"test": -1}, "--test is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"shortcut": 1.5}, "--shortcut is 1.5; it must be a share from 0 to 1"),
        ({"shortcut": float("nan")}, "--shortcut is nan"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Settings(**wrong)


def test_contact_sheets_show_every_frame(data):
    for task in (*TASKS, *HARD):
        pixels = np.asarray(sheet(data.root, task, count=1))
        (record, *_) = [r for r in data.records["hard" if task.hard else "test"] if r["data_source"] == task.name]
        frames = frames_in(data.root / record["path"])
        places = [pixels[34:146:2, x : x + 112 : 2] for x in range(6, 6 + 118 * len(frames), 118)]
        np.testing.assert_array_equal(places, frames)


@pytest.mark.slow
def test_the_command(tmp_path):
    root = Path(__file__).parents[2]

    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "jvr1", "demo-data", *arguments]
        env = {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PATH": ""}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    out = tmp_path / "out"
    small = Settings(train=32, valid=32, test=32, seed=1)
    made = call(str(out), "--train", "32", "--valid", "32", "--test", "32", "--seed", "1")
    assert made.returncode == 0, made.stderr
    names = {"warmup", "sft", "rl", "valid", "test", "hard", "tasks", "settings"}
    assert {p.name for p in out.iterdir()} == {f"{n}.json" for n in names} | {"media", "tiny_model"}
    assert json.loads((out / "settings.json").read_text()) == asdict(small)
    assert json.loads((out / "tasks.json").read_text())["order"] == {
        "problem_type": "multiple choice", "temporal": True, "ceiling": 0.25, "hard": False,
    }  # fmt: skip
    wrong = call(str(out))
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "made with other settings" in wrong.stderr
