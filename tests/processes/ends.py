"""How two processes of a run end, row by row: what tests/processes/test_ends.py holds, and as a program, the table of
docs/launch.md with the seconds measured: python tests/processes/ends.py"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESTART, KILLED, STAYS = 75, -signal.SIGKILL, None
"""STAYS: it is stopped or never started, and ended by us once the other has."""


@dataclass(frozen=True)
class Row:
    """What happens, in words and as pair.py names it, and what is seen: codes, a piece of each one's log."""

    what: str
    deed: str
    codes: tuple[int | None, int | None]
    said: tuple[str, str]
    values: tuple[str, str] = ("same", "same")


FULL = "checkpoint 8 could not be written: No space left on device"
STOPPED, GONE = "told to stop: ends here", "lost a peer"
ROWS = (
    Row("both come to their end", "done", (0, 0), ("", "")),
    Row("another seed on process 1", "differs", (2, 2), ("started otherwise than process 0: seed: 0 -> 1. All",) * 2,
        ("0", "1")),
    Row("`--processes` 2 and 3", "count", (2, 2), ("started otherwise than process 0: --processes: 2 -> 3",) * 2,
        ("2", "3")),
    Row("process 1 never comes, `--peer_limit` 3", "never comes", (RESTART, STAYS),
        ("process 0 of 2 waits for process 1 at", "")),
    Row("process 0 never comes, two with `--process 1`, `--peer_limit` 3", "same number", (RESTART, RESTART),
        ("process 1 of 2 waits for process 0 at",) * 2),
    Row("SIGTERM to process 0, which waits for process 1 to come", "notice while joining", (RESTART, STAYS),
        (STOPPED, "")),
    Row("SIGTERM to process 1 before the first step, while it reads", "notice in Python", (RESTART, RESTART),
        ("process 1 did (it was told to stop)", STOPPED)),
    Row("SIGTERM to process 1 before the first step, while it waits for 0", "notice in a collective",
        (RESTART, RESTART), ("process 1 did (it was told to stop)", STOPPED)),
    Row("told to stop in a step, process 1 ends 3 s after 0 would", "told to stop", (RESTART, RESTART), ("", "")),
    Row("a mistake on process 1 (a full disk) while 0 waits for it", "mistake", (2, 2),
        (f"process 0 of 2 ends: process 1 did ({FULL})", FULL)),
    Row("a mistake on process 0 while 1 waits for it", "mistake of the first", (2, 2),
        ("no space", "process 1 of 2 ends: process 0 did (no space)")),
    Row("an exception on process 1", "crash", (RESTART, 1),
        ("process 0 of 2 ends: process 1 did (ValueError: a fault", "ValueError: a fault of the code")),
    Row("native code aborts process 1", "aborted", (RESTART, RESTART), (GONE, "process 1 of 2 is aborted")),
    Row("process 1 killed", "killed", (RESTART, KILLED), (GONE, "")),
    Row("process 0 killed", "killed first", (KILLED, RESTART), ("", "process 1 of 2 is aborted")),
    Row("process 1 silent, `--peer_limit` 10", "silent", (RESTART, STAYS), ("process 1 has been silent for", "")),
    Row("process 0 silent, `--peer_limit` 10", "silent first", (STAYS, RESTART),
        ("", "process 0 has been silent for")),
    Row("process 1 stopped for 3 s, `--peer_limit` 10", "stops for a while", (0, 0), ("", "")),
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """Of both processes: code (STAYS: it had to be ended), stderr, and seconds from the deed to the end."""

    codes: tuple[int | None, ...]
    said: tuple[str, ...]
    seconds: tuple[float, ...]


def play(row: Row, where: str, patience: float = 60) -> Seen:
    """Runs the two of a row, process 0 at `where`; who should stay is killed after the other's end."""
    from forks import Fork

    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "JVR1_EXIT_ON_PREEMPTION": str(RESTART)}
    started = [
        None if row.deed in ("never comes", "notice while joining") and i == 1 else Fork(
            [sys.executable, str(HERE / "pair.py"), str(i), where, row.deed, row.values[i]],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    out, err, ended = ["", ""], ["", ""], [0.0, 0.0]

    def follow(i: int) -> None:
        process = started[i]
        if process is not None:
            out[i], err[i] = process.communicate(timeout=patience)
            ended[i] = time.time()

    threads = [threading.Thread(target=follow, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for stays in (False, True):
        for i, process in enumerate(started):
            if (row.codes[i] is STAYS) is stays:
                if stays and process is not None:
                    process.kill()
                threads[i].join(patience)
    begun = [float(at) for text in out for at in re.findall(r"deed at ([\d.]+)", text)]
    codes = tuple(
        STAYS if process is None or (row.codes[i] is STAYS and process.returncode == KILLED) else process.returncode
        for i, process in enumerate(started)
    )
    return Seen(codes, tuple(err), tuple(max(end - max(begun, default=end), 0.0) for end in ended))


def main() -> int:
    sys.path.insert(0, str(HERE.parent))
    from runs import free_port

    print("| what happens | process 0 | process 1 | after | in their logs |\n|---|---:|---:|---:|---|")
    faults = 0
    for row in ROWS:
        seen = play(row, f"localhost:{free_port()}")
        names = ["stays" if code is STAYS else str(code if code >= 0 else 128 - code) for code in seen.codes]
        after = max(s for s, code in zip(seen.seconds, seen.codes, strict=True) if code is not STAYS)
        found = [
            next((line for line in text.splitlines() if piece and piece in line), "")
            for piece, text in zip(row.said, seen.said, strict=True)
        ]
        said = "; ".join(dict.fromkeys(f"`{line.removeprefix('error: ')[:120]}`" for line in found if line))
        wrong = seen.codes != row.codes or any(bool(piece) and not f for piece, f in zip(row.said, found, strict=True))
        faults += wrong
        seconds, mark = f"{after:.1f} s" if after else "", " **not as told**" if wrong else ""
        print(f"| {row.what} | {names[0]} | {names[1]} | {seconds} | {said}{mark} |", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
