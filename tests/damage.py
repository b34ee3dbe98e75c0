"""Ways to harm a file, and a folder's files one at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def flip(file: Path) -> None:
    """Turns over all bits of eight bytes in the middle."""
    content = bytearray(file.read_bytes())
    middle = max(len(content) // 2 - 4, 0)
    content[middle : middle + 8] = bytes(b ^ 0xFF for b in content[middle : middle + 8])
    file.write_bytes(content)


HARMS: dict[str, Callable[[Path], None]] = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "deleted": Path.unlink,
    "flipped": flip,
}


def harmed(folder: Path, part: str, scratch: Path) -> Iterator[tuple[str, str, Path]]:
    """For each file under folder/part and each harm: the file's name in the folder, the harm, a copy with that harm."""
    files = sorted(file.relative_to(folder) for file in (folder / part).rglob("*") if file.is_file())
    assert files
    for file in files:
        for name, harm in HARMS.items():
            if (folder / file).stat().st_size == 0 and name != "deleted":
                continue
            shutil.copytree(folder, scratch)
            harm(scratch / file)
            yield str(file), name, scratch
            shutil.rmtree(scratch)
