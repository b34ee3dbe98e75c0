"""Hostile files of tools/fuzz.py: a few of each kind, all of them at night, and that faults are noticed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tools.fuzz as fuzz
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from tools.fuzzing.damage import HARMS, harm
from tools.fuzzing.watch import Canaries, Watched

ROOT = Path(__file__).parents[1]
TOLD = r"(media|records|models): (\d+) cases of seed (\d+), twice: (\d+) read, (\d+) refused, (\d+) failed; .*"


def run(*arguments: str) -> dict[str, tuple[int, ...]]:
    """What a run told of each kind: cases, seed, read, refused, failed."""
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return {kind: tuple(map(int, numbers)) for kind, *numbers in re.findall(TOLD, done.stdout)}


@pytest.mark.slow
def test_a_few_of_each():
    told = run("--seed", "1", "--media", "40", "--records", "20", "--models", "6")
    assert [told[kind][0] for kind in fuzz.KINDS] == [40, 20, 6]
    assert all(read and refused for _, _, read, refused, _ in told.values())


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1])
def test_all(seed):
    told = run("--seed", str(seed))
    assert [told[kind][0] for kind in fuzz.KINDS] == [500, 300, 150]
    assert all(read >= cases // 10 and refused >= cases // 4 for cases, _, read, refused, _ in told.values())


def test_a_seed_makes_the_same_and_another_something_else():
    made = [[harm(np.random.default_rng([seed, n]), bytes(range(256)) * 9) for n in range(99)] for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
    assert {name for _, how in made[0] for name in how.split("+")} == {one.__name__ for one in HARMS}


# --- what must not be is noticed --------------------------------------------------------------------------------------


class Bad:
    """Does what a reader must not."""

    def __init__(self, outside: str) -> None:
        self.outside = outside

    def __call__(self, path: str) -> object:
        kind = path.partition("/")[2]
        if kind == "opens":
            return len(Path(self.outside, "a").read_bytes())
        if kind == "native":
            import av

            return str(av.open(f"{self.outside}/a.m3u8", format="hls"))
        if kind == "hang":
            while True:
                pass
        if kind == "takes":
            return len(bytearray(700 * 2**20))
        if kind == "fails":
            raise KeyError(path)
        if kind == "ends":
            import os

            os._exit(3)
        if kind in ("lines", "long"):
            raise UserError("one\ntwo" if kind == "lines" else "x" * 5000)
        return kind


@pytest.mark.slow
def test_each_fault_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    outside, root = tmp_path / "outside", str(tmp_path / "cases")
    canaries, found = Canaries(outside, {"a": b"secret", "a.m3u8": b"#EXTM3U\n"}), {}
    kinds = ("opens", "native", "hang", "takes", "fails", "ends", "lines", "long", "good")
    bad = Watched(Bad(str(outside)), root)
    with Sandbox(bad, 60.0) as helper, Sandbox(bad, 3.0) as impatient:  # a helper's start counts, on a busy machine too
        for kind in kinds:
            case = fuzz.Case("media", 0, f"00000/{kind}")
            fuzz.attempt(case, impatient if kind == "hang" else helper, root, canaries)
            found[kind] = " ".join(case.faults)
    canaries.close()
    words = {
        "opens": f"opened {outside}/a", "native": f"opened {outside}/a.m3u8", "hang": "no refusal but an end",
        "takes": "MB of 512", "fails": "a traceback: ", "ends": "no refusal but an end",
        "lines": "of several lines", "long": "a refusal of 5000 characters", "good": "",
    }  # fmt: skip
    assert {kind: word in found[kind] for kind, word in words.items()} == dict.fromkeys(words, True), found
    assert found["good"] == ""


def test_another_outcome_the_second_time_is_a_fault(tmp_path, monkeypatch):
    outcomes = iter(("one", "same", "two", "same"))

    def read(cases, root, canaries):
        for case in cases:
            case.outcome = next(outcomes)

    monkeypatch.setattr(fuzz, "READERS", {"media": read})
    canaries = Canaries(tmp_path / "outside", {"a.ts": b""})
    ground = fuzz.Ground({"rgb.png": b"x" * 99}, tmp_path, canaries)
    (one, two), _ = fuzz.twice("media", [0, 1], 0, tmp_path, ground, None)
    canaries.close()
    assert one.faults[0].startswith("then came to two")
    assert two.faults == []


@pytest.mark.parametrize("only", ["media", "media:x", "other:1"])
def test_what_names_no_case(only):
    with pytest.raises(UserError, match="write KIND:NUMBER with one of media, records, models"):
        fuzz.parse(["--only", only])
