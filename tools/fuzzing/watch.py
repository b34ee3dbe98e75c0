"""What a reader opens, takes and comes to: seen from within its process, and by canaries outside."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jvr1
from jvr1.data.memory import mark, status_bytes

IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK
_COMPILED = os.environ.get("JAX_COMPILATION_CACHE_DIR") or sys.prefix
_MINE = (
    _COMPILED, sys.prefix, sys.base_prefix, str(Path(jvr1.__file__).parents[1]),
    "/proc/", "/dev/", "/sys/", "/usr/", "/lib",
)  # fmt: skip
"""Where a reader's own code and the system's files lie."""
_LEAVES = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


class Canaries:
    """Files outside of all cases, good ones of several kinds, and a port: whoever opens one is noticed, whatever
    library does. Linux (inotify)."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder = folder
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        library = ctypes.CDLL(None, use_errno=True)
        self.events = library.inotify_init1(IN_NONBLOCK)
        if self.events < 0 or library.inotify_add_watch(self.events, os.fsencode(folder), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch", str(folder))

    def names(self, case: Path) -> list[str]:
        """Ways to name them from within a case's folder."""
        above = os.path.relpath(self.folder, case)
        files = sorted(path.name for path in self.folder.iterdir())
        return [
            *(f"{self.folder}/{name}" for name in files),
            *(f"{above}/{name}" for name in files),
            *(f"file://{self.folder}/{name}" for name in files),
            f"http://127.0.0.1:{self.port}/a.ts",
            f"tcp://127.0.0.1:{self.port}",
        ]

    def noticed(self) -> list[str]:
        """What was opened since the last call."""
        found = []
        try:
            self.listener.accept()[0].close()
            found.append(f"127.0.0.1:{self.port}")
        except BlockingIOError:
            pass
        try:
            events = os.read(self.events, 1 << 20)
        except BlockingIOError:
            events = b""
        while events:
            _, _, _, length = struct.unpack_from("iIII", events)
            name = events[16 : 16 + length].rstrip(b"\0").decode()
            if name:  # of a file in it, not of the folder
                found.append(str(self.folder / name))
            events = events[16 + length :]
        return found

    def close(self) -> None:
        self.listener.close()
        os.close(self.events)


class Watched:
    """A function for a Sandbox. Called without arguments it says of the call before: megabytes its process grew at
    most, and what it opened outside of the folder, or did outside of its process. folder: of (argument) all that may
    be opened."""

    def __init__(self, function: Callable[..., Any], folder: str) -> None:
        self.function, self.folder = function, folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.begun: int | None = status_bytes("VmRSS")
        self.opened: list[str] = []
        self.allowed: tuple[str, ...] | None = None
        sys.addaudithook(self._hook)

    def __call__(self, *arguments: Any) -> Any:
        if not arguments:
            peak, begun = status_bytes("VmHWM"), self.begun
            return 0.0 if peak is None or begun is None else (peak - begun) / 2**20, self.opened
        case = os.path.join(self.folder, str(arguments[0]).partition("/")[0])
        self.opened = []
        mark()
        self.allowed = (*_MINE, case + "/", os.environ["TMPDIR"] + "/")
        try:
            return self.function(*arguments)
        finally:
            self.allowed = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not (path + "/").startswith(self.allowed):
                self.opened.append(path)
        elif event in _LEAVES:
            self.opened.append(f"{event} {arguments!r}"[:200])
