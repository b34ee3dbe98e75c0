"""The frames a model saw, to look at: one PNG each, or all on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from jvr1.data.media import Media
from jvr1.errors import UserError

FRAMES_A_ROW, FRAME_GAP, FRAME_CAPTION = 8, 6, 16
LEAST_WIDTH = 112
"""Smaller frames are shown a whole number of times larger, so that their captions fit."""


def write_frames(target: str, media: Sequence[Media]) -> None:
    """A contact sheet where `target` ends in .png, else a folder with each frame as it was seen, to the pixel.

    Raises UserError.
    """
    path = Path(target)
    try:
        if path.suffix.lower() == ".png":
            path.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(media).save(path)
            return
        path.mkdir(parents=True, exist_ok=True)
        for number, (frame, caption) in enumerate(_frames(media)):
            frame.save(path / f"frame-{number:03d}-{caption.replace(' ', '-')}.png")
    except OSError as error:
        raise UserError(f"--frames-out {target} cannot be written: {error.strerror or error}") from None


def contact_sheet(media: Sequence[Media]) -> Image.Image:
    """Frames row by row, each with its time in the video, or its number among the images."""
    cells = [(_large(frame), caption) for frame, caption in _frames(media)]
    width, height = (max(sizes) + FRAME_GAP for sizes in zip(*(frame.size for frame, _ in cells), strict=True))
    columns = min(FRAMES_A_ROW, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + FRAME_GAP, rows * (height + FRAME_CAPTION) + FRAME_GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (frame, caption) in enumerate(cells):
        left, top = FRAME_GAP + i % columns * width, FRAME_GAP + i // columns * (height + FRAME_CAPTION)
        draw.text((left, top), caption, fill="black")
        sheet.paste(frame, (left, top + FRAME_CAPTION))
    return sheet


def _frames(media: Sequence[Media]) -> list[tuple[Image.Image, str]]:
    out = []
    for number, one in enumerate(media, 1):
        for frame, time in zip(one.frames, one.timestamps, strict=True):
            out.append((Image.fromarray(frame), f"{time:.2f} s" if one.seconds_per_step else f"image {number}"))
    return out


def _large(frame: Image.Image) -> Image.Image:
    zoom = max(1, -(-LEAST_WIDTH // frame.width))
    return frame.resize((frame.width * zoom, frame.height * zoom), Image.Resampling.NEAREST)
