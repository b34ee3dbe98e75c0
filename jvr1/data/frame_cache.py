"""Decoded frames kept on disk: what a medium came to after sampling and resizing, shared by epochs, runs and hosts."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import features

from jvr1.data.cache import MediaCache, is_remote
from jvr1.data.media import Media
from jvr1.data.records import media_path
from jvr1.errors import UserError
from jvr1.model.media import FrameRules, PixelLimits, VideoSampling

READER = 1
"""To be raised when a change of ours gives other frames, sizes or times of any file."""

SHARDS = 64
"""Folders of a cache, each with that part of its room: who writes looks through one of them only."""

_MAGIC = b"jvr1 frames 1\n"
_HEAD = struct.Struct("<II")  # checksum of all that follows, bytes of the description
_STALE_SECONDS = 3600.0
"""Unfinished files of this age belong to writers that died."""
_TOUCH_SECONDS = 60.0
_SAID = "warned"

_quiet: set[str] = set()
"""Folders that this process no longer writes to."""
_said: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class FrameCache:
    """Frames in a folder, at most `max_bytes`, the least recently used out first.

    Any number of processes and hosts may share the folder without locks: an entry is written beside its place and
    renamed, so it is there whole or not at all, and its length and checksum say whether it still is when it is read.
    Raw uint8, for decompressing costs more than reading. The folder belongs to the cache. What cannot be written (a
    full disk, no permission) ends the writing with one line on stderr; the run goes on and reads what is there.
    """

    folder: str
    max_bytes: int

    def __post_init__(self) -> None:
        if is_remote(self.folder):
            raise UserError(f"data.frame_cache is {self.folder}; it must be a folder that hosts mount, not a bucket")
        if self.max_bytes < 1:
            raise UserError(f"data.frame_cache_gb allows {self.max_bytes} bytes; it must allow at least 1")

    def open(self) -> FrameCache:
        """The same, its folder made and tried: said at once where it cannot be written. Raises UserError when the path
        is no folder."""
        folder = Path(self.folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"data.frame_cache is {folder}, a file; name a folder")
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _SAID).unlink(missing_ok=True)  # of a run before, which may have had less room
            trial = folder / "00" / f".{uuid.uuid4().hex}.part"
            trial.parent.mkdir(exist_ok=True)
            trial.write_bytes(b"\0" * 4096)
            trial.unlink()
        return self

    def get(self, key: str) -> Media | None:
        """The frames of that name, None where there are none, or damaged ones."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = bytearray(status.st_size)
                whole = file.readinto(data) == len(data)
            if time.time() - status.st_mtime > _TOUCH_SECONDS:
                with suppress(OSError):  # read only: its writers see to the order
                    os.utime(path)
        except OSError:
            return None
        return _unpacked(data) if whole else None

    def put(self, key: str, media: Media) -> None:
        """Keeps frames under a name, where there is room and permission."""
        head, body = _packed(media)
        size = len(head) + body.nbytes
        if self.folder in _quiet:
            return
        if size > self._room:
            self._warn(f"leaves out media of more than {self._room >> 20} MiB; such need a larger data.frame_cache_gb")
            return
        path = self._path(key)
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(path.parent, size)
            try:
                with part.open("xb") as file:
                    file.write(head)
                    file.write(body.data)
                os.replace(part, path)
            except OSError:
                with suppress(OSError):
                    part.unlink()
                raise

    @property
    def _room(self) -> int:
        return self.max_bytes // SHARDS

    def _path(self, key: str) -> Path:
        return Path(self.folder) / f"{int(key[:2], 16) % SHARDS:02x}" / key

    def _make_room(self, shard: Path, incoming: int) -> None:
        """Deletes what dead writers left, then the least recently used until `incoming` bytes fit. Two that write at
        a time may both find room: the bound may be exceeded by what is being written."""
        entries = []
        for entry in os.scandir(shard):
            with suppress(FileNotFoundError):
                status = entry.stat()
                if entry.name.endswith(".part") and time.time() - status.st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)
                    continue
                entries.append((status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held + incoming <= self._room:
                return
            if not path.endswith(".part"):
                with suppress(FileNotFoundError):
                    os.unlink(path)
                held -= size

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        _quiet.add(self.folder)
        self._warn(f"takes no more frames: {why}")

    def _warn(self, what: str) -> None:
        """One line on stderr, by one of those that share the folder."""
        if (self.folder, what) in _said:
            return
        _said.add((self.folder, what))
        try:
            os.close(os.open(Path(self.folder) / _SAID, os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            return
        except OSError:
            pass
        print(f"warning: the frame cache {self.folder} {what}", file=sys.stderr, flush=True)


def frames_key(
    media: MediaCache, path: str, data_type: str, sampling: VideoSampling, limits: PixelLimits, rules: FrameRules
) -> str | None:
    """A name of all that the frames of a medium depend on; None for a file that is not there.

    The file: its place, size and time of change; in a bucket its place alone, as in the media cache. How it is read:
    sampling, limits, rules; our reader, the libraries that decode and resize, the kind of machine.
    Raises UserError for a path that leaves the media root.
    """
    source = media_path(media.root, path)
    identity: list[object] = [str(source)]
    if not is_remote(media.root):
        try:
            status = os.stat(source)
        except OSError:
            return None
        identity = [os.path.abspath(source), status.st_size, status.st_mtime_ns]
    how = [data_type, asdict(sampling), asdict(limits), *rules.told.values(), *_libraries()]
    return hashlib.sha256(json.dumps([READER, identity, how]).encode()).hexdigest()


@cache
def _libraries() -> tuple[str, ...]:
    def version(name: str) -> str:
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
        return f"no {name}"

    of_pillow = [f"{name} {features.version(name)}" for name in ("jpg", "libjpeg_turbo", "webp", "libtiff", "jpg_2000")]
    return (*map(version, ("pillow", "av")), *of_pillow, platform.machine())


def _packed(media: Media) -> tuple[bytes, np.ndarray]:
    """What stands before the frames, and these."""
    times = {"times": media.timestamps.tolist(), "nominal": media.nominal.tolist()}
    told = {"shape": media.frames.shape, "step": media.seconds_per_step, **times}
    text = json.dumps(told).encode()
    body = np.ascontiguousarray(media.frames)
    text = len(text).to_bytes(4, "little") + text
    return _MAGIC + zlib.crc32(body.data, zlib.crc32(text)).to_bytes(4, "little") + text, body


def _unpacked(data: bytearray) -> Media | None:
    """None for anything but what `_packed` made, to the last byte, or made before it kept as much."""
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        return None
    checksum, length = _HEAD.unpack_from(data, len(_MAGIC))
    if zlib.crc32(memoryview(data)[start - 4 :]) != checksum:
        return None
    told = json.loads(data[start : start + length])
    shape = tuple(told["shape"])
    frames = np.frombuffer(data, np.uint8, offset=start + length)
    if frames.size != np.prod(shape) or "nominal" not in told:
        return None
    times, nominal = (np.asarray(told[name], np.float64) for name in ("times", "nominal"))
    return Media(frames.reshape(shape), told["step"], times, nominal)
