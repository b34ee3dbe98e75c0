"""What the user sees when something is wrong: one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from jvr1.mistakes import sentence

_STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is too big",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
}


SAFE = "what was saved before is whole: start again when that is mended"


class UserError(ValueError):
    """A mistake the user can mend. The message is one line: what is wrong, and what would be right."""


class SaveError(UserError):
    """A checkpoint could not be written; the ones before it are whole."""


class MediaError(Exception):
    """A medium that cannot be used. `cause` is one of a few words to count by, the message is for people.

    Causes: missing, unreadable, not-a-file, empty, truncated, not-an-image, not-a-video, no-video-stream, corrupt,
    too-large, aspect-ratio, empty-interval, timeout, crashed.
    """

    def __init__(self, cause: str, message: str = "") -> None:
        super().__init__(cause, message)
        self.cause = cause

    def __str__(self) -> str:
        return ": ".join(part for part in self.args if part)


def shown(value: object, most: int = 100) -> str:
    """A value as an error's line names it: its repr, of a long one the beginning and the end."""
    text = repr(value[:most] + value[-most:] if isinstance(value, str) and len(value) > 4 * most else value)
    return text if len(text) <= most else f"{text[: most - 20]} .. {text[-16:]}"


def storage_fault(error: BaseException, place: str | None = None) -> str | None:
    """What of storage an error, or what it came from, says: 'the disk is full writing FILE'; None: nothing.

    place: where it was written, for errors that name no file. tensorstore, which writes checkpoints, has the system's
    number in its text, and calls a full disk RESOURCE_EXHAUSTED, as XLA does memory.
    """
    for one in chain(error):
        found = re.search(r"\[os_error_code='(\d+)'", str(one))
        number = one.errno if isinstance(one, OSError) else int(found[1]) if found else None
        if number not in _STORAGE:
            continue
        where = one.filename if isinstance(one, OSError) and one.filename else place
        said = "no inodes are left" if number == errno.ENOSPC and _without_inodes(where) else _STORAGE[number]
        link = "for" if number in (errno.EACCES, errno.EPERM) else "writing"
        return f"{said} {link} {where}" if where else said
    return None


def _without_inodes(path: str | None) -> bool:
    """Whether the file system of a path has room and can hold no more files."""
    try:
        folder = next(p for p in (Path(str(path)), *Path(str(path)).parents) if p.exists())
        there = os.statvfs(folder)
    except (OSError, StopIteration):
        return False
    return there.f_files > 0 and there.f_favail == 0 and there.f_bavail > 0


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0 when done, 2 with one line on stderr for a `UserError`, storage that takes
    no more and what `jvr1.mistakes` knows of. A character that the terminal cannot show is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _without_secrets(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        said = storage_fault(error)
        if said is None:
            _end(error)
        print(f"error: {said}; {SAFE}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end(error)
    sys.exit(code or 0)


_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST = 8
"""Length of values that are taken for secrets; shorter ones stand in texts by chance."""


def _hidden(text: str) -> str:
    """A text for logs: names in the place of the values of WANDB_API_KEY, HF_TOKEN and their like."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, f"${name}")
    return text


def _without_secrets(main: Callable[[], int | None]) -> int | None:
    """main(), whose errors do not quote secrets, as libraries do of a key that is refused."""
    try:
        return main()
    except Exception as error:
        for one in chain(error):
            one.args = tuple(_hidden(a) if isinstance(a, str) else a for a in one.args)
        raise


def _end(error: Exception) -> NoReturn:
    """Ends with 2 where there is a sentence for the error, else raises it."""
    said = sentence(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)
    sys.exit(2)
