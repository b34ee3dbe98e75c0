"""Probes that are kept: of the media alone, made again of what was mended; records numbered as their file has them."""

import os
from types import SimpleNamespace

import pytest
from cases import BUCKETS, encoder, record
from etils import epath
from PIL import Image

from jvr1 import config as settings
from jvr1.data import index
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.index_file import IndexEntry, began_at, index_sum, save_index
from jvr1.errors import UserError
from jvr1.opening.indices import Questions, index_of, put_in_buckets


@pytest.fixture
def asking(tmp_path, config, tokenizer):
    one = encoder(config, tokenizer, MediaReader(MediaCache(str(tmp_path))), root=tmp_path)
    yield one
    one.read.close()


@pytest.fixture
def chosen(tmp_path):
    chosen = settings.default()
    chosen.data.update({"root": str(tmp_path), "index": str(tmp_path / "index"), "index_workers": 1})
    return chosen


def test_probes_are_of_media_and_what_was_missing_is_looked_for_again(tmp_path, chosen, asking, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.png", "elsewhere/c.png"):
        Image.new("RGB", (56, 56)).save(tmp_path / name)
    own = [record(n, path, "image") for n, path in enumerate(("a.png", "late/c.png"))]

    def kinds(records, again="nothing", text="[]"):
        (tmp_path / "q.json").write_text(text)
        found = index_of("q.json", records, chosen, asking, epath.Path(tmp_path), told=False, again=again)
        return [entry.bucket or entry.cause for entry in found]

    with monkeypatch.context() as clock:
        clock.setattr(index, "time", SimpleNamespace(time=lambda: 5.0))
        assert kinds(own[1:]) == ["missing"]  # where the other is of a kind that is not known
    assert [began_at(file) for file in (tmp_path / "index").glob("q-media-*")] == [5.0]
    assert kinds(own) == ["image", "missing"]
    os.rename(tmp_path / "a.png", tmp_path / "b.png")
    assert kinds(own, text="[ ]") == ["image", "missing"]  # a solution was corrected
    Image.new("RGB", (56, 84)).save(tmp_path / "d.png")
    more = [record(7, None, "text"), record(8, "d.png", "image"), *own, record(9, "a.png", "video")]
    assert kinds(more) == ["text", "image", "image", "missing", "missing"]  # others were added
    (tmp_path / "late").symlink_to(tmp_path / "elsewhere")  # its files are older than the probes
    assert kinds(own, text="[ ]") == ["image", "missing"]
    assert kinds(own, "changed", text="[ ]") == ["image", "image"]


def test_when_probing_began(tmp_path):
    save_index(tmp_path / "a", [], {}, {"began": 5.0})
    save_index(tmp_path / "b", [], {})
    os.utime(tmp_path / "b", (7, 7))
    assert (began_at(tmp_path / "a"), began_at(tmp_path / "b")) == (5.0, 7.0)
    os.utime(tmp_path / "a", (3, 3))  # of a server whose clock is behind
    assert began_at(tmp_path / "a") == 3.0
    with pytest.raises(UserError, match=r"there is no index .*none; make it with jvr1 index"):
        index_sum(tmp_path / "none")


def test_records_are_numbered_as_in_their_file_and_only_those_asked_for_count(chosen, asking, capsys):
    """Record 1 of the file could not be read; the only text is fine, the image doubtful, the video too long."""
    own = [
        record(0, None, "text"),
        record(1, "a.png", "image", solution="B", process=None),
        record(2, "a.mp4", process=None),
    ]
    entries = [
        IndexEntry(0, (), 9, "text", None),
        IndexEntry(1, (), 9, "image", None, 1, 1),
        IndexEntry(2, (), 99, "video", None, 4, 1),
    ]
    chosen.data.buckets = tuple((b.kind, b.steps, b.windows, b.prompt, b.completion) for b in BUCKETS)
    questions = Questions("q.json", own, entries, False, [0, 2, 3], False)
    there = put_in_buckets(questions, chosen, asking, ["text"])
    told = capsys.readouterr().out
    assert [entry.bucket for entry in there.entries] == [BUCKETS[3].name, BUCKETS[2].name, None]
    assert "1  too many prompt tokens (such as record 3: 99, " in told
    assert "1  stands without <answer> tags (record 2); " in told
    assert "data.index is set: media that were mended are probed again by jvr1 index" in told
    chosen.data.index = ""
    put_in_buckets(questions, chosen, asking, ["text"])
    assert "data.index" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"1 of 2 records are doubtful \(1 solution stands without"):
        put_in_buckets(questions, chosen, asking, ["text", "image"])
    with pytest.raises(UserError, match=r"1 of 1 records are dropped \(1 too many prompt tokens\)"):
        put_in_buckets(questions, chosen, asking, ["video"])
