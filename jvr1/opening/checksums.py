"""Checksums of the files of a folder, kept in it: what changed since they were written is found before it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from etils import epath

CHECKSUMS_FILE = "checksums.json"
UNSUMMED = (CHECKSUMS_FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
"""Names that have no checksum: this file, and what orbax writes after it, of which no value is read."""
CHECKSUMS_FORMAT = 1
HASH_THREADS = 8
_BLOCK = 1 << 22


def write_checksums(folder: epath.Path) -> None:
    """Sums up all files under the folder. A local file of checksums appears whole or not at all."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        sums = dict(zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True))
    staged = folder / CHECKSUMS_FILE if "://" in str(folder) else folder / f".{CHECKSUMS_FILE}.partial"
    staged.write_text(
        json.dumps({"jvr1_checksums": CHECKSUMS_FORMAT, "files": sums, "sha256": _of(sums)}, indent=1) + "\n"
    )
    if staged.name != CHECKSUMS_FILE:
        staged.replace(folder / CHECKSUMS_FILE)


def has_checksums(folder: epath.Path) -> bool:
    """Whether the folder has checksums; those of older versions have none."""
    return (folder / CHECKSUMS_FILE).exists()


def first_damaged(folder: epath.Path, under: str = "", part: int = 0, parts: int = 1) -> str | None:
    """The first file, by name, that is not what was written, and how; None: there is none, or no checksums are kept.

    under: only files whose names begin so. part of parts: only every `parts`-th file, where processes share the work.
    """
    if not has_checksums(folder):
        return None
    try:
        sums = json.loads((folder / CHECKSUMS_FILE).read_text())
        files = sums["files"]
        if sums["sha256"] != _of(files):
            raise ValueError("its own checksum differs")
    except (OSError, ValueError, TypeError, KeyError):
        return f"{CHECKSUMS_FILE} is not what was written"
    names = [name for name in sorted(files) if name.startswith(under)][part::parts]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        problems = pool.map(lambda name: _compare(folder / name, name, files[name]), names)
        return next((problem for problem in problems if problem), None)


def _compare(file: epath.Path, name: str, wanted: list) -> str | None:
    try:
        size = file.stat().length
        if size != wanted[0]:
            return f"{name} has {size} bytes where {wanted[0]} were written"
        return None if _sum(file) == wanted else f"{name} is not what was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"


def _names(folder: epath.Path) -> Iterator[str]:
    """All files under a folder that have checksums, relative to it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from (str(PurePath(path.name) / name) for name in _names(path))
        elif path.name not in UNSUMMED and not path.name.startswith("."):
            yield path.name


def _sum(file: epath.Path) -> list:
    """[bytes, sha256]"""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return [size, digest.hexdigest()]


def _of(sums: Mapping[str, list]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
