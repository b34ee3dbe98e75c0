"""M-RoPE positions against the rule of transformers 4.x, written here with torch token by token."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

from jvr1.model.families import from_hf
from jvr1.model.inputs import Grid
from jvr1.model.qwen2_5_vl.config import vision_of
from jvr1.model.qwen2_5_vl.positions import mrope_positions

CONFIG = from_hf(oracle.raw_config())


def rule(ids: np.ndarray, grids: list[Grid], rate: int) -> tuple[np.ndarray, int]:
    """Text takes the next number on all axes; a video's time is (step * seconds * rate) in torch's fp32, truncated."""
    columns, at, left = [], 0, list(grids)
    i = 0
    while i < len(ids):
        if ids[i] not in (oracle.IMAGE, oracle.VIDEO):
            columns.append((at, at, at))
            i, at = i + 1, at + 1
            continue
        grid = left.pop(0)
        seconds = torch.tensor([grid.seconds_per_step], dtype=torch.float32)[0]
        for step in range(grid.steps):
            time = int((torch.tensor([step]) * seconds * rate).long()[0])
            for row in range(grid.height // 2):
                for column in range(grid.width // 2):
                    columns.append((at + time, at + row, at + column))
        count = grid.steps * grid.height * grid.width // 4
        i, at = i + count, max(max(c) for c in columns[-count:]) + 1
    return np.array(columns).T, at


def sequence(rng: np.random.Generator) -> tuple[np.ndarray, list[Grid]]:
    ids, grids = [], []
    for _ in range(rng.integers(0, 4)):
        ids += rng.integers(3, 90, rng.integers(0, 5)).tolist()
        video = bool(rng.integers(2))
        height, width = (2 * rng.integers(1, 6, 2)).tolist()
        seconds = float(2 / rng.uniform(0.1, 4)) if video else 0.0
        grids.append(Grid(int(rng.integers(1, 12)) if video else 1, height, width, seconds))
        token = oracle.VIDEO if video else oracle.IMAGE
        ids += [oracle.START, *[token] * (grids[-1].steps * height * width // 4), oracle.END]
    return np.array(ids + rng.integers(3, 90, rng.integers(1, 5)).tolist()), grids


@pytest.mark.parametrize("seed", range(60))
def test_positions_follow_the_rule_of_training(seed):
    ids, grids = sequence(np.random.default_rng(seed))
    got, following = mrope_positions(ids, grids, CONFIG)
    want, after = rule(ids, grids, vision_of(CONFIG).tokens_per_second)
    np.testing.assert_array_equal(got, want)
    assert following == after


def test_time_rounds_in_fp32_as_torch_does():
    """0.7 s a step: 5 * 0.7 * 2 is 7 in fp32, and 6.9999999 of the fp32 number 0.7 in double precision."""
    grid = Grid(12, 2, 2, 0.7)
    ids = np.full(12, oracle.VIDEO)
    got, _ = mrope_positions(ids, [grid], CONFIG)
    np.testing.assert_array_equal(got, rule(ids, [grid], 2)[0])
    assert got[0, 5] == 7


@pytest.mark.parametrize(("count", "message"), [(3, "fewer visual tokens"), (5, "1 more visual tokens"), (0, "fewer")])
def test_visual_tokens_must_match_the_grids(count, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(np.array([5, *[oracle.IMAGE] * count]), [Grid(1, 4, 4)], CONFIG)
