"""What the user sees when something is wrong: one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from typing import NoReturn

from jvr1.mistakes import sentence

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is too big",
}


class UserError(ValueError):
    """A mistake the user can mend. The message is one line: what is wrong, and what would be right."""


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


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0 when done, 2 with one line on stderr for a `UserError`, a full disk and what
    `jvr1.mistakes` knows of. A character that the terminal cannot show is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            _end(error)
        where = f" writing {error.filename}" if error.filename else ""
        print(f"error: {_NO_ROOM[error.errno]}{where}; what was written is not complete", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end(error)
    sys.exit(code or 0)


def _end(error: Exception) -> NoReturn:
    """Ends with 2 where there is a sentence for the error, else raises it."""
    said = sentence(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)
    sys.exit(2)
