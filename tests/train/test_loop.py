"""The loop: one compilation a bucket, rates that are the optimizer's, what ends a run early."""

from __future__ import annotations

import pytest
from runs import OF_STAGE, SETTINGS, scalars

from jvr1.train.packing import tape_sizes

BUCKETS = 2
TAPES = tape_sizes(OF_STAGE["rl"]["rl.group"], OF_STAGE["rl"]["data.buckets"][0][4], 4)
TAPED = ("gradients", "reference_scores")


@pytest.mark.parametrize(
    ("stage", "large"),
    [
        ("sft", ["gradients", "count"]),
        ("rl", ["gradients", "advantages", "reference_scores", "begin_slots", "advance_slots"]),
    ],
)
def test_each_bucket_compiles_once_and_nothing_compiles_again(demo, stage, large):
    compiled = dict(demo.finished(stage).compiled)
    last = compiled[max(compiled)]
    for name in large:
        found = {key: count for key, count in last.items() if name in key}
        # slots of one shape for all buckets, and those of validation: greedy, ordered and shuffled
        expected = 1 + 2 if name.endswith("_slots") else BUCKETS
        if stage == "rl" and name in TAPED:  # and length of tapes that was needed; or none
            assert expected <= sum(found.values()) <= expected * (len(TAPES) + 1), (name, last)
        else:
            assert sum(found.values()) == expected, (name, last)
    later = {k: v for k, v in last.items() if compiled[15].get(k) != v}
    assert not {name for name in later if not any(own in name for own in TAPED)}, later
    assert max(compiled) == SETTINGS["train.steps"]


def test_learning_rate_is_the_schedule_s(demo):
    rates = [value for _, value in scalars(demo.finished("sft").workdir)["update/learning_rate"]]
    warm = SETTINGS["optimizer.warmup_steps"]
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(1e-3 * min(step / warm, 1), rel=1e-5)


def test_a_value_to_stop_at_ends_the_run_for_good(demo, tmp_path):
    """Started again, it does not go on."""
    stop = {"train__validate_every": 2, "train__stop_metric": "order/length", "train__stop_value": 0.5}
    out, err = demo.main("rl", tmp_path, **stop).communicate()
    assert "step 2: order/length is" in out, err
    first = scalars(tmp_path)
    assert [step for step, _ in first["loss"]] == [1, 2]
    process = demo.main("rl", tmp_path, **stop)
    process.communicate()
    assert process.returncode == 0
    assert scalars(tmp_path) == first


def test_a_metric_that_does_not_exist_is_said_before_the_first_step(demo, tmp_path):
    process = demo.main("rl", tmp_path, train__stop_metric="ordr/length")
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: train.stop_metric='ordr/length' is not measured; validation")
