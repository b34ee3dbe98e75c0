"""Bytes harmed at random, by a generator that is seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Of which fields break: the ends of what 8, 16 and 32 bits hold."""


DIGITS = "9" * 5000
"""A number longer than Python reads; written in the place of a mark."""
MARK = "@digits@"


def place(rng: Rng, data: bytes, near: float = 1.0) -> int:
    return int(rng.integers(max(1, int(len(data) * near))))


def cut(rng: Rng, data: bytes) -> bytes:
    return data[: place(rng, data)]


def flip(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 40))):
        changed[place(rng, data)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def flip_head(rng: Rng, data: bytes) -> bytes:
    return flip(rng, data[:256]) + data[256:]


def zeros(rng: Rng, data: bytes) -> bytes:
    at, length = place(rng, data), int(rng.integers(1, 2000))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def zero_tail(rng: Rng, data: bytes) -> bytes:
    at = place(rng, data)
    return data[:at] + bytes(len(data) - at)


def more_zeros(rng: Rng, data: bytes) -> bytes:
    return data + bytes(int(rng.integers(1, 200_000)))


def numbers(rng: Rng, data: bytes) -> bytes:
    """A few fields of 1, 2, 4 or 8 bytes, most near the beginning."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        width, at = int(rng.choice((1, 2, 4, 8))), place(rng, data, float(rng.choice((0.05, 1.0))))
        value = int(rng.choice(NUMBERS)) & ((1 << 8 * width) - 1)
        changed[at : at + width] = value.to_bytes(width, "big" if rng.integers(2) else "little")
    return bytes(changed[: len(data)])


def dropped(rng: Rng, data: bytes) -> bytes:
    at = place(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 500)) :]


def inserted(rng: Rng, data: bytes) -> bytes:
    at = place(rng, data)
    return data[:at] + rng.bytes(int(rng.integers(1, 500))) + data[at:]


def repeated(rng: Rng, data: bytes) -> bytes:
    at = place(rng, data)
    return data[:at] + data[at : at + 400] * int(rng.integers(2, 50)) + data[at + 400 :]


def noise(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(0, 64))] + rng.bytes(int(rng.integers(1, 5000)))


def unharmed(rng: Rng, data: bytes) -> bytes:
    return data


HARMS: tuple[Callable[[Rng, bytes], bytes], ...] = (
    cut, flip, flip_head, zeros, zero_tail, more_zeros, numbers, numbers, dropped, inserted, repeated, noise, unharmed,
)  # fmt: skip


def harm(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """One or two of them, and their names."""
    names = []
    for _ in range(int(rng.choice((1, 1, 2)))):
        how = HARMS[int(rng.integers(len(HARMS)))]
        data = how(rng, data) if data else data
        names.append(how.__name__)
    return data, "+".join(names)
