"""The demo's recipe in bfloat16, the default, on a CPU: T-GRPO with its validation, and evaluation; near fp32's."""

from __future__ import annotations

import json

import pytest
from runs import TINY, scalars

STEPS = 2


def test_tgrpo_and_its_validation(demo, tmp_path):
    """Two prompts or more at a time. Completions are drawn anew, so what depends little on the draw is compared with
    the same run in fp32, at its first step."""
    length = {"train__steps": STEPS, "train__save_every": STEPS, "train__validate_every": STEPS}
    process = demo.main("rl", tmp_path / "run", model__dtype="bfloat16", **length)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    got, want = (
        {tag: dict(values) for tag, values in scalars(folder).items()}
        for folder in (tmp_path / "run", demo.finished("rl").workdir)
    )
    assert set(got["loss/entropy"]) == {1, STEPS}
    assert got["loss/entropy"][1] == pytest.approx(want["loss/entropy"][1], rel=0.05)
    assert max(want["loss/logprob_gap"].values()) < 1e-4
    assert max(got["loss/logprob_gap"].values()) < 0.03
    assert {tag for tag in want if tag.startswith("valid/")} <= set(got)


def test_evaluation_of_two_questions_at_a_time(demo, tmp_path):
    """The best token each time: nearly all answers are those of fp32."""
    base = [f"--model={demo.exported()}", "--suite=valid.json", f"--data={demo.root}", f"--out={tmp_path / 'out'}"]
    demo.done(["-mjvr1.evaluate"], [*base, TINY, "--batch=2", "--workers=0", "--dtype=bfloat16"])
    got, want = (
        {a["problem_id"]: a["replies"][0]["completion"] for a in map(json.loads, lines.read_text().splitlines())}
        for lines in (tmp_path / "out" / "answers.jsonl", demo.evaluated() / "answers.jsonl")
    )
    assert got.keys() == want.keys()
    same = sum(got[number] == want[number] for number in want)
    assert same >= 0.8 * len(want)
