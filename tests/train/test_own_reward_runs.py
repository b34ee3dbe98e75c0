"""A reward of a user's own that fails, in the mains as a user starts them: what is shown, and how the run ends."""

from __future__ import annotations

import json

import pytest
from own_reward import vowels
from runs import scalars

CHANGES = {"train__validate_every": 0, "train__pictures_every": 0, "reward__user_weight": 1.0}


def test_failures_are_shown_counted_and_end_the_run_above_their_share(demo, tmp_path):
    user = {"reward__user": "own_reward:fails_for_cut_ones", "reward__max_failed": 0.05}
    process = demo.main("rl", tmp_path / "run", train__steps=9, **CHANGES, **user)
    stdout, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith("error: reward.user failed for ")
    assert stderr.splitlines()[-1].endswith("exception); reward.max_failed allows 5.0%")
    told = [line for line in stdout.splitlines() if line.startswith("reward.user own_reward:fails_for_cut_ones failed")]
    assert len(told) == 1
    assert "(exception): ConnectionError: the judge is not there for " in told[0]
    assert told[0].endswith("; the row is not scored")
    logged = scalars(tmp_path / "run")
    first = logged["reward/user_failed/exception"][0][1]
    assert first == int(first) > 0
    asked = 3 * 2 * 3  # rows x microbatches x group
    assert logged["reward/unscored"][0][1] == pytest.approx(first / asked)
    assert "reward/user/opinion" not in logged  # it has none


def test_what_is_wrong_of_it_is_one_line_before_the_first_step(demo, tmp_path):
    process = demo.main("rl", tmp_path / "run", train__steps=9, reward__user="own_reward:wrong_name")
    _, stderr = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: reward.user 'own_reward:wrong_name' failed on a first try, the ")
    assert "takes 'text', which is no field of a row (completion, answer, gold," in line
    assert not (tmp_path / "run" / "rollouts").exists()


def test_gate_validation_and_evaluation_follow_a_user_s_accuracy(demo, tmp_path):
    user = {"reward__user": "own_reward:vowels", "reward__user_accuracy": "('multiple choice=vowels',)"}
    workdir, changes = tmp_path / "run", {"train__steps": 1, "train__validate_every": 1, "train__pictures_every": 0}
    process = demo.main("rl", workdir, **changes, **user)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    (file,) = (workdir / "rollouts").iterdir()
    own = [row for row in map(json.loads, file.read_text().splitlines()) if row["problem_type"] == "multiple choice"]
    assert {row["frames"] for row in own} == {"ordered", "shuffled"}
    for row in own:
        assert row["accuracy"] == row["rewards"]["vowels"] == pytest.approx(vowels(row["completion"], "", ""), rel=1e-6)
        if row["reward"] is not None:
            assert row["reward"] == pytest.approx(row["accuracy"] + row["format"], abs=1e-5)

    out = tmp_path / "out"
    arguments = [f"--model={workdir}", "--suite=valid.json", f"--data={demo.root}", f"--out={out}", "--workers=0"]
    demo.done(["-mjvr1.evaluate"], [*arguments, f"--index={demo.root / 'index'}", "--variants=ordered,shuffled"])
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["accuracy"] == ["multiple choice=vowels"]
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    found = []
    for question in answers:
        if question["problem_type"] == "multiple choice":
            for one in question["replies"]:
                want = vowels(one["completion"], "", "")
                assert one["accuracy"] == pytest.approx({"robust": want, "eval-reference": want}, rel=1e-6)
                found += [want] if question["task"] == "order" and one["variant"] == "ordered" else []
    valid = dict(scalars(workdir)["valid/order/ordered"])[1]
    assert report["tasks"]["order"]["ordered"] == pytest.approx(sum(found) / len(found))
    assert valid == pytest.approx(report["tasks"]["order"]["ordered"], abs=1e-3)


@pytest.mark.nightly
def test_what_is_logged_of_it_is_the_same_on_any_number_of_processes(demo, tmp_path):
    """Alone; two processes with half of the rows each; two that hold the same rows, of which one asks."""
    user = {"reward__user": "own_reward:fails_for_cut_ones", "reward__max_failed": 1.0, "train__steps": 1}
    names = ("reward/user_failed/exception", "reward/unscored", "reward/user/vowels", "reward", "advantage_std")
    found = []
    for count, data, tensor in ((1, 1, 1), (2, 2, 1), (2, 1, 2)):
        workdir = tmp_path / f"{count}x{tensor}"
        mesh = {"mesh__data": data, "mesh__fsdp": 1, "mesh__tensor": tensor, "batch__micro": 4}
        processes = demo.together("rl", workdir, count, 1, **CHANGES, **user, **mesh)
        ends = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * count, ends
        logged = scalars(workdir)
        found.append([logged[name][0][1] for name in names])
    assert found[0][0] > 0
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)
