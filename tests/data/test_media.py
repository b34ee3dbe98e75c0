"""Sampling, sizes, decoding and the failures of media. Oracles: torch and torchvision, PyAV, Pillow."""

import math
import os
import re

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given
from hypothesis import strategies as st
from media_files import BROKEN, GOOD, LATE, clip, pictures, pyav_frames, write_broken, write_good
from PIL import Image, ImageOps

from jvr1.data.media import MediaError, load_media, probe
from jvr1.errors import UserError
from jvr1.model.families import FACTOR, RULES
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.model.qwen2_5_vl.frames import frame_indices, target_size

TOKEN = 28 * 28
ANY = PixelLimits(TOKEN, 400 * TOKEN)
EVERY = VideoSampling(frames=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_good(folder)
    write_broken(folder)
    return folder


# ------------------------------------------------------------------------------------------------ sampling


def reference_indices(total, video_fps, least=4, most=16):
    """qwen-vl-utils: `smart_nframes` and the decord reader, with torch."""
    count = min(min(max(total / video_fps * 2, least), most), total)
    count = math.floor(count / 2) * 2
    return torch.linspace(0, total - 1, count).round().long().numpy(), count / max(total, 1e-6) * video_fps


@given(st.integers(2, 40_000), st.sampled_from([1.0, 10.0, 23.976, 24.0, 29.97, 30.0, 59.94]))
def test_frames_are_those_of_the_reference(total, video_fps):
    indices, sample_fps = frame_indices(total, video_fps, VideoSampling())
    expected, expected_fps = reference_indices(total, video_fps)
    np.testing.assert_array_equal(indices, expected)
    assert sample_fps == pytest.approx(expected_fps)


@pytest.mark.parametrize(("total", "count"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (300, 16), (60, 4), (105, 6)])
def test_number_of_frames(total, count):
    assert len(frame_indices(total, 30.0, VideoSampling())[0]) == count


def test_one_frame_a_video():
    indices, sample_fps = frame_indices(1, 25.0, VideoSampling())
    assert indices.tolist() == [0]
    assert sample_fps == 25.0


@given(st.integers(1, 500), st.integers(1, 80))
def test_uniform_frames(total, frames):
    indices, _ = frame_indices(total, 30.0, VideoSampling(frames=frames))
    assert len(indices) == min(frames, total)
    assert len(set(indices.tolist())) == len(indices)
    assert indices[0] == 0
    assert frames == 1 or indices[-1] == total - 1


def test_start_and_end_bound_the_frames():
    sampling = VideoSampling(start=2.0, end=5.05)
    indices, sample_fps = frame_indices(100, 10.0, sampling)
    assert indices.tolist() == [20, 26, 32, 38, 44, 50]
    assert sample_fps == pytest.approx(6 / 31 * 10)
    assert frame_indices(100, 10.0, VideoSampling(start=9.0, end=99))[0].max() == 99
    assert frame_indices(100, 10.0, VideoSampling(start=3.0, end=3.05))[0].tolist() == [30]


@pytest.mark.parametrize("sampling", [VideoSampling(start=10.0), VideoSampling(start=3.02, end=3.08)])
def test_an_interval_without_frames_is_refused(sampling):
    with pytest.raises(MediaError) as raised:
        frame_indices(100, 10.0, sampling)
    assert raised.value.cause == "empty-interval"


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0.0},
        {"frames": 0},
        {"min_frames": 5, "max_frames": 5},
        {"min_frames": 0},
        {"start": -1.0},
        {"start": 3.0, "end": 3.0},
    ],
)
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UserError) as error:
        VideoSampling(**wrong)
    assert all(name in str(error.value) for name in wrong)


@pytest.mark.parametrize("wrong", [(0, 10, None), (20, 10, None), (1, 10, 0)])
def test_impossible_pixel_limits_are_refused(wrong):
    with pytest.raises(UserError, match="_pixels is "):
        PixelLimits(*wrong)


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("seen", "limits", "size"),
    [
        (Probe(360, 640, 300, 30.0), PixelLimits(128 * TOKEN, 128 * TOKEN), (224, 420)),
        (Probe(480, 640, 300, 30.0), PixelLimits(128 * TOKEN, 128 * TOKEN), (280, 364)),
        (Probe(90, 160, 300, 30.0), PixelLimits(128 * TOKEN, 128 * TOKEN), (252, 448)),
        (Probe(360, 640, 300, 30.0), PixelLimits(16 * TOKEN, 128 * TOKEN, 16 * 32 * TOKEN), (168, 280)),
        (Probe(360, 640, 300, 30.0), PixelLimits(64 * TOKEN, 128 * TOKEN, 16 * TOKEN), (168, 280)),
        (Probe(360, 640, 1, 0.0), PixelLimits(4 * TOKEN, 256 * TOKEN), (336, 588)),
        (Probe(28, 56, 1, 0.0), PixelLimits(TOKEN, 256 * TOKEN, TOKEN), (28, 56)),
    ],
)
def test_target_size(seen, limits, size):
    """Per-frame bound: max(min(max, 2 total / frames), 1.05 min) for videos, max alone for images."""
    assert target_size(seen, VideoSampling(), limits, FACTOR) == size


def test_a_video_frame_may_have_a_twentieth_more_than_the_least():
    """10 x 13 tokens lie between 128 and 1.05 x 128, 9 x 15 above; an image gets no such grace."""
    limits = PixelLimits(128 * TOKEN, 128 * TOKEN)
    assert target_size(Probe(280, 364, 300, 30.0), VideoSampling(), limits, FACTOR) == (280, 364)
    assert target_size(Probe(252, 420, 300, 30.0), VideoSampling(), limits, FACTOR) == (224, 392)
    assert target_size(Probe(280, 364, 1, 0.0), VideoSampling(), limits, FACTOR) == (252, 336)


def test_resize_is_the_reference_s():
    """torchvision's bicubic with antialias on uint8 rounds once, Pillow (and so we) after each direction. On pure noise
    the clipping in between shows: up to 7 levels; on pictures it does not."""
    picture = pictures(1, 90, 130)[0]
    for size in ((56, 84), (140, 196), (28, 280)):
        ours = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
        mode = tvf.InterpolationMode.BICUBIC
        theirs = tvf.resize(torch.from_numpy(picture).permute(2, 0, 1), list(size), mode, antialias=True)
        gap = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
        assert gap.max() <= 2
        assert gap.mean() < 0.2


# ------------------------------------------------------------------------------------------------ videos


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_frames_are_decoded_as_pyav_does(tmp_path, codec):
    path = clip(tmp_path / "clip.mkv", frames=20, codec=codec)
    media = load_media(path, "video", VideoSampling(frames=7), ANY, RULES)
    indices = frame_indices(20, 10.0, VideoSampling(frames=7))[0]
    np.testing.assert_array_equal(media.frames, pyav_frames(path)[indices])
    np.testing.assert_allclose(media.timestamps, indices / 10, atol=1e-3)
    assert media.seconds_per_step == pytest.approx(2 / (7 / 20 * 10))


@pytest.mark.parametrize("width", [2, 16, 48, 96, 144])
def test_narrow_widths(tmp_path, width):
    path = clip(tmp_path / "clip.mp4", height=32, width=width)
    assert probe(path, "video") == Probe(32, width, 12, 10.0)
    media = load_media(path, "video", EVERY, ANY, RULES)
    height, width = media.frames.shape[1:3]
    expected = [Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC) for f in pyav_frames(path)]
    np.testing.assert_array_equal(media.frames, np.stack(expected))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_display_rotation(tmp_path, rotation):
    path = clip(tmp_path / "clip.mp4", rotation=rotation)
    upright = np.rot90(pyav_frames(path), rotation // 90, axes=(1, 2))
    assert probe(path, "video") == Probe(*upright.shape[1:3], 12, 10.0)
    np.testing.assert_array_equal(load_media(path, "video", EVERY, ANY, RULES).frames, upright)


def test_uneven_frame_times(tmp_path):
    times = [0, 1, 2, 3, 10, 20, 30, 31]
    path = clip(tmp_path / "clip.mp4", frames=8, times=times)
    media = load_media(path, "video", EVERY, ANY, RULES)
    np.testing.assert_allclose(media.timestamps, np.array(times) / 10, atol=1e-3)


def test_part_of_a_video(tmp_path):
    path = clip(tmp_path / "clip.mp4", frames=40)
    media = load_media(path, "video", VideoSampling(fps=5, start=2.0, end=3.0), ANY, RULES)
    np.testing.assert_array_equal(media.frames, pyav_frames(path)[[20, 23, 27, 30]])
    np.testing.assert_allclose(media.timestamps, [2.0, 2.3, 2.7, 3.0], atol=1e-3)


def test_odd_size_one_frame_and_very_wide(tmp_path):
    clip(tmp_path / "odd.mp4", height=65, width=101, pixels="yuv444p")
    assert probe(tmp_path / "odd.mp4", "video") == Probe(65, 101, 12, 10.0)
    one = load_media(clip(tmp_path / "one.mp4", frames=1), "video", VideoSampling(), ANY, RULES)
    assert one.frames.shape == (1, 84, 112, 3)
    assert one.seconds_per_step == pytest.approx(0.2)
    wide = load_media(clip(tmp_path / "wide.mp4", height=16, width=1600), "video", VideoSampling(), ANY, RULES)
    assert wide.frames.shape == (4, 28, 1596, 3)


# ------------------------------------------------------------------------------------------------ images


def read(path, image, kind="PNG", **options):
    image.save(path, kind, **options)
    return load_media(path, "image", VideoSampling(), ANY, RULES)


def test_an_image_is_one_step_without_time(tmp_path):
    media = read(tmp_path / "a.png", Image.fromarray(pictures(1, 56, 84)[0]))
    np.testing.assert_array_equal(media.frames, pictures(1, 56, 84))
    assert (media.seconds_per_step, media.timestamps.tolist()) == (0.0, [0.0])
    assert probe(tmp_path / "a.png", "image") == Probe(56, 84, 1, 0.0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    rgba = np.zeros((28, 56, 4), np.uint8)
    rgba[:, 28:] = (200, 40, 0, 255)
    image = Image.fromarray(rgba).convert(mode)
    media = read(tmp_path / "a.png", image, **({"transparency": image.getpixel((0, 0))} if mode == "P" else {}))
    assert (media.frames[0, :, :28] == 255).all()
    opaque = np.asarray(Image.fromarray(rgba).convert(mode).convert("RGB"))[:, 28:]
    np.testing.assert_array_equal(media.frames[0, :, 28:], opaque)


def test_half_transparent_is_blended(tmp_path):
    media = read(tmp_path / "a.png", Image.new("RGBA", (28, 28), (0, 100, 200, 128)))
    assert np.abs(media.frames[0, 0, 0].astype(int) - [127, 177, 227]).max() <= 1


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 28 * 56).reshape(28, 56).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        media = read(tmp_path / "a.img", Image.fromarray(values), kind)
        np.testing.assert_array_equal(media.frames[0, ..., 0], (values / 257).round())


def test_float_images_are_scaled(tmp_path):
    values = np.linspace(0, 1, 28 * 56, dtype=np.float32).reshape(28, 56)
    media = read(tmp_path / "a.tiff", Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(media.frames[0, ..., 0], (values * 255.0).round())


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("L", "WEBP")])
def test_other_modes_as_pillow_shows_them(tmp_path, mode, kind):
    media = read(tmp_path / "a.img", Image.fromarray(pictures(1, 56, 84)[0]).convert(mode), kind)
    with Image.open(tmp_path / "a.img") as stored:
        np.testing.assert_array_equal(media.frames[0], np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = Image.fromarray(pictures(1, 56, 84)[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = read(tmp_path / "a.png", image, exif=exif)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(media.frames[0], np.asarray(ImageOps.exif_transpose(image)))
    seen = probe(tmp_path / "a.png", "image")
    assert (seen.height, seen.width) == media.frames.shape[1:3]


def test_first_picture_of_an_animation(tmp_path):
    first, second = (Image.new("RGB", (28, 28), colour) for colour in ("red", "blue"))
    media = read(tmp_path / "a.gif", first, "GIF", save_all=True, append_images=[second])
    assert media.frames.shape == (1, 28, 28, 3)
    assert media.frames[0, 0, 0].tolist() == [255, 0, 0]


# ------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("name", BROKEN)
def test_broken_media_are_named(folder, name):
    data_type, cause = BROKEN[name]
    with pytest.raises(MediaError) as raised:
        load_media(folder / name, data_type, VideoSampling(), ANY, RULES)
    assert raised.value.cause == cause
    assert "\n" not in str(raised.value)
    if name not in LATE:
        with pytest.raises(MediaError) as raised:
            probe(folder / name, data_type)
        assert raised.value.cause == cause


@pytest.mark.parametrize("name", ["zeroed.mp4", "picture.mp4"])
def test_a_broken_file_gives_the_same_message_each_time(folder, name):
    """Indices of the same files must be equal."""
    with pytest.raises(MediaError) as raised:
        probe(folder / name, "video")
    assert not re.search(r"\d\d:\d\d:\d\d", str(raised.value))


@pytest.mark.parametrize("name", GOOD)
def test_good_media_among_them(folder, name):
    seen = probe(folder / name, GOOD[name])
    media = load_media(folder / name, GOOD[name], EVERY, ANY, RULES)
    assert len(media.frames) == seen.frames
    assert media.frames.shape[1:3] == target_size(seen, EVERY, ANY, FACTOR)


def test_no_permission_to_read(folder, monkeypatch):
    """Root may read everything, so the refusal is feigned."""

    def refuse(*_):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(MediaError, match=r"unreadable: .*Permission denied"):
        probe(folder / "plain.mp4", "video")


def test_a_whole_clip_is_never_called_truncated(tmp_path):
    """Fragmented, of unknown length, followed by padding or foreign bytes."""
    for flags in ("+frag_keyframe+empty_moov", "+faststart", "+frag_keyframe+default_base_moof"):
        assert probe(clip(tmp_path / "a.mp4", movflags=flags), "video").frames == 12
    for tail in (bytes(100), b"\xff" * 100, b"TAG" + bytes(125)):
        whole = clip(tmp_path / "b.mp4")
        whole.write_bytes(whole.read_bytes() + tail)
        assert probe(whole, "video").frames == 12
