"""Rewards a user might bring, good and bad, for test_user_reward.py."""

import ctypes
import os
import subprocess
import sys
import time

NOT_A_FUNCTION = 3


def brevity(completion: str, gold: str, problem_type: str) -> float:
    print("a user's print must not disturb the pipe")
    return 1.0 / len(completion.split())


def echo_gold(completion: str, gold: str, problem_type: str) -> float:
    return float(gold)


def loads_jax(completion: str, gold: str, problem_type: str) -> bool:
    return "jax" in sys.modules


def misbehave(completion: str, gold: str, problem_type: str):
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
        case "text":
            return "high"
        case "read":
            return float(len(sys.stdin.read()))
        case "long":
            raise ValueError("x" * 1_000_000)
    return 1.0
