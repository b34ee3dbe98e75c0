"""The ablation: what its advantages were made of, its statistics, its stages, and a page true to its results."""

from __future__ import annotations

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jvr1.config import from_file
from jvr1.errors import UserError
from jvr1.rl.tgrpo import Rollout, TGRPOConfig, advantages
from tools.ablations.collect import Group, advantage_statistics, cancels, groups, plain_advantage
from tools.ablations.report import interval, paired
from tools.ablations.stages import ROOT, Cell, Stage, run, stages

REFERENCE = {"gate": "reference", "factor": 0.8, "alpha": 0.0, "temporal_reward": 0.3, "correct_threshold": 0.1}


def groups_of(accuracy: np.ndarray, shuffled: np.ndarray, form: np.ndarray, **switches) -> list[Group]:
    """As training would have kept them, advantages by jvr1.rl.tgrpo."""
    count = len(accuracy)
    rollout = Rollout(
        accuracy=jnp.asarray(accuracy, jnp.float32),
        reward=jnp.asarray(accuracy + form, jnp.float32),
        length=jnp.full(accuracy.shape, 24),
        shuffled_accuracy=jnp.asarray(shuffled, jnp.float32),
        shuffled_valid=jnp.ones(shuffled.shape, bool),
        valid=jnp.ones(count, bool),
        is_video=jnp.ones(count, bool),
        distinct_frames=jnp.full(count, 8),
    )
    result = advantages(rollout, TGRPOConfig(length_reward=0.0, **switches))
    columns = (accuracy, form, np.asarray(result.advantage), np.asarray(result.signal))
    return [Group(a, f, adv, float(s), True) for a, f, adv, s in zip(*columns, strict=True)]


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(3)
    return (rng.random((200, 8)) < 0.6).astype(float), (rng.random((200, 4)) < 0.4).astype(float)


def test_the_published_bonus_cancels_for_verdicts_of_right_and_wrong(outcomes):
    found = advantage_statistics(iter(groups_of(*outcomes, np.ones((200, 8)), **REFERENCE)))
    assert found["cancelling"] > 0.5
    assert found["largest_where_cancels"] < 1e-3
    assert found["changed"] == 0.0
    assert found["mixed"] == np.mean((outcomes[0].mean(1) > 0) & (outcomes[0].mean(1) < 1))


def test_it_does_not_where_rewards_are_graded(outcomes):
    graded = outcomes[0] * np.random.default_rng(4).uniform(0.2, 1.0, outcomes[0].shape)
    of = groups_of(graded, outcomes[1], np.ones((200, 8)), **REFERENCE)
    assert not any(cancels(group) for group in of if 0 < (group.accuracy > 0).sum() < 8)
    assert advantage_statistics(iter(of))["changed"] > 0.5


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_our_term_is_what_is_beyond_plain_grpo(outcomes, alpha):
    form = (np.random.default_rng(5).random((200, 8)) < 0.9).astype(float)
    of = groups_of(*outcomes, form, gate="gap", alpha=alpha)
    for group in of:
        c = (group.accuracy > 0.5).astype(float)
        beyond = alpha * group.signal * (c - c.mean())
        np.testing.assert_allclose(group.advantage - plain_advantage(group), beyond, atol=2e-5)
    beyond = [np.abs(group.advantage - plain_advantage(group)).sum() for group in of]
    share = sum(beyond) / sum(np.abs(group.advantage).sum() for group in of)
    assert advantage_statistics(iter(of))["share_of_size"] == pytest.approx(share)
    assert (share > 1e-3) == (alpha > 0)


def test_groups_are_read_as_training_keeps_them(tmp_path):
    def row(number, frames, accuracy):
        kept = {"step": 1, "microbatch": 0, "row": number, "frames": frames, "accuracy": accuracy, "format": 1.0}
        return json.dumps(kept | {"advantage": accuracy - 0.5, "temporal_signal": 0.25})

    clip = [row(0, "ordered", 1.0), row(0, "ordered", 0.0), row(0, "shuffled", 0.0)]
    picture = [row(1, "ordered", 1.0), row(1, "ordered", 1.0)]
    (tmp_path / "step-1.process-0.jsonl").write_text("\n".join(clip + picture) + "\n")
    first, second = groups(tmp_path)
    assert (first.accuracy.tolist(), first.advantage.tolist(), first.signal) == ([1.0, 0.0], [0.5, -0.5], 0.25)
    assert (first.is_video, second.is_video) == (True, False)
    with pytest.raises(UserError, match="holds no completions"):
        list(groups(tmp_path / "absent"))


def test_intervals_and_paired_tests_are_students():
    """t of 4 degrees of freedom: 2.776; t = 3 / sqrt(0.5) = 4.243 has p = 0.0132."""
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3.0, 2.776 * np.sqrt(0.5)), abs=1e-3)
    assert paired([11, 12, 13, 14, 15], [10, 10, 10, 10, 10]) == pytest.approx((3.0, 1.963, 0.01324), abs=1e-3)
    assert paired([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 1.0)


def test_every_arm_has_the_same_prompts_completions_and_updates():
    arms = {arm: from_file(f"{ROOT / 'configs' / 'ablation.py'}:{arm}") for arm in ("grpo", "reference", "gap-1")}
    assert {(c.rl.gate, c.rl.alpha, c.rl.temporal_reward) for c in arms.values()} == {
        ("none", 0.0, 0.0), ("reference", 0.0, 0.3), ("gap", 1.0, 0.0),
    }  # fmt: skip
    signal = {*REFERENCE, "min_distinct_frames"}
    alike = [c.to_dict() | {"rl": {k: v for k, v in c.rl.items() if k not in signal}} for c in arms.values()]
    assert alike[0] == alike[1] == alike[2]


def test_stages_of_a_seed_share_its_warm_up(tmp_path):
    plain = list(stages(Cell(tmp_path, "none", 3), ["grpo"]))
    cued = list(stages(Cell(tmp_path, "0.8", 3), ["grpo"]))
    rest = ["sft", "eval-sft", "grpo", "eval-grpo"]
    assert [stage.name for stage in plain] == [f"none/3/{name}" for name in ("data", "warmup", *rest)]
    assert [stage.name for stage in cued[:2]] == ["none/3/data", "none/3/warmup"]
    assert [stage.name for stage in cued[2:]] == [f"0.8/3/{name}" for name in ("data", *rest)]
    assert f"--config.model.source={tmp_path}/shortcut-none/seed-3/warmup" in cued[3].command
    assert [stage.command[-2:] == ("--shortcut", "0.8") for stage in (cued[0], cued[2])] == [False, True]


def test_a_stage_is_done_once_and_only_when_it_ended_well(tmp_path, capsys):
    counter = tmp_path / "counter"
    once = Stage("a", ("-c", f"open({str(counter)!r}, 'a').write('x')"), tmp_path / "logs" / "a.log")
    run(once)
    run(once)
    assert counter.read_text() == "x"
    broken = Stage("b", ("-c", "print('why'); raise SystemExit(3)"), tmp_path / "logs" / "b.log")
    with pytest.raises(UserError, match=r"b ended with 3: why; all it printed: .*b\.unfinished"):
        run(broken)
    assert not broken.done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name OUT, the folder of the runs, or --results FILE, not both"),
        (["out", "--arms=grpo,gap-7"], "has no arm 'gap-7'"),
        (["out", "--arms=gap-1"], "grpo must be among them"),
        (["out", "--seeds=1,b"], "--seeds is 1,b; write numbers with commas"),
        (["--results=absent.json"], "absent.json is no file"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    command = [sys.executable, str(ROOT / "tools" / "ablation.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
