"""Rewards a user might bring, good and bad, for test_user_reward.py and test_user_values.py."""

import asyncio
import ctypes
import os
import random
import subprocess
import sys
import time
from pathlib import Path

NOT_A_FUNCTION = 3
IMPORTED, IMPORTED_AT = time.time_ns(), time.monotonic()
LOOPS = set()


def brevity(completion: str, gold: str, problem_type: str) -> float:
    print("a user's print must not disturb the pipe")
    return 1.0 / len(completion.split())


def echo_gold(gold: str) -> float:
    return float(gold)


def loads_jax() -> bool:
    return "jax" in sys.modules


def misbehave(completion: str):
    match completion:
        case "raise":
            raise KeyError("no such thing")
        case "exit":
            sys.exit(0)
        case "die":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "loop":
            while True:
                pass
        case "loop in C":
            ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock
        case "sleep":
            time.sleep(1000)
        case "wait for a process":
            subprocess.run(["sleep", "1000"])
        case "nan":
            return float("nan")
        case "huge":
            return 1e39
        case "text":
            return "high"
        case "digits":
            return "0.5"
        case "list":
            return [1.0]
        case "none":
            return None
        case "named":
            return {"a": 0.25, "b": None}
        case "named text":
            return {"a": 0.25, "b": "high"}
        case "read":
            return float(len(sys.stdin.read()))
        case "long":
            raise ValueError("x" * 1_000_000)
        case "unprintable":
            raise Unprintable
    return 1.0


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


async def misbehave_waiting(completion: str):
    if completion == "sleep":
        await asyncio.sleep(1000)
    if completion == "own timeout":
        raise TimeoutError("the server was slow")
    await asyncio.sleep(0)
    return misbehave(completion)


def misbehave_whole(rows):
    return [misbehave(row.completion) for row in rows]


def wrong_count(rows):
    return [1.0] * (len(rows) - 1)


def all_of_it(row):
    """Every field, as numbers that say what came."""
    return {
        "answer": float(row.answer == "B"), "gold": float(row.gold == "<answer>B</answer>"),
        "gold_answer": float(row.gold_answer == "B"), "tokens": row.tokens, "ended": row.ended,
        "shuffled": row.frames == "shuffled", "step": row.step, "duration": row.duration,
        "options": len(row.options), "extra": row.extra["weight"], "paths": float(row.path == ("a.png", "b.png")),
        "accuracy": row.accuracy, "format": row.format,
    }  # fmt: skip


def by_names(completion, weight, *, missing=7.0):
    """A field of the row, one of the record's file, one that has a default."""
    return weight * len(completion) + missing


def everything(**row):
    return float(len(row))


def wrong_name(text, label):
    return 1.0


def by_place(completion, /):
    return 1.0


def meets_others(row):
    """Only ends well where as many calls as `extra.together` are under way at a time."""
    while not have_met(row):
        time.sleep(0.02)
    return float(row.completion)


async def meets_others_waiting(row):
    LOOPS.add(id(asyncio.get_running_loop()))
    while not have_met(row):
        await asyncio.sleep(0.02)
    return float(row.completion) if len(LOOPS) == 1 else None


def have_met(row) -> bool:
    folder = Path(row.extra["folder"])
    (folder / f"begun-{row.completion}").touch()
    if (folder / "in vain").exists() or time.monotonic() - IMPORTED_AT > 60:
        (folder / "in vain").touch()
        raise TimeoutError("no others came")
    return len(list(folder.glob("begun-*"))) >= row.extra["together"]


def hangs_on_every_tenth(row):
    """Where it hangs it leaves a file once it has seen all others begin."""
    folder = Path(row.extra["folder"])
    (folder / f"begun-{row.completion}").touch()
    if int(row.completion) % 10 != 3:
        return float(row.completion)
    while len(list(folder.glob("begun-*"))) < row.extra["together"]:
        time.sleep(0.05)
    (folder / f"saw-all-{row.completion}").touch()
    time.sleep(1000)


def when_imported():
    time.sleep(0.05)
    return {"imported": float(IMPORTED % 1_000_000), "process": float(os.getpid())}


def dice():
    return random.random()


# --- for test_user_values.py


def iou(answer, gold_answer, problem_type):
    if problem_type != "temporal grounding":
        return None
    a, g = ([float(x) for x in text.strip("[]").split(",")] for text in (answer or "[0,0]", gold_answer))
    return max(0.0, min(a[1], g[1]) - max(a[0], g[0])) / (max(a[1], g[1]) - min(a[0], g[0]))


def style(completion):
    return {"short": float(len(completion) < 30), "calm": None if "?" in completion else 1.0}


def fails_where_asked(completion):
    if "fail" in completion:
        raise ConnectionError("the judge is not there")
    return 2.0 if "too much" in completion else 0.5


def needs_an_answer(answer):
    return float(len(answer))


def short(completion):
    return 1.0


def another_name(completion, accuracy):
    return {"late" if "later" in completion else "early": 1.0}
