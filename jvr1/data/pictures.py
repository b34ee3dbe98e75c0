"""Pictures from disk to RGB as people see them: sizes, orientation, transparency, depths beyond 8 bits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jvr1.data.damage import picture_damage
from jvr1.data.memory import MAX_DECODED_MB, check_memory, exceeded, picture_bytes
from jvr1.errors import MediaError

MAX_FRAME_PIXELS = 100_000_000
"""Larger frames are refused before they are decoded (300 MB in memory)."""

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What Pillow may open; others, such as EPS, run outside programs."""

CHECKED_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF")
"""Formats whose files are looked through for missing pixels."""
DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bits a value of deeper pictures, as cameras and scanners fill their 16 or 32."""
BAND_PIXELS = 1 << 20


def size(path: str | os.PathLike[str], max_decoded_mb: int = MAX_DECODED_MB) -> tuple[int, int]:
    """Height and width in pixels as shown. Only a PNG is decoded, whose EXIF may follow its pixels.

    Raises MediaError.
    """
    with _open(path, max_decoded_mb) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(0x0112, 1)
        except Exception as error:
            raise _failure(path, error, max_decoded_mb) from None
        # Pillow turns a TIFF by itself and has its size turned from the start
        turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
    return (width, height) if turned else (height, width)


def read_picture(path: str | os.PathLike[str], max_decoded_mb: int = MAX_DECODED_MB) -> Image.Image:
    """The first frame in RGB: upright by EXIF, transparency on white, other depths scaled to 8 bits. Takes at most
    about 8 bytes a pixel. Raises MediaError."""
    with _open(path, max_decoded_mb) as image:
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
        except Exception as error:
            raise _failure(path, error, max_decoded_mb) from None


def refuse_animation(path: str | os.PathLike[str]) -> None:
    """Raises MediaError for a WebP named as a video: no decoder of videos reads it."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        raise MediaError("not-a-video", f"{path} is a WebP, which is read as an image (an animation's first picture)")


def _open(path: str | os.PathLike[str], max_decoded_mb: int) -> Image.Image:
    """An image file whose header has been read. Raises MediaError."""
    try:
        length = os.stat(path).st_size
        check_memory(path, f"{length} bytes", length, max_decoded_mb)  # files are read whole, some byte by byte
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            Image.init()  # else Pillow stumbles over a format whose plugin it has not loaded
            image = Image.open(path, formats=[kind for kind in IMAGE_FORMATS if kind in Image.OPEN])
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError("too-large", f"{path}: {error}") from None
    except Image.UnidentifiedImageError:
        raise MediaError("not-an-image", f"{path} is in no known image format, or cut short") from None
    except Exception as error:  # plugins raise what they like on a damaged header
        raise _failure(path, error, max_decoded_mb) from None
    if image.width * image.height > MAX_FRAME_PIXELS:
        image.close()
        raise MediaError("too-large", f"{path} has {image.width}x{image.height} pixels")
    needed = picture_bytes(image.width, image.height, len(image.getbands()), image.format)
    check_memory(path, f"{image.width}x{image.height} pixels", needed, max_decoded_mb)
    if image.format in CHECKED_FORMATS and (found := picture_damage(Path(path).read_bytes(), image.format)):
        image.close()
        raise MediaError("truncated" if found.startswith("truncated") else "corrupt", f"{path}: {found}")
    return image


def _failure(path: str | os.PathLike[str], error: Exception, max_decoded_mb: int) -> MediaError:
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return exceeded(path, max_decoded_mb)
    cut = "truncated" in str(error).lower()
    return MediaError("truncated" if cut else "corrupt", f"{path}: {error}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Row by row, so that no second copy in another form is made of a large picture."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    deep = image.mode == "F" or image.mode.startswith("I")
    top = _white(max((_brightest(band) for _, band in _bands(image)), default=0.0), image.mode) if deep else 255.0
    out = Image.new("RGB", image.size)
    for row, band in _bands(image):
        out.paste(_flat(_scaled(band, top) if deep else band), (0, row))
    return out


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, BAND_PIXELS // image.width)
    for row in range(0, image.height, rows):
        yield row, image.crop((0, row, image.width, min(row + rows, image.height)))


def _brightest(band: Image.Image) -> float:
    values = np.asarray(band)
    return float(values.max(initial=0, where=np.isfinite(values)))


def _white(brightest: float, mode: str) -> float:
    """The value that is shown white: of the depths in use the least that holds the brightest value. A picture of 12
    bits in 16 would else be nearly black; floats are from 0 to 1 unless one is above."""
    tops = (*((1.0,) if mode == "F" else ()), *(2.0**bits - 1 for bits in DEPTHS))
    return next((top for top in tops if brightest <= top), max(brightest, 1.0))


def _scaled(band: Image.Image, top: float) -> Image.Image:
    """What is no number is black."""
    values = np.nan_to_num(np.asarray(band, np.float64), nan=0.0, posinf=top, neginf=0.0)
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))


def _flat(band: Image.Image) -> Image.Image:
    if band.has_transparency_data:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
    return band.convert("RGB")
