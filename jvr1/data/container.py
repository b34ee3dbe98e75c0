"""Whether a video file is whole: the length its container declares against the length it has.

A clip cut short after its header decodes without an error to fewer frames, and a question about its end would
then be asked of its beginning. MP4/MOV, Matroska/WebM and AVI say at the start how long they are.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_MP4_BOXES = frozenset(b"ftyp moov mdat moof free skip wide uuid udta meta mfra sidx styp emsg pdin".split())
_MP4_MEDIA = frozenset((b"moov", b"mdat", b"moof"))


def missing_bytes(file: BinaryIO, size: int) -> int:
    """How many bytes a container of `size` bytes lacks at its end: 0 if whole or of a kind that does not say.

    An MP4 without its index (moov) lacks at least one byte, for nothing can be read from it.
    """
    head = file.read(16)
    if head[4:8] in _MP4_BOXES:
        return _mp4(file, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(file, size)
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        declared = struct.unpack("<I", head[4:8])[0]
        return max(0, declared + 8 - size) if declared != 0xFFFFFFFF else 0
    return 0


def zero_tail(file: BinaryIO, size: int) -> int:
    """How many zero bytes the file ends in at least, 0 where they are few: the part of a download that never came.

    Of an MP4 its packets show it (`moov` may lie before or after what is missing, and padding is allowed).
    """
    file.seek(0)
    if file.read(8)[4:] in _MP4_BOXES:
        return 0
    zeros, block, many = 0, 1 << 16, max(4096, size // 20)
    while zeros < min(many, size):  # a file of holes may have terabytes of them
        length = min(block, size - zeros)
        file.seek(size - zeros - length)
        filled = len(file.read(length).rstrip(b"\0"))
        zeros += length - filled
        if filled:
            break
    return zeros if zeros >= many else 0


def _mp4(file: BinaryIO, size: int) -> int:
    at, indexed = 0, False
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = struct.unpack(">I4s", head[:8])
        if kind not in _MP4_BOXES:
            break  # padding or foreign bytes after the last box
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        indexed |= kind == b"moov"
        if kind in _MP4_MEDIA and at + length > size:
            return at + length - size
        if length < 8:
            break  # 0: up to the end of the file
        at += length
    return 0 if indexed else 1


def _matroska(file: BinaryIO, size: int) -> int:
    def element(at: int, id_bytes: int) -> tuple[int, int | None]:
        """Where the content of the element at `at` begins, and its length (None: unknown, as in a live stream)."""
        file.seek(at + id_bytes)
        head = file.read(8).ljust(8, b"\xff")
        width = 9 - head[0].bit_length()
        if width > 8:
            return at + id_bytes + 8, None
        value = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
        return at + id_bytes + width, None if value == (1 << 7 * width) - 1 else value

    at, length = element(0, 4)
    file.seek(at + (length or 0))
    if length is None or file.read(4) != b"\x18\x53\x80\x67":
        return 0
    at, length = element(at + length, 4)
    return max(0, at + length - size) if length is not None else 0
