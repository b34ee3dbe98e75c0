"""What a family makes of a chat's placeholders, measured and encoded alike: here one with the time of each step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cases import encoder, record
from painted import Paint
from transformers import Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from jvr1.data.batch import make_buckets
from jvr1.data.encode import step_times
from jvr1.model import families
from jvr1.model.config import ModelConfig
from jvr1.model.families import FAMILIES
from jvr1.model.media import Probe
from jvr1.model.positions import block_positions

SMALL = {"hidden_size": 8, "intermediate_size": 8}
TINY = Qwen3VLConfig(
    text_config=SMALL | {"vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    vision_config=SMALL | {"depth": 1, "num_heads": 1, "out_hidden_size": 8, "deepstack_visual_indexes": []},
)


def timed(ids, grids, config, tokenizer):
    """Of a video: for each temporal step its time, then its tokens between their marks."""
    out = []
    media = iter(grids)
    for token in ids.tolist():
        if token not in config.visual_tokens:
            out.append(token)
            continue
        grid = next(media)
        step = grid._replace(steps=1).tokens(config.vision.merge)
        for seconds in grid.times:
            out += tokenizer(f"<{seconds:.1f} seconds>")["input_ids"]
            out += [config.vision_start_token, *[token] * step, config.vision_end_token]
    return np.asarray(out, np.int32)


def stepwise(ids, grids, config):
    """Each step is a block of its own."""
    steps = [grid._replace(steps=1) for grid in grids for _ in range(grid.steps)]
    return block_positions(ids, steps, config, lambda grid: np.zeros(1, np.int32))


@pytest.fixture
def timing(config, monkeypatch) -> ModelConfig:
    own = dataclasses.replace(config.family, model_type="timed", placeholders=timed, positions=stepwise, marked=True)
    monkeypatch.setattr(families, "FAMILIES", {**FAMILIES, "timed": own})
    return dataclasses.replace(config, model_type="timed")


def test_a_family_may_write_each_step_s_time_into_the_prompt(timing, tokenizer, tmp_path):
    """Painted clips are 8 frames, a quarter of a second apart; measured before they are read by number and rate."""
    one = encoder(timing, tokenizer, Paint(tmp_path), buckets=make_buckets([("video", 4, 1, 200, 24)]))
    found = one.measure(record(), (Probe(56, 56, 8, 4.0),))
    arrays = one.encode(record(), one.buckets[0], np.random.default_rng(0))
    real = arrays.prompt.mask
    assert found.tokens == real.sum()
    text = tokenizer.decode(arrays.prompt.ids[real])
    for seconds in ("0.1", "0.6", "1.1", "1.6"):
        assert f"<{seconds} seconds><|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>" in text
    assert (arrays.prompt.visual_index >= 0).sum() == 16
    kinds = torch.tensor(2 * (arrays.prompt.ids[real] == timing.video_token))[None]
    ids, grid = torch.tensor(arrays.prompt.ids[real])[None].long(), torch.tensor([[4, 4, 4]])
    positions, delta = Qwen3VLModel(TINY).get_rope_index(ids, kinds, video_grid_thw=grid)
    np.testing.assert_array_equal(arrays.prompt.positions[:, real], positions[:, 0])
    assert arrays.prompt.next_position == real.sum() + int(delta)
    one.read.close()


def test_an_index_says_which_family_it_is_for_where_there_is_a_choice(timing, config, tokenizer, tmp_path):
    first, own = (encoder(model, tokenizer, Paint(tmp_path)).fingerprint() for model in (config, timing))
    assert own == first | {"family": "timed"}


@pytest.mark.parametrize(("indices", "fps"), [(range(0, 91, 15), 30.0), (range(0, 64, 9), 24.0), ([5], 10.0)])
def test_times_of_steps_are_those_that_transformers_writes(indices, fps):
    """Qwen3-VL's: its odd last frame is repeated."""
    want = Qwen3VLProcessor._calculate_timestamps(None, list(indices), fps, 2)
    np.testing.assert_allclose(step_times(np.asarray(indices) / fps), want)
