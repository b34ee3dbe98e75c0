"""Fetching, unpacking and checking the published set, on folders and zips made here; nothing is fetched."""

import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from media_files import clip, encoded
from PIL import Image

from jvr1.commands import prepare_data
from jvr1.commands.prepare_data import Remote, extract, marker, room_needed, unpack, what_is_there
from jvr1.errors import UserError

REPOSITORY = Path(__file__).parents[2]
RECORD = {"problem": "what?", "problem_type": "free-form", "solution": "<answer>x</answer>"}


def records(*media):
    kinds = {".mp4": "video", ".png": "image"}
    return [{**RECORD, "problem_id": n, "data_type": kinds[Path(m).suffix], "path": m} for n, m in enumerate(media)]


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return path


def tree(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and not p.name.startswith(".")}


@pytest.fixture
def published(tmp_path):
    """A set in the published layout: record files on top, zips in the folder of their media."""
    root = tmp_path / "root"
    root.mkdir()
    video = clip(tmp_path / "clip.mp4").read_bytes()
    picture = encoded(Image.new("RGB", (40, 30), "red"), "PNG")
    write_zip(root / "CLEVRER" / "CLEVRER_part1.zip", {"train/1.mp4": video, "__MACOSX/x": b"x"})
    write_zip(root / "CLEVRER" / "CLEVRER_part2.zip", {"train/2.mp4": video, "train/cut.mp4": video[:300]})
    write_zip(root / "Math" / "Math.zip", {"a/1.png": picture, "a/none.png": b""})
    media = ["./CLEVRER/train/1.mp4", "./CLEVRER/train/2.mp4", "./CLEVRER/train/3.mp4", "./CLEVRER/train/cut.mp4"]
    media += ["./Math/a/1.png", "./Math/a/none.png"]
    (root / "Video-R1-260k.json").write_text(json.dumps(records(*media)))
    return root


def test_unpacked_checked_and_indexed(published, capfd):
    prepare_data.main([str(published)])
    assert {"CLEVRER/train/1.mp4", "CLEVRER/train/2.mp4", "Math/a/1.png"} < tree(published)
    assert not any("__MACOSX" in name for name in tree(published))
    out = capfd.readouterr().out
    assert "6 records, 4 with all their media" in out
    assert "1 files missing under CLEVRER/" in out
    assert "1 files empty under Math/" in out
    assert "6 records, 3 kept, 3 dropped" in out
    assert "1  truncated (such as record 3: " in out
    assert (published / "Video-R1-260k.json.index").exists()
    assert (published / "Math" / "Math.zip").exists()


def test_a_mistake_in_files_of_one_s_own_is_told_before_anything_is_unpacked(published):
    (published / "own.json").write_text(json.dumps([{**RECORD, "problem_id": 0, "data_type": "film", "path": "a.mp4"}]))
    before = tree(published)
    for name, words in (("none.json", "none.json does not exist"), ("own.json", "field 'data_type' must be one of")):
        with pytest.raises(UserError, match=words):
            prepare_data.main([str(published), name, "--skip-index"])
    assert tree(published) == before


def test_a_second_run_unpacks_nothing_again(published, monkeypatch):
    prepare_data.main([str(published), "--skip-index", "--remove-zips"])
    assert not list(published.rglob("*.zip"))
    monkeypatch.setattr(prepare_data, "extract", None)
    prepare_data.main([str(published), "--skip-index"])


def test_an_interrupted_unpacking_goes_on(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"1.txt": b"one", "2.txt": b"two"})
    (tmp_path / "1.txt").write_bytes(b"ONE")  # there with the right size: left alone
    (tmp_path / "2.txt").write_bytes(b"t")
    extract(archive, tmp_path)
    assert ((tmp_path / "1.txt").read_bytes(), (tmp_path / "2.txt").read_bytes()) == (b"ONE", b"two")


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "C:/out.txt", "..\\out.txt"])
def test_a_zip_that_climbs_out_is_refused_whole(tmp_path, name):
    archive = write_zip(tmp_path / "in" / "a.zip", {"first.txt": b"x", name: b"x"})
    if "\\" in name:  # the library turns it round when writing on some systems; the bytes are ours
        archive.write_bytes(archive.read_bytes().replace(b"../out.txt", b"..\\out.txt"))
    with pytest.raises(UserError, match="outside the data folder"):
        unpack(archive, True)
    assert tree(tmp_path) == {"in/a.zip"}
    assert not marker(archive).exists()


@pytest.mark.parametrize(("kind", "words"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "a special file")])
def test_links_and_special_files_are_refused(tmp_path, kind, words):
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    archive = write_zip(tmp_path / "a.zip", {link: "/etc", "link/passwd": b"x"})
    with pytest.raises(UserError, match=words):
        extract(archive, tmp_path)
    assert tree(tmp_path) == {"a.zip"}


def test_a_bomb_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"zeros": bytes(10**7)})
    with pytest.raises(UserError, match="over 100 times its size"):
        extract(archive, tmp_path)
    assert tree(tmp_path) == {"a.zip"}


def test_a_zip_that_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    archive = write_zip(tmp_path / "a.zip", {"text": b"more than ten bytes"})
    with pytest.raises(UserError, match=r"needs 0\.0 GB"):
        extract(archive, tmp_path)
    (tmp_path / "text").write_bytes(b"more than ten bytes")
    extract(archive, tmp_path)  # what is there needs no room


def test_damaged_zips_are_named(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"text": bytes(range(256)) * 9})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        extract(archive, tmp_path)
    flipped = bytearray(whole)
    flipped[60] ^= 255
    archive.write_bytes(flipped)
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        extract(archive, tmp_path)
    assert not (tmp_path / "text").exists()


def test_encrypted_members_are_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"text": b"x"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        extract(archive, tmp_path)


def test_paths_of_records_may_not_leave_the_root(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(records("../a.mp4")))
    with pytest.raises(UserError, match="leaves the media root"):
        what_is_there(tmp_path / "a.json", tmp_path)


# ------------------------------------------------------------------------------------------------ the hub


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The published set as the hub's client shows it, served from a folder; (new root, names fetched)."""
    fetched = []

    class Api:
        def dataset_info(self, repository, files_metadata):
            assert (repository, files_metadata) == ("Video-R1/Video-R1-data", True)
            names = [str(p.relative_to(published)) for p in published.rglob("*") if p.is_file()] + ["README.md"]
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=10**6) for name in sorted(names)])

    def download(repository, name, repo_type, local_dir):
        fetched.append(name)
        (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(local_dir) / name).write_bytes((published / name).read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path / "new", fetched


def test_fetched_with_sizes_said_first(hub, capsys):
    root, fetched = hub
    prepare_data.main([str(root), "--download", "--remove-zips", "--skip-index"])
    assert sorted(fetched) == [
        "CLEVRER/CLEVRER_part1.zip",
        "CLEVRER/CLEVRER_part2.zip",
        "Math/Math.zip",
        "Video-R1-260k.json",
    ]
    assert not list(root.rglob("*.zip"))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["0.0", "GB", "to", "fetch", "in", "4", "files"] for line in lines)
    assert lines[-3].startswith("Video-R1-260k.json: 6 records")
    prepare_data.main([str(root), "--download", "--remove-zips", "--skip-index"])
    assert fetched[4:] == ["Video-R1-260k.json"]  # the client itself knows what has not changed


def test_only_some_parts(hub):
    root, fetched = hub
    prepare_data.main([str(root), "--download", "--parts", "Math", "--skip-index"])
    assert sorted(fetched) == ["Math/Math.zip", "Video-R1-260k.json"]
    with pytest.raises(UserError, match="no folder 'Maths'; it has CLEVRER, Math"):
        prepare_data.main([str(root), "--download", "--parts", "Maths"])


def test_room_needed(tmp_path):
    files = [Remote("a.json", 1), Remote("X/1.zip", 100), Remote("X/2.zip", 60)]
    assert room_needed(files, tmp_path, False) == 1 + 2 * 160
    assert room_needed(files, tmp_path, True) == 1 + 160 + 100
    (tmp_path / "X").mkdir()
    marker(tmp_path / "X/1.zip").touch()
    (tmp_path / "X" / "2.zip").touch()
    assert room_needed(files, tmp_path, False) == 1 + 60


def test_too_small_a_disk_is_said_before_anything_is_fetched(hub, monkeypatch):
    root, fetched = hub
    monkeypatch.setattr(prepare_data.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**6))
    with pytest.raises(UserError, match="GB are needed; --remove-zips needs half as much"):
        prepare_data.main([str(root), "--download"])
    assert not fetched


def test_without_a_network_one_line_and_code_2(tmp_path):
    """HF_HUB_OFFLINE is set for all tests: the client refuses as it does without a network."""
    command = [sys.executable, "-m", "jvr1", "prepare-data", str(tmp_path), "--download"]
    environment = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "cannot fetch Video-R1/Video-R1-data from the hub" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("make", "words"), [(False, "is no folder"), (True, "has neither Video-R1-260k.json nor")])
def test_a_root_without_the_set(tmp_path, make, words):
    if make:
        (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=words):
        prepare_data.main([str(tmp_path / "root")])
