"""Pictures that are not whole though decoders take them: pixels that are missing, or zeros where none can be.

PNG: the inflated bytes are counted and checked. JPEG: each scan must end in a marker. JPEG, lossless WebP and AVIF: a
long run of zero bytes in coded pixels, as an unfinished download or a lost block leaves it. Where the pixels themselves
are stored (BMP, PPM, plain TIFF) zeros are black; in lossy WebP they are a flat area, in JPEG 2000 empty packets: there
it cannot be told.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import starmap

ZERO_RUN = 256
"""Bytes: in these streams, whose zeros are symbols too, so many in a row do not come about."""

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_FLAT_FRAMES = range(0xC0, 0xC3)
"""SOF markers of Huffman-coded JPEG: baseline, extended, progressive."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, step of columns, step of rows of each pass."""


def picture_damage(data: bytes, kind: str) -> str | None:
    """What is wrong with a picture file of a format as Pillow names it; None: nothing that can be seen."""
    try:
        if kind == "PNG":
            return _png(data)
        if kind in ("JPEG", "MPO"):
            return _jpeg(data)
        if kind == "WEBP":
            return _zeros(data, _riff(data))
        if kind == "AVIF":
            return _zeros(data, _boxes(data))
    except (IndexError, KeyError, struct.error):
        return "truncated: its structure ends too soon"
    return None


def _zeros(data: bytes, parts: Iterator[tuple[int, int]]) -> str | None:
    for start, end in parts:
        at = data.find(bytes(ZERO_RUN), start, end)
        if at >= 0:
            return f"its coded pixels are zeros from byte {at} on"
    return None


def _riff(data: bytes) -> Iterator[tuple[int, int]]:
    """Coded pixels of a lossless WebP, those of its frames too."""
    yield from _riff_chunks(data, 12, len(data))


def _riff_chunks(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int]]:
    while at + 8 <= stop:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start, end = at + 8, min(at + 8 + size, stop)
        if name == b"VP8L":
            yield start, end
        elif name == b"ANMF":
            yield from _riff_chunks(data, start + 16, end)
        at = start + size + size % 2


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    """The media data of an AVIF."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        size = size or len(data) - at
        if size < head:
            return
        if name == b"mdat":
            yield at + head, min(at + size, len(data))
        at += size


# --- PNG


def _png(data: bytes) -> str | None:
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)

    def filtered(x: int, y: int, across: int, down: int) -> int:
        columns, rows = -(-max(width - x, 0) // across), -(-max(height - y, 0) // down)
        return rows * (1 + -(-columns * bits // 8)) if columns else 0

    wanted, held = sum(starmap(filtered, passes)), 0
    stream = zlib.decompressobj()
    for chunk, fault in _idat(data):
        if fault:
            return fault
        rest = chunk
        try:
            while rest and not stream.eof:
                held += len(stream.decompress(rest, 1 << 20))
                rest = stream.unconsumed_tail
        except zlib.error as error:
            return f"its pixels: {error}"
    return None if held >= wanted else f"truncated: it holds {held} of {wanted} bytes of pixels"


def _idat(data: bytes) -> Iterator[tuple[bytes, str | None]]:
    """Blocks of pixels, and whether they are not as written."""
    at = 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunk, checksum = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if name == b"IEND":
            return
        if name == b"IDAT":
            if len(checksum) < 4:
                yield chunk, "truncated: a block of its pixels is cut"
            right = zlib.crc32(chunk, zlib.crc32(name)).to_bytes(4, "big")
            yield chunk, None if checksum == right else "a block of its pixels does not match its checksum"
        at += 12 + size


# --- JPEG


def _jpeg(data: bytes) -> str | None:
    """Of its first picture. Zeros in a scan may be a flat area where the tables give it codes of zeros."""
    first: dict[int, int] = {}  # of each Huffman table (its class and number) the symbol coded as zeros
    frame, at = 0, 2
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            return "truncated: it has no end"
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return None
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + size]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
        if marker == 0xC4:
            first |= _tables(body)
        at += size
        if marker == 0xDA:
            ended = _MARKER.search(data, at)
            zeros = data.find(bytes(ZERO_RUN), at, ended.start() if ended else len(data))
            if zeros >= 0 and frame in _FLAT_FRAMES and not _may_be_zeros(body, first):
                return f"its coded pixels are zeros from byte {zeros} on"


def _tables(body: bytes) -> dict[int, int]:
    at, first = 0, {}
    while at + 17 <= len(body):
        count = sum(body[at + 1 : at + 17])
        first[body[at]] = body[at + 17]
        at += 17 + count
    return first


def _may_be_zeros(scan: bytes, first: dict[int, int]) -> bool:
    """Whether zeros mean "no difference, no more coefficients" in all components of a scan."""
    count = scan[0]
    tables = [scan[2 + 2 * i] for i in range(count)]
    begin, end, bits = scan[1 + 2 * count], scan[2 + 2 * count], scan[3 + 2 * count]
    refines = bits >> 4 > 0
    steady = refines or all(first[table >> 4] == 0 for table in tables)
    if begin == 0 and end == 0:  # progressive, first coefficients
        return steady
    empty = all(first[0x10 | table & 15] & 15 == 0 for table in tables)
    return empty and (steady or begin > 0)
