"""Pictures as people see them, and those that are not whole. Oracles: Pillow's own reading, exact numbers."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from media_files import pictures as moving
from media_files import png
from PIL import Image, ImageOps

from jvr1.data import pictures
from jvr1.data.media import load_media, probe
from jvr1.errors import MediaError
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

ANY = PixelLimits(784, 400 * 784)


def grainy(height=300, width=400, seed=0):
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return Image.fromarray((moving(1, height, width)[0] + grain).clip(0, 255).astype(np.uint8))


def bytes_of(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(tmp_path, data):
    path = tmp_path / "picture"
    path.write_bytes(data)
    return np.asarray(pictures.read_picture(path))


def refusal(tmp_path, data):
    """The cause by which reading and probing refuse it, alike."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    causes = []
    for way in (pictures.read_picture, pictures.size):
        with pytest.raises(MediaError) as raised:
            way(path)
        causes.append(raised.value.cause)
    assert causes[0] == causes[1]
    return causes[0]


# ------------------------------------------------------------------------------------------------ as people see them

WAYS = {
    "JPEG": ("JPEG", {}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"lossless": True}),
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, JPEG": ("TIFF", {"compression": "jpeg"}),
    "AVIF": ("AVIF", {}),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("way", WAYS)
def test_orientation_is_probed_as_loaded(tmp_path, way, orientation):
    kind, options = WAYS[way]
    image = Image.fromarray(moving(1, 56, 84)[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").write_bytes(bytes_of(image, kind, exif=exif, **options))
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    media = load_media(tmp_path / "a", "image", VideoSampling(), ANY, RULES)
    seen = probe(tmp_path / "a", "image")
    assert (seen.height, seen.width) == media.frames.shape[1:3] == wanted.shape[:2]
    assert np.abs(media.frames[0] - wanted).mean() < (6 if kind in ("JPEG", "AVIF") or "JPEG" in way else 1e-9)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_a_float_that_is_no_number_spoils_its_pixel_alone(tmp_path, odd, top):
    values = (np.linspace(0.2, 0.8, 56 * 84) * top).astype(np.float32).reshape(56, 84)
    plain = read(tmp_path, bytes_of(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(plain[..., 0], (values.astype(np.float64) * (255 / top)).round())
    values[3, 5] = odd
    got = read(tmp_path, bytes_of(Image.fromarray(values), "TIFF")).copy()
    assert got[3, 5].tolist() == [255 if odd == np.inf else 0] * 3
    got[3, 5] = plain[3, 5]
    np.testing.assert_array_equal(got, plain)


def test_nothing_but_odd_floats_is_black(tmp_path):
    values = np.full((28, 28), np.nan, np.float32)
    assert not read(tmp_path, bytes_of(Image.fromarray(values), "TIFF")).any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_depth_in_use_reaches_from_black_to_white(tmp_path, bits, kind):
    """A camera's 12 bits in 16 would be nearly black."""
    values = np.linspace(0, 2**bits - 1, 56 * 84).round().astype(np.uint16).reshape(56, 84)
    got = read(tmp_path, bytes_of(Image.fromarray(values), kind))
    np.testing.assert_array_equal(got[..., 1], (values / (2**bits - 1) * 255).round())


def test_a_black_deep_picture_is_black(tmp_path):
    assert not read(tmp_path, bytes_of(Image.fromarray(np.zeros((28, 28), np.uint16)), "PNG")).any()


def test_large_pictures_are_read_band_by_band_to_the_same(tmp_path, monkeypatch):
    rgba = np.random.default_rng(0).integers(0, 256, (70, 90, 4), np.uint8)
    deep = np.random.default_rng(0).integers(0, 4096, (70, 90)).astype(np.uint16)
    palette = grainy(70, 90).quantize(16)
    files = [
        bytes_of(Image.fromarray(rgba), "PNG"),
        bytes_of(Image.fromarray(deep), "PNG"),
        bytes_of(palette, "PNG", transparency=3),
        bytes_of(grainy(70, 90).convert("CMYK"), "JPEG"),
        bytes_of(grainy(70, 90), "PNG", transparency=(1, 2, 3)),
    ]
    whole = [read(tmp_path, data) for data in files]
    monkeypatch.setattr(pictures, "BAND_PIXELS", 1000)
    for data, wanted in zip(files, whole, strict=True):
        np.testing.assert_array_equal(read(tmp_path, data), wanted)


PEAK = """
import resource, sys
from jvr1.data import pictures
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(pictures.read_picture(sys.argv[1]).size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_small_file_of_many_pixels_takes_a_few_bytes_a_pixel(tmp_path):
    """27 bytes a pixel of 16 bits before, 2.7 GB at the limit."""
    side = 5000
    (tmp_path / "a.png").write_bytes(bytes_of(Image.fromarray(np.zeros((side, side), np.uint16)), "PNG"))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.png")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith(f"({side}, {side}) ")
    assert int(text.split()[-1]) * 1024 < 10 * side**2


# ------------------------------------------------------------------------------------------------ animations


def test_an_animated_webp_is_its_first_picture_and_no_video(tmp_path):
    first, second = (Image.new("RGB", (56, 28), colour) for colour in ("red", "blue"))
    (tmp_path / "a.webp").write_bytes(bytes_of(first, "WEBP", save_all=True, append_images=[second], lossless=True))
    media = load_media(tmp_path / "a.webp", "image", VideoSampling(), ANY, RULES)
    assert media.frames.shape == (1, 28, 56, 3)
    assert media.frames[0, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(MediaError, match=r"not-a-video: .* is a WebP, which is read as an image"):
        probe(tmp_path / "a.webp", "video")


# ------------------------------------------------------------------------------------------------ not whole

CODED = {
    "JPEG": ("JPEG", {}),
    "JPEG, optimised": ("JPEG", {"optimize": True}),
    "JPEG, fine": ("JPEG", {"quality": 98, "subsampling": 0}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "PNG": ("PNG", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "TIFF, JPEG": ("TIFF", {"compression": "jpeg"}),
    "GIF": ("GIF", {}),
    "AVIF": ("AVIF", {}),
}
STORED = {
    "BMP": ("BMP", {}),
    "PPM": ("PPM", {}),
    "TIFF": ("TIFF", {}),
    "JPEG 2000": ("JPEG2000", {}),
    "WebP": ("WEBP", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", CODED | STORED)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_picture_cut_short_is_refused(tmp_path, way, share):
    kind, options = (CODED | STORED)[way]
    data = bytes_of(grainy(), kind, **options)
    path = tmp_path / "picture"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError) as raised:
        pictures.read_picture(path)
    assert raised.value.cause in ("truncated", "corrupt", "not-an-image")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", CODED)
@pytest.mark.parametrize(("begin", "end"), [(0.5, 1.0), (0.8, 1.0), (0.4, 0.6)])
def test_zeros_in_coded_pixels_are_refused(tmp_path, way, begin, end):
    """What an unfinished download or a lost block of a disk leaves."""
    kind, options = CODED[way]
    data = bytearray(bytes_of(grainy(), kind, **options))
    begin, end = int(begin * len(data)), int(end * len(data))
    data[begin:end] = bytes(end - begin)
    path = tmp_path / "picture"
    path.write_bytes(data)
    with pytest.raises(MediaError) as raised:
        pictures.read_picture(path)
    assert raised.value.cause in ("truncated", "corrupt", "not-an-image")


FLAT = ["white", "red", (1, 2, 3)]
WHOLE = {
    **CODED,
    **STORED,
    "JPEG, progressive": ("JPEG", {"progressive": True}),
    "JPEG, coarse": ("JPEG", {"quality": 1, "optimize": True}),
    "JPEG, progressive, coarse": ("JPEG", {"progressive": True, "quality": 1}),
    "WebP, coarse": ("WEBP", {"quality": 0}),
    "PNG, stored": ("PNG", {"compress_level": 0}),
}


@pytest.mark.parametrize("way", WHOLE)
def test_flat_pictures_are_whole(tmp_path, way):
    """Codes of zeros, in thousands, are what an encoder makes of one colour."""
    kind, options = WHOLE[way]
    for colour in FLAT:
        image = Image.new("RGB", (1600, 1200), colour)
        if colour == "red":
            image.paste(grainy(), (0, 0))
        got = read(tmp_path, bytes_of(image, kind, **options))
        assert got.shape == (1200, 1600, 3)
        assert np.abs(got[800:].astype(int) - np.asarray(image)[800:]).max() <= 40


@pytest.mark.parametrize("way", [("JPEG", {}), ("JPEG", {"optimize": True}), ("PNG", {"optimize": True})])
@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_flat_pictures_of_one_channel_are_whole(tmp_path, way, mode):
    kind, options = way
    if kind == "JPEG" and mode == "P":
        mode = "CMYK"
    image = Image.new("RGB", (1600, 1200), "white").convert(mode)
    assert read(tmp_path, bytes_of(image, kind, **options)).shape == (1200, 1600, 3)


@pytest.mark.parametrize("tail", [bytes(5000), b"\xff" * 100, b"a second file"])
def test_what_follows_a_whole_picture_does_not_matter(tmp_path, tail):
    for kind in ("JPEG", "PNG", "GIF"):
        data = bytes_of(grainy(), kind)
        np.testing.assert_array_equal(read(tmp_path, data + tail), read(tmp_path, data))


def test_a_png_of_fewer_rows_than_it_says_is_refused(tmp_path):
    """10 of 10,000 rows, in blocks that are right in themselves; interlaced ones too."""
    assert refusal(tmp_path, png(100, 10_000, bytes(301 * 10))) == "truncated"
    assert refusal(tmp_path, png(100, 100, bytes(301 * 99 + 300))) == "truncated"
    assert read(tmp_path, png(100, 100, bytes(301 * 100))).shape == (100, 100, 3)
    data = bytearray(png(9, 9, interlaced_bytes(9, 9)))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    assert read(tmp_path, bytes(data)).shape == (9, 9, 3)
    data = bytearray(png(9, 9, interlaced_bytes(9, 9)[:-1]))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    assert refusal(tmp_path, bytes(data)) == "truncated"


def interlaced_bytes(height, width):
    """Zeros, as many as Adam7's seven passes have, counted on the 8 x 8 pattern of the PNG specification."""
    pattern = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]
    total = 0
    for number in "1234567":
        places = [(y, x) for y in range(height) for x in range(width) if pattern[y % 8][x % 8] == number]
        total += 3 * len(places) + len({y for y, _ in places})
    return bytes(total)


@pytest.mark.parametrize("at", [0.3, 0.7])
def test_a_turned_bit_in_a_png_is_refused(tmp_path, at):
    data = bytearray(bytes_of(grainy(), "PNG"))
    data[int(at * len(data))] ^= 4
    assert refusal(tmp_path, bytes(data)) == "corrupt"
