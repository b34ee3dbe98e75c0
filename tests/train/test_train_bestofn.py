"""Best-of-n: which completions are learned, and that a run of it improves, resumes and says whose it is."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from oracle import raw_config
from runs import scalars, without_times
from step_cases import BUCKET, GROUP, ROWS, make_rows

from jvr1.data.batch import Microbatch, stack_examples
from jvr1.model.families import from_hf
from jvr1.rollout.tasks import Sampled
from jvr1.train_bestofn import best_completions, best_sums

CONFIG = from_hf(raw_config(vision_depth=1, vision_fullatt_block_indexes=[0], num_hidden_layers=2))
STEPS = 30
SETTINGS = {"train__steps": STEPS, "bestofn__threshold": -1.0}
"""The demo's model, untrained: none of its answers is right, and some have more of what the user's reward counts."""


def test_the_best_is_learned_where_it_is_good_enough_and_valid():
    rng = np.random.default_rng(0)
    shape = (ROWS, GROUP)
    length = rng.integers(1, BUCKET.completion + 1, shape).astype(np.int32)
    ids = rng.integers(3, 90, (*shape, BUCKET.completion)).astype(np.int32)
    reward = rng.integers(0, 5, shape).astype(np.float32) / 2
    micro = Microbatch(BUCKET, stack_examples(make_rows(CONFIG)), ())
    sampled = Sampled(ids, length, np.ones(shape, bool), np.zeros(ids.shape, np.float32))
    best = best_completions(micro, sampled, reward, 2.0)
    totals = {"reward": 0.0, "reward/best": 0.0, "reward/learned": 0.0, "completion/length": 0.0}
    for b in range(ROWS):
        most = max(reward[b])
        first = list(reward[b]).index(most)
        learned = most >= 2.0 and bool(micro.arrays.valid[b])
        assert best.arrays.target[b].tolist() == ids[b, first].tolist()
        assert best.arrays.target_mask[b].tolist() == [
            learned and c < length[b, first] for c in range(BUCKET.completion)
        ]
        if micro.arrays.valid[b]:
            totals["reward"] += float(sum(reward[b]))
            totals["reward/best"] += float(most)
            totals["reward/learned"] += learned
            totals["completion/length"] += float(sum(length[b]))
    assert 0 < totals["reward/learned"] < sum(micro.arrays.valid)
    sums = best_sums(best, sampled, reward)
    assert {name: sums[name][0] for name in totals} == pytest.approx(totals)
    assert sums["reward"][1] == GROUP * sums["reward/best"][1] == GROUP * sum(micro.arrays.valid)


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bestofn") / "run"
    finish(demo.main("bestofn", workdir, **SETTINGS))
    return workdir


def finish(process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_it_improves_the_reward_of_its_training_rows(run):
    logged = scalars(run)
    for name in ("loss", "reward/best", "reward/learned", "completion/length", "loss/entropy", "tokens_per_second"):
        assert [step for step, _ in logged[name]] == list(range(1, STEPS + 1)), name
    rewards = [value for _, value in logged["reward"]]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.1


def test_killed_it_goes_on_to_the_same_numbers(demo, run, tmp_path):
    process = demo.main("bestofn", tmp_path, **SETTINGS | {"train__steps": 1000})
    while not (tmp_path / "checkpoints" / "7").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert f"resumed at step {step} " in finish(demo.main("bestofn", tmp_path, **SETTINGS | {"train__steps": step + 5}))
    got, want = without_times(scalars(tmp_path)), without_times(scalars(run))
    assert [at for at, _ in got["loss"]] == list(range(1, step + 6))
    for name, pairs in got.items():
        assert [pair for pair in want[name] if pair[0] <= step + 5] == pairs, name


def test_its_workdir_is_of_no_other_main(demo, run):
    process = demo.main("rl", run)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "holds a run of jvr1.train_bestofn; jvr1.train_rl needs another workdir" in err
