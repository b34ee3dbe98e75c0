"""What decoding a medium takes: refused by its header before anything is decoded, and bounded where the header lies."""

from __future__ import annotations

import os
import resource

import av
import media_files
import pytest
from cases import record
from media_files import clip, png
from PIL import Image, ImageFile

from jvr1.data import memory
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.index import build_index
from jvr1.data.media import Media, MediaError, load_media, probe
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

HOW = (VideoSampling(), PixelLimits(784, 40 * 784), RULES)


def read_bounded(folder, name: str, data_type: str, megabytes: int, allowed: int = 10**6) -> Media:
    """A read by a helper that may hold so many megabytes; allowed: what headers may say."""
    with Sandbox(MediaReader(MediaCache(str(folder)), allowed), 60.0, megabytes) as helper:
        return helper(name, data_type, *HOW)


def refusal(*arguments) -> str:
    with pytest.raises(MediaError) as raised:
        read_bounded(*arguments)
    assert raised.value.cause == "too-large"
    return str(raised.value)


def test_an_index_names_what_it_needs_and_what_it_may(tmp_path):
    clip(tmp_path / "wide.mp4", frames=2, height=1080, width=1920)
    clip(tmp_path / "small.mp4")
    (tmp_path / "large.png").write_bytes(png(9000, 9000))
    media = [("wide.mp4", "video"), ("small.mp4", "video"), ("large.png", "image")]
    records = [record(n, path, kind) for n, (path, kind) in enumerate(media)]
    entries = build_index(records, str(tmp_path), {}, media_files.measure, 1, max_decoded_mb=100)
    video, none, picture = (entry.error for entry in entries)
    assert none is None
    assert "wide.mp4 has 1920x1080 pixels a frame of 12 bits: decoding takes up to 152 MB, over" in video
    assert "large.png has 9000x9000 pixels: decoding takes up to 967 MB, over data.max_decoded_mb=100" in picture
    assert {entry.cause for entry in entries} == {None, "too-large"}


def test_nothing_is_decoded_first(tmp_path, monkeypatch):
    file = clip(tmp_path / "a.mp4", frames=2)
    monkeypatch.setattr("jvr1.data.video.VideoFile._decoded", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    (tmp_path / "large.png").write_bytes(png(9000, 9000))
    for call in (
        lambda: probe(file, "video", 10),
        lambda: load_media(file, "video", *HOW, 10),
        lambda: load_media(tmp_path / "large.png", "image", *HOW, 500),
    ):
        with pytest.raises(MediaError, match=r"too-large: .* over data\.max_decoded_mb="):
            call()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG", "TIFF"])
def test_a_picture_file_without_end(tmp_path, kind):
    """Pillow goes through zeros after a GIF byte by byte, for hours; others are read whole."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a", kind)
    os.truncate(tmp_path / "a", 2**33)
    for call in (lambda: probe(tmp_path / "a", "image"), lambda: load_media(tmp_path / "a", "image", *HOW)):
        with pytest.raises(MediaError, match=r"too-large: .* has 8589934592 bytes: .*over data\.max_decoded_mb=2048"):
            call()


def test_the_frames_kept_count_too(tmp_path):
    file = clip(tmp_path / "a.mp4", frames=60)
    how = (VideoSampling(frames=60), PixelLimits(784, 400 * 784), RULES)
    assert len(load_media(file, "video", *how, 64).frames) == 60
    big = (VideoSampling(frames=60), PixelLimits(400 * 784, 400 * 784), RULES)
    with pytest.raises(MediaError, match=r"decoding takes up to 9\d MB, over data\.max_decoded_mb=64"):
        load_media(file, "video", *big, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"), ("b.mkv", "libx264", "yuv444p10le"), ("c.webm", "libvpx-vp9", "yuv420p"),
        ("d.mp4", "libsvtav1", "yuv420p"), ("e.avi", "mpeg4", "yuv420p"), ("f.mov", "prores_ks", "yuv422p10le"),
    ],
)  # fmt: skip
def test_a_video_stays_below_what_its_header_says(tmp_path, name, codec, pixels):
    """The bound is what the header comes to, and it is enough."""
    clip(tmp_path / name, frames=8, height=720, width=1280, codec=codec, pixels=pixels)
    with av.open(str(tmp_path / name)) as container:
        form = av.VideoFormat(container.streams.video[0].codec_context.pix_fmt)
        bits = max(form.bits_per_pixel, form.padded_bits_per_pixel)
        kind = container.streams.video[0].codec_context.codec.canonical_name
    megabytes = -(-memory.video_bytes(1280, 720, bits, kind) // memory.MEGABYTE) + 1
    assert len(read_bounded(tmp_path, name, "video", megabytes, megabytes).frames) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"format": "PNG"}), ("RGBA", {"format": "PNG"}), ("I;16", {"format": "PNG"}), ("F", {"format": "TIFF"}),
        ("CMYK", {"format": "JPEG", "progressive": True, "subsampling": 0}), ("RGB", {"format": "WEBP", "method": 0}),
        ("RGBA", {"format": "JPEG2000"}), ("RGB", {"format": "AVIF", "speed": 10}), ("P", {"format": "GIF"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_stays_below_what_its_header_says(tmp_path, mode, options, orientation):
    width, height = 4000, 3000
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new(mode, (width, height))
    picture.save(tmp_path / "a", exif=exif, **options)
    megabytes = memory.picture_bytes(width, height, len(picture.getbands()), options["format"]) // memory.MEGABYTE + 1
    assert len(read_bounded(tmp_path, "a", "image", megabytes, megabytes).frames) == 1


@pytest.mark.slow
def test_a_header_that_lies_is_stopped_by_the_bound(tmp_path):
    """A stream that begins small and goes on large: what it says of itself passes, what it takes does not."""
    small, large = (
        clip(tmp_path / f"{n}.h264", frames=2, height=h, width=w) for n, h, w in ((0, 48, 64), (1, 2160, 4096))
    )
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    assert memory.video_bytes(64, 48, 12, "h264") < 64 * memory.MEGABYTE
    told = refusal(tmp_path, "both.h264", "video", 64, 64)
    assert "decoding it needs more than data.max_decoded_mb=64" in told
    assert len(read_bounded(tmp_path, "both.h264", "video", 1000).frames) >= 2


@pytest.mark.parametrize("megabytes", [150, 10**6])
def test_a_call_that_takes_too_much_is_refused_and_the_helper_serves_on(megabytes):
    with Sandbox(media_files.take, 30.0, 100) as helper:
        assert helper(50) == 50
        process = helper._process.pid
        with pytest.raises(MediaError, match=r"too-large: decoding it needs more than data\.max_decoded_mb=100"):
            helper(megabytes)
        assert helper(50) == 50
        assert helper._process.pid == process
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_what_a_library_calls_damage_when_the_memory_was_used_up(tmp_path):
    with Sandbox(media_files.take_and_call_it_corrupt, 30.0, 100) as helper:
        with pytest.raises(MediaError, match=r"too-large: decoding it needs more than data\.max_decoded_mb=100"):
            helper(90)
        with pytest.raises(MediaError, match="corrupt: damaged"):
            helper(10)


def test_a_helper_that_keeps_what_it_took_is_replaced():
    with Sandbox(media_files.keep, 30.0, 1000) as helper:
        first, second = helper(50), helper(50)
        assert first == second
        assert helper(400) == first
        assert helper(1) != first


def test_without_a_bound_a_helper_takes_what_it_needs():
    with Sandbox(media_files.take, 30.0) as helper:
        assert helper(300) == 300


def test_a_bound_must_be_positive():
    with pytest.raises(UserError, match="at least 1 MB"):
        Sandbox(media_files.take, 30.0, 0)


def test_a_lower_limit_of_the_user_s_stays(monkeypatch):
    """`ulimit -d` as the user set it is never raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**12, 10**12))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    with memory.Bound(10**9).held():
        pass
    assert set_to == [(10**12, 10**12)] * 2
    monkeypatch.undo()
    assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)
