"""Pictures from disk to RGB as people see them: sizes, orientation, transparency, depths beyond 8 bits."""

from __future__ import annotations

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from jvr1.errors import MediaError

MAX_FRAME_PIXELS = 100_000_000
"""Larger frames are refused before they are decoded (300 MB in memory)."""

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What Pillow may open; others, such as EPS, run outside programs."""


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels as shown. Only a PNG is decoded, whose EXIF may follow its pixels.

    Raises MediaError.
    """
    with _open(path) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise _failure(path, error) from None
    return (width, height) if turned else (height, width)


def read(path: str | os.PathLike[str]) -> Image.Image:
    """The first frame in RGB: upright by EXIF, transparency on white, 16 bits scaled to 8. Raises MediaError."""
    with _open(path) as image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise _failure(path, error) from None


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """An image file whose header has been read. Raises MediaError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            Image.init()  # else Pillow stumbles over a format whose plugin it has not loaded
            image = Image.open(path, formats=[kind for kind in IMAGE_FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise MediaError("too-large", f"{path}: {error}") from None
    except Image.UnidentifiedImageError:
        raise MediaError("not-an-image", f"{path} is in no known image format, or cut short") from None
    except Exception as error:  # plugins raise what they like on a damaged header
        raise _failure(path, error) from None
    if image.width * image.height > MAX_FRAME_PIXELS:
        image.close()
        raise MediaError("too-large", f"{path} has {image.width}x{image.height} pixels")
    return image


def _failure(path: str | os.PathLike[str], error: Exception) -> MediaError:
    cut = "truncated" in str(error).lower()
    return MediaError("truncated" if cut else "corrupt", f"{path}: {error}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
