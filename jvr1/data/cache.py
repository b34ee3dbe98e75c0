"""Media under a root, local or in a bucket; of a bucket a bounded part is kept on the local disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from jvr1.data.media import Media, MediaError, load_media
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.records import media_path
from jvr1.errors import UserError
from jvr1.model.media import FrameRules, PixelLimits, VideoSampling

_EVICT_TO = 0.9
_STALE_SECONDS = 3600.0
"""Temporary files and pins of this age belong to processes that died."""


def is_remote(root: str | Path) -> bool:
    return "://" in str(root)


@dataclass(frozen=True)
class MediaCache:
    """Gives local paths of media.

    root: of all media, local or gs://. folder: where copies of remote media are kept, least recently used out
    first, `max_bytes` in all; unused for a local root. Processes may share a folder: copies appear whole (by
    rename), evicting is done by one process at a time, and a copy in use is pinned by a hard link, so that it
    stays readable while another process evicts it. The folder belongs to the cache: whatever else lies in it
    may be deleted. The bound may be exceeded by what is in use and by what several processes fetch at once.
    """

    root: str
    folder: str | None = None
    max_bytes: int = 100 * 2**30

    def __post_init__(self) -> None:
        if is_remote(self.root) and not self.folder:
            raise UserError(f"the media root {self.root} is remote: name a local folder for copies of its media")
        if self.max_bytes < 1:
            raise UserError(f"the media cache must be allowed at least 1 byte, got {self.max_bytes}")

    def written_since(self, path: str, moment: float) -> bool:
        """Whether the medium `path` is there and was written, or put there, after a moment (seconds of the epoch)."""
        try:
            source = media_path(self.root, path)
            if is_remote(self.root):
                return source.stat().mtime > moment
            status = os.stat(source)
            return max(status.st_mtime, status.st_ctime) > moment
        except (OSError, UserError):
            return False

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """A local file with the medium `path`, valid within the block. Raises MediaError, UserError."""
        source = media_path(self.root, path)
        if not is_remote(self.root):
            yield Path(source)
            return
        pin = self._folder("pins") / f"{os.getpid()}-{uuid.uuid4().hex}{source.suffix}"
        kept = self._kept(source)
        try:
            try:
                os.utime(kept)  # the time of last use; before linking, for a pin with an old time counts as left behind
                os.link(kept, pin)
            except FileNotFoundError:
                self._fetch(source, kept, pin)
            yield pin
        finally:
            pin.unlink(missing_ok=True)

    def forget(self, path: str) -> None:
        """Drops the copy of a remote medium that may have changed since."""
        if is_remote(self.root):
            with suppress(UserError):
                self._kept(media_path(self.root, path)).unlink(missing_ok=True)

    def _kept(self, source: epath.Path) -> Path:
        return self._folder("files") / f"{hashlib.sha256(str(source).encode()).hexdigest()}{source.suffix}"

    def _folder(self, name: str) -> Path:
        folder = Path(str(self.folder)) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _fetch(self, source: epath.Path, kept: Path, pin: Path) -> None:
        try:
            size = source.stat().length
            if size > self.max_bytes:
                raise MediaError("too-large", f"{source} has {size} bytes, the media cache holds {self.max_bytes}")
            self._reserve(size)
            with source.open("rb") as remote, pin.open("xb") as local:
                shutil.copyfileobj(remote, local, 1 << 20)
        except FileNotFoundError:
            raise MediaError("missing", f"{source} does not exist") from None
        except MediaError:
            raise
        except Exception as error:  # each file system's client has errors of its own
            raise MediaError("unreadable", f"{source}: {type(error).__name__} {error}") from None
        if pin.stat().st_size != size:
            raise MediaError("unreadable", f"{source}: {pin.stat().st_size} of {size} bytes arrived")
        staged = pin.with_suffix(".staged")
        os.link(pin, staged)
        os.replace(staged, kept)

    def _reserve(self, incoming: int) -> None:
        """Makes room for `incoming` bytes. A count of what was fetched spares most calls a look through the folder."""
        with open(self._folder("") / "bytes", "a+") as count:
            fcntl.flock(count, fcntl.LOCK_EX)  # until it is closed
            count.seek(0)
            text = count.read()
            if not text.isdecimal() or int(text) + incoming > self.max_bytes:
                text = str(self._evict(incoming))
            count.truncate(0)
            count.write(str(int(text) + incoming))

    def _evict(self, incoming: int) -> int:
        """Deletes the least recently used copies if there is no room for `incoming` bytes; gives what is held."""
        for left in self._folder("pins").iterdir():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    left.unlink()
        entries = []
        for entry in os.scandir(self._folder("files")):
            with suppress(FileNotFoundError):
                entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        held = sum(size for _, size, _ in entries)
        goal = _EVICT_TO * self.max_bytes if held + incoming > self.max_bytes else self.max_bytes
        for _, size, path in sorted(entries):
            if held == 0 or held + incoming <= goal:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            held -= size
        return held


@dataclass(frozen=True)
class MediaReader:
    """`load_media` of a medium named relative to the media root: what a Sandbox runs, so that its time limit covers
    the way from the bucket too."""

    media: MediaCache
    max_decoded_mb: int = MAX_DECODED_MB

    def __call__(
        self, path: str, data_type: str, sampling: VideoSampling, limits: PixelLimits, rules: FrameRules
    ) -> Media:
        with self.media.local(path) as file:
            return load_media(file, data_type, sampling, limits, rules, self.max_decoded_mb)
