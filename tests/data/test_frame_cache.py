"""Decoded frames on disk: the same batches with and without, whatever is damaged, full, killed or changed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import BUCKETS, IMAGE, VIDEO, encoder, record
from media_files import clip, encoded, pictures
from painted import Paint
from PIL import Image

from jvr1.data import frame_cache
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.frame_cache import SHARDS, FrameCache, frames_key
from jvr1.data.media import Media, MediaError
from jvr1.data.pipeline import Pipeline
from jvr1.data.schedule import Sequential
from jvr1.data.store import RecordStore
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

HOW = ("video", VideoSampling(), PixelLimits(784, 1568), RULES)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(frame_cache, "_quiet", set())
    monkeypatch.setattr(frame_cache, "_said", set())


def media(number, frames=2):
    rng = np.random.default_rng(number)
    return Media(
        rng.integers(0, 256, (frames, 28, 56, 3), np.uint8), rng.random(), rng.random(frames), rng.random(frames)
    )


def key(number):
    return f"{number:02x}" + "0" * 62


def same(a, b):
    times = (a.seconds_per_step, *a.timestamps) == (b.seconds_per_step, *b.timestamps)
    return times and a.frames.shape == b.frames.shape and (a.frames == b.frames).all()


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def test_what_was_put_comes_back_to_the_bit(tmp_path):
    cache = FrameCache(str(tmp_path), 2**30).open()
    assert cache.get(key(1)) is None
    cache.put(key(1), media(1))
    got = cache.get(key(1))
    assert same(got, media(1))
    assert (got.frames.dtype, got.timestamps.dtype) == (np.uint8, np.float64)
    assert cache.get(key(2)) is None


# ------------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clip(folder / "a.mp4", frames=12)
    clip(folder / "b.mp4", frames=30, height=56, width=56)
    (folder / "c.png").write_bytes(encoded(Image.fromarray(pictures(1, 56, 84)[0]), "PNG"))
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    return folder


def batches(data, config, tokenizer, kept, workers=0):
    """Every microbatch of an epoch."""
    reader = MediaReader(MediaCache(str(data)))
    one = encoder(config, tokenizer, reader, root=data, timeout=60.0, kept=kept)
    records = [record(0, "a.mp4"), record(1, "b.mp4"), record(2, "broken.mp4"), record(3, "a.mp4")]
    records.append(record(4, "c.png", "image"))
    wide = BUCKETS[1]
    plan = Sequential({wide: [0, 1, 2, 3], replace(IMAGE, windows=4): [4]}, 2)
    store = RecordStore.write(data / "store", records)
    pipeline = Pipeline(plan, store, one, seed=3, per_step=1, workers=workers)
    made = [(m.arrays, m.rows) for m in pipeline.microbatches(0, len(plan.plans), {})]
    one.read.close()
    return made


@pytest.mark.slow
def test_batches_are_equal_to_the_bit_with_and_without(data, config, tokenizer, tmp_path):
    """Made by a worker, taken by the process itself, damaged, gone."""
    plain = batches(data, config, tokenizer, None)
    cache = FrameCache(str(tmp_path), 2**30).open()

    def compare(workers=0):
        made = batches(data, config, tokenizer, cache, workers)
        for (ours, rows), (wanted, wanted_rows) in zip(made, plain, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, wanted)
            assert rows == wanted_rows
        assert len(files(tmp_path)) == 3  # a failure is not kept

    compare(workers=1)
    compare()
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    compare()
    shutil.rmtree(tmp_path)
    compare()


def test_a_warm_cache_spares_the_reading(config, tokenizer, tmp_path):
    """With the same settings nothing is read; with others it is, and fails here."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    cache = FrameCache(str(tmp_path / "kept"), 2**30).open()
    one = encoder(config, tokenizer, Paint(tmp_path), root=tmp_path, kept=cache)
    first = one.encode(record(), VIDEO, np.random.default_rng(0))
    one.read.close()

    warm = encoder(config, tokenizer, len, root=tmp_path, kept=cache)  # a reader that takes no medium
    jax.tree.map(np.testing.assert_array_equal, warm.encode(record(), VIDEO, np.random.default_rng(0)), first)
    with pytest.raises(RuntimeError, match="takes exactly one argument"):
        replace(warm, video=VideoSampling(frames=4)).encode(record(), VIDEO, np.random.default_rng(0))
    warm.read.close()


# ------------------------------------------------------------------------------------------------ names


def test_a_name_holds_all_that_frames_depend_on(data, tmp_path, monkeypatch):
    shutil.copy(data / "a.mp4", tmp_path / "a.mp4")
    shutil.copy(data / "a.mp4", tmp_path / "b.mp4")
    os.utime(tmp_path / "a.mp4", ns=(10**18, 10**18))
    root = MediaCache(str(tmp_path))
    first = frames_key(root, "a.mp4", *HOW)
    assert first == frames_key(MediaCache(str(tmp_path) + "/"), "./a.mp4", *HOW)
    names = {first, frames_key(root, "b.mp4", *HOW)}
    others = [
        ("image", *HOW[1:]),
        (HOW[0], VideoSampling(max_frames=8), *HOW[2:]),
        (HOW[0], VideoSampling(end=3.0), *HOW[2:]),
        (*HOW[:2], PixelLimits(784, 1568, 784), RULES),
        (*HOW[:2], PixelLimits(784, 2 * 1568), RULES),
        (*HOW[:3], replace(RULES, factor=56)),
        (*HOW[:3], replace(RULES, mark="another family")),
    ]
    names |= {frames_key(root, "a.mp4", *how) for how in others}
    os.utime(tmp_path / "a.mp4", ns=(10**18, 10**18 + 1))
    names.add(frames_key(root, "a.mp4", *HOW))
    with (tmp_path / "a.mp4").open("ab") as file:
        file.write(b"\0")
    os.utime(tmp_path / "a.mp4", ns=(10**18, 10**18))
    names.add(frames_key(root, "a.mp4", *HOW))
    (tmp_path / "a.mp4").write_bytes((data / "a.mp4").read_bytes())
    os.utime(tmp_path / "a.mp4", ns=(10**18, 10**18))
    assert frames_key(root, "a.mp4", *HOW) == first
    monkeypatch.setattr(frame_cache, "READER", frame_cache.READER + 1)
    names.add(frames_key(root, "a.mp4", *HOW))
    monkeypatch.setattr(frame_cache, "_libraries", lambda: ("pillow 99",))
    names.add(frames_key(root, "a.mp4", *HOW))
    assert len(names) == 2 + len(others) + 4
    assert frames_key(root, "absent.mp4", *HOW) is None
    bucket = MediaCache("gs://bucket/data", str(tmp_path / "copies"))
    assert frames_key(bucket, "a.mp4", *HOW) != frames_key(bucket, "b.mp4", *HOW)
    with pytest.raises(UserError, match="stay in it"):
        frames_key(root, "../a.mp4", *HOW)


def test_a_missing_file_is_missing_as_without(config, tokenizer, tmp_path):
    cache = FrameCache(str(tmp_path / "kept"), 2**30).open()
    one = encoder(config, tokenizer, MediaReader(MediaCache(str(tmp_path))), root=tmp_path, kept=cache, timeout=60.0)
    with pytest.raises(MediaError) as raised:
        one.encode(record(), VIDEO, np.random.default_rng(0))
    assert raised.value.cause == "missing"
    one.read.close()


# ------------------------------------------------------------------------------------------------ damage


def test_a_damaged_entry_is_never_read(tmp_path):
    """Cut anywhere, a bit turned anywhere, zeros (as after a power cut), another file's content."""
    cache = FrameCache(str(tmp_path), 2**30).open()
    cache.put(key(1), media(1))
    (entry,) = files(tmp_path)
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in (0, 1, 13, 14, 20, 30, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"\0", bytes(len(whole)), b"text", whole[:40] + bytes(len(whole) - 40)]
    for at in [*range(60), *rng.integers(0, len(whole), 60)]:
        turned = bytearray(whole)
        turned[at] ^= 1 << rng.integers(8)
        damaged.append(bytes(turned))
    for data in damaged:
        entry.write_bytes(data)
        assert cache.get(key(1)) is None
    cache.put(key(1), media(1))
    assert same(cache.get(key(1)), media(1))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from jvr1.data.frame_cache import FrameCache
from jvr1.data.media import Media
cache, number = FrameCache(sys.argv[1], 2**30), 0
print("begun", flush=True)
while True:
    values = np.random.default_rng(number % 8).integers(0, 256, (16, 224, 420, 3), np.uint8)
    cache.put(f"{number % 8:02x}" + "0" * 62, Media(values, 1.0, np.zeros(16), np.zeros(16)))
    number += 1
"""


def test_a_killed_writer_leaves_nothing_half_written_that_is_read(tmp_path):
    for delay in (0.02, 0.05, 0.11):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"begun\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = tmp_path / "00" / ".torn.part"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    cache = FrameCache(str(tmp_path), 2**30)
    for number in range(8):
        got = cache.get(key(number))
        values = np.random.default_rng(number).integers(0, 256, (16, 224, 420, 3), np.uint8)
        assert got is None or (got.frames == values).all()
    for path in files(tmp_path):
        os.utime(path, (1.0, 1.0))
    for number in range(8):
        cache.put(key(number), media(number))
    assert [path.name for path in files(tmp_path)] == [key(number) for number in range(8)]


def test_many_writers_and_readers_at_a_time(tmp_path):
    """A reader gets the whole frames or none while others write and delete them."""
    size = 3 * media(0).frames.nbytes
    cache = FrameCache(str(tmp_path), SHARDS * size).open()

    def work(seed):
        found = 0
        for number in np.random.default_rng(seed).integers(0, 8, 60):
            name = f"00{number:02x}" + "0" * 60  # all of one shard, which holds two of them
            got = cache.get(name)
            found += got is not None
            if got is None:
                cache.put(name, media(number))
            else:
                assert same(got, media(number))
        return found

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(work, range(8)))
    assert sum(found)
    assert not list(tmp_path.rglob("*.part"))
    cache.put("00ff" + "0" * 60, media(9))
    assert sum(path.stat().st_size for path in files(tmp_path / "00")) <= size


# ------------------------------------------------------------------------------------------------ room


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path):
    names = [f"00{number:02x}" + "0" * 60 for number in range(5)]
    cache = FrameCache(str(tmp_path), SHARDS * 4 * (media(0).frames.nbytes + 200)).open()
    for age, name in enumerate(names[:4]):
        cache.put(name, media(age))
        os.utime(tmp_path / "00" / name, (1000.0 + age, 1000.0 + age))
    assert cache.get(names[0]) is not None  # used: now the youngest
    cache.put(names[4], media(4))
    assert [cache.get(name) is not None for name in names] == [True, False, True, True, True]


def test_media_too_large_for_it_are_left_out_and_said_once(tmp_path, capfd):
    cache = FrameCache(str(tmp_path), SHARDS * 20_000).open()
    for number in range(3):
        cache.put(key(number), media(number, frames=8))
    cache.put(key(9), media(9))
    assert [path.name for path in files(tmp_path) if path.name != "warned"] == [key(9)]
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "leaves out media of more than 0 MiB" in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_one_warning_and_no_cache(data, config, tokenizer, tmp_path, capfd, monkeypatch, number):
    """At the write, after part of the bytes: nothing is left of it, what was there is still read."""
    cache = FrameCache(str(tmp_path), 2**30).open()
    cache.put(key(1), media(1))
    plain = batches(data, config, tokenizer, None)
    kept = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(number, os.strerror(number))

    def opened(self, mode="r", **how):
        return Full(kept(self, mode)) if mode == "xb" else kept(self, mode, **how)

    monkeypatch.setattr(Path, "open", opened)
    got = batches(data, config, tokenizer, cache)
    for (ours, _), (wanted, _) in zip(got, plain, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, wanted)
    said = capfd.readouterr().err
    assert said == f"warning: the frame cache {tmp_path} takes no more frames: {os.strerror(number)}\n"
    assert same(cache.get(key(1)), media(1))
    assert [path.name for path in files(tmp_path)] == [key(1), "warned"]
    monkeypatch.setattr(frame_cache, "_quiet", set())  # another process that shares it
    monkeypatch.setattr(frame_cache, "_said", set())
    cache.put(key(2), media(2))
    assert capfd.readouterr().err == ""
    monkeypatch.undo()
    FrameCache(str(tmp_path), 2**30).open().put(key(2), media(2))  # another run, on a disk with room again
    assert same(cache.get(key(2)), media(2))


def test_a_folder_that_cannot_be_written_is_said_at_the_start_and_still_read(tmp_path, capfd, monkeypatch):
    """Root may write everything, so the refusal is feigned."""
    cache = FrameCache(str(tmp_path), 2**30).open()
    cache.put(key(1), media(1))

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "unlink", "write_bytes"):
            patch.setattr(Path, name, refuse)
        for name in ("os.open", "os.utime"):
            patch.setattr(name, refuse)
        patch.setattr(frame_cache, "_TOUCH_SECONDS", -1.0)
        again = FrameCache(str(tmp_path), 2**30).open()
        again.put(key(2), media(2))
        assert same(again.get(key(1)), media(1))
    assert [path.name for path in files(tmp_path)] == [key(1)]
    said = capfd.readouterr().err
    assert said == f"warning: the frame cache {tmp_path} takes no more frames: Read-only file system\n"


def test_mistakes(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file; name a folder"):
        FrameCache(str(tmp_path / "file"), 2**30).open()
    with pytest.raises(UserError, match="not a bucket"):
        FrameCache("gs://bucket/frames", 2**30)
    with pytest.raises(UserError, match=r"data\.frame_cache_gb"):
        FrameCache(str(tmp_path), 0)
