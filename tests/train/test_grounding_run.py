"""Temporal grounding is learned: on the demo's clips of a square that is blue for a while, mean IoU rises by T-GRPO."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import REPOSITORY, piped, scalars

from jvr1.demo.dataset import Settings, write_dataset
from jvr1.demo.tiny_model import write_tiny_model

pytestmark = pytest.mark.nightly
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def trained(root: Path, stage: str, source: Path, **settings: object) -> dict[int, float]:
    """Mean IoU of validation by step."""
    places = {"data.root": root, "data.index": root / "index", "model.source": source, **settings}
    arguments = [f"--config={REPOSITORY}/configs/tiny.py:{stage}", *(f"--config.{k}={v}" for k, v in places.items())]
    process = piped(["-mjvr1.train_" + stage.partition("_")[2], *arguments, f"--workdir={root / stage}"], ENVIRONMENT)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return dict(scalars(root / stage)["valid/blue/ordered"])


def test_mean_iou_rises(tmp_path):
    write_dataset(tmp_path, Settings(train=32, valid=32, test=32, seed=1, grounding=512))
    write_tiny_model(tmp_path / "tiny_model", seed=1)
    started = trained(tmp_path, "grounding_sft", tmp_path / "tiny_model")
    learned = trained(tmp_path, "grounding_rl", tmp_path / "grounding_sft")
    first, last = learned[0], learned[max(learned)]
    assert first == pytest.approx(started[max(started)], abs=1e-3)  # it goes on from there
    assert last > first + 0.1
    assert last > 31 / 60  # more than who sees no order can reach
