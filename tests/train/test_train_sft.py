"""What an SFT run shows and leaves behind."""

from __future__ import annotations

import math

import pytest
from runs import STEPS, scalars

from jvr1.train.checkpoint import Checkpoints

EVERY_STEP = [
    "loss",
    "loss/entropy",
    "loss/answer_logprob",
    "update/gradient_norm",
    "update/skipped",
    "update/learning_rate",
    "update/applied",
    "data/failed",
    "data/padding",
    "seconds/data",
    "seconds/update",
    "seconds/step",
    "tokens_per_second",
    "flops_per_second",
]


@pytest.fixture(scope="module")
def logged(demo):
    return scalars(demo.finished("sft").workdir)


def test_every_metric_is_logged(logged):
    for name in EVERY_STEP:
        assert [step for step, _ in logged[name]] == list(range(1, STEPS + 1)), name
    assert all(math.isfinite(value) for values in logged.values() for _, value in values)


def test_it_learns(logged):
    """The loss is the mean negative log-probability of answer tokens, and falls from about log(vocabulary)."""
    losses = [value for _, value in logged["loss"]]
    assert 5 < losses[0] < 8
    assert losses[-1] < 0.6 * losses[0]
    for (_, loss), (_, logprob) in zip(logged["loss"], logged["loss/answer_logprob"], strict=True):
        assert loss == pytest.approx(-logprob, rel=1e-4)


def test_the_workdir_is_a_model_and_holds_its_settings(demo):
    workdir = demo.finished("sft").workdir
    assert {p.name for p in workdir.iterdir()} >= {"config.json", "model", "checkpoints", "tensorboard"}
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step() == STEPS
    checkpoints.close()
