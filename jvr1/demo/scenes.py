"""Drawing: squares, shapes, bars and glyphs on frames of 56x56 pixels. Pure numpy, the same pixels everywhere.

Every edge lies on an even pixel: H.264 keeps colour at half the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

SIZE, MARGIN = 56, 4
"""Side of a frame and width of its border, in pixels."""
FRAMES, FPS = 8, 2
"""Frames of a clip and frames a second: sampling at the reference's 2 fps takes every frame once."""
SQUARE = 18
NOISE = 5.0
BACKGROUND = (32, 32, 32)
PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (175, 60, 200),
    "white": (240, 240, 240),
}
GLYPHS = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "X": (17, 17, 10, 4, 10, 17, 17),
}
"""Letters as seven rows of five bits."""

Frame = UInt8[np.ndarray, "56 56 3"]
Frames = UInt8[np.ndarray, "N 56 56 3"]


def canvas(border: str | None = None) -> Frame:
    """An empty frame, with a border of a named colour where one is given."""
    frame = np.empty((SIZE, SIZE, 3), np.uint8)
    frame[:] = PALETTE[border] if border else BACKGROUND
    frame[MARGIN:-MARGIN, MARGIN:-MARGIN] = BACKGROUND
    return frame


def block(frame: Frame, colour: str, top: int, left: int, height: int, width: int) -> Frame:
    """Paints a rectangle and returns the frame."""
    frame[top : top + height, left : left + width] = PALETTE[colour]
    return frame


def random_spot(rng: np.random.Generator, height: int = SQUARE, width: int = SQUARE) -> tuple[int, int]:
    """Top and left of a random spot, at even pixels, for something of that size inside the border."""
    spots = [(SIZE - 2 * MARGIN - side) // 2 for side in (height, width)]
    top, left = (MARGIN + 2 * int(rng.integers(spot + 1)) for spot in spots)
    return top, left


def squares_in_turn(rng: np.random.Generator, colours: Sequence[str], border: str | None) -> Frames:
    """Squares one after the other at random places, each for an equal share of the clip."""
    frames = []
    for colour in colours:
        spot = random_spot(rng)
        for _ in range(FRAMES // len(colours)):
            frames.append(block(canvas(border), colour, *spot, SQUARE, SQUARE))
    return np.stack(frames)


def moving_square(rng: np.random.Generator, colour: str, direction: str) -> Frames:
    """A square that goes left, right, up or down. A path and its reverse are equally likely: 50% time-blind."""
    step = int(rng.choice((2, 4)))
    along = 2 * int(rng.integers((SIZE - 2 * MARGIN - SQUARE - step * (FRAMES - 1)) // 2 + 1))
    path = MARGIN + along + step * np.arange(FRAMES)
    if direction in ("left", "up"):
        path = path[::-1]
    across = random_spot(rng)[0]
    spots = [(across, int(p)) if direction in ("left", "right") else (int(p), across) for p in path]
    return np.stack([block(canvas(), colour, *spot, SQUARE, SQUARE) for spot in spots])


def blinking_square(rng: np.random.Generator, colour: str, lit: Sequence[bool]) -> Frames:
    """A square that stays where it is and shows in the frames where `lit` is true."""
    spot = random_spot(rng)
    return np.stack([block(canvas(), colour, *spot, SQUARE, SQUARE) if on else canvas() for on in lit])


def changing_square(rng: np.random.Generator, colours: Sequence[str]) -> Frames:
    """A square that stays where it is, in each second of the clip in one of the colours."""
    spot = random_spot(rng)
    seconds = [block(canvas(), colour, *spot, SQUARE, SQUARE) for colour in colours]
    return np.stack(seconds).repeat(FPS, axis=0)


def scattered_squares(rng: np.random.Generator, count: int) -> Frame:
    """`count` small squares of random colours in different cells of a 3x3 grid."""
    frame, cell, side = canvas(), 16, 10
    for spot in rng.choice(9, count, replace=False):
        row, column = divmod(int(spot), 3)
        top, left = (MARGIN + cell * at + 2 * int(rng.integers((cell - side) // 2)) for at in (row, column))
        block(frame, str(rng.choice(list(PALETTE))), top, left, side, side)
    return frame


def shape(rng: np.random.Generator, colour: str, kind: str) -> Frame:
    """A square, a circle or a cross of 22 pixels."""
    frame, side = canvas(), 22
    top, left = random_spot(rng, side, side)
    if kind == "square":
        return block(frame, colour, top, left, side, side)
    if kind == "cross":
        block(frame, colour, top + 8, left, 6, side)
        return block(frame, colour, top, left + 8, side, 6)
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    inside = rows**2 + columns**2 <= (side / 2) ** 2
    frame[top : top + side, left : left + side][inside] = PALETTE[colour]
    return frame


def bar(rng: np.random.Generator, colour: str, length: int) -> Frame:
    """A level bar of 4 pixels a unit, `length` in 1..9."""
    return block(canvas(), colour, *random_spot(rng, 8, 4 * length), 8, 4 * length)


def writing(rng: np.random.Generator, text: str, colour: str) -> Frame:
    """Glyphs of 10x14 pixels in a row, two pixels apart."""
    frame = canvas()
    top, left = random_spot(rng, 14, 12 * len(text) - 2)
    for i, letter in enumerate(text):
        bits = np.array([[row >> (4 - column) & 1 for column in range(5)] for row in GLYPHS[letter]], bool)
        at = left + 12 * i
        frame[top : top + 14, at : at + 10][bits.repeat(2, 0).repeat(2, 1)] = PALETTE[colour]
    return frame


def noisy(rng: np.random.Generator, frames: Frames) -> Frames:
    """Adds normal noise (standard deviation `NOISE`), a fresh draw for each pixel and frame."""
    noise: Float[np.ndarray, "N 56 56 3"] = rng.standard_normal(frames.shape, np.float32) * np.float32(NOISE)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
