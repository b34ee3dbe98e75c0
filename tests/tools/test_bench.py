"""What the benchmarks compare is the same work: counted as training counts it, equal to transformers + torch."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jvr1.train.flops import step_flops
from tools.benchmarks import against, schedule
from tools.benchmarks.data import CONFIGS
from tools.benchmarks.phases import Cell, build, measure, open_phases, timed
from tools.benchmarks.queue import LONGEST, MEAN, draw_lengths
from tools.benchmarks.shapes import SHAPES, make_inputs, resized, text_tokens

pytestmark = pytest.mark.slow
BENCH = Path(__file__).parents[2] / "tools" / "bench.py"


def test_a_step_is_counted_as_in_training():
    shape = SHAPES["tiny"]
    phases = open_phases(*build(shape), shape)
    want = step_flops(
        shape.model, shape.bucket, shape.prompts, shape.group, shape.shuffled, shape.bucket.completion, reference=True
    )
    assert phases["step"].flops == pytest.approx(want)
    assert phases["step"].flops == pytest.approx(sum(phases[p].flops for p in ("prefill", "decode", "score", "update")))
    first, seconds = measure(phases["decode"], 1)
    assert first > 0
    assert seconds > 0


def test_what_a_phase_needs_is_compiled_in_its_first_run():
    """In any order: an update compiled again in a later turn would be counted as time."""
    phases = open_phases(*build(SHAPES["tiny"]), SHAPES["tiny"])
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for part in ("update", "score"):
        timed(phases[part])
    before = len(compiled)
    assert before > 0
    for part in ("update", "score", "update"):
        timed(phases[part])
    assert len(compiled) == before


def test_prompts_of_all_buckets_decode_as_long_as_the_longest_completion(monkeypatch):
    """The run's queue with programs that count: before, a queue a bucket, one after the other."""
    monkeypatch.setattr(schedule, "ROWS", 2000)
    monkeypatch.setattr(schedule, "STEPS", 10)
    figures = schedule.run()
    assert figures["shapes"] == 1
    assert figures["steps_of_the_longest"]["together"] == 1
    assert figures["steps_of_the_longest"]["apart"] > 0.9 * figures["buckets_a_step"]
    for padding in figures["padding_in_the_update"].values():
        assert padding["padded"] == pytest.approx(1 - 385 / 768, abs=0.01)
        assert padding["packed_and_sorted"] <= padding["packed"] < 0.8 * padding["padded"]


def test_the_two_ways_score_the_same_tokens_alike():
    """Ours and transformers + torch, each in a process of its own: all phases run, the same log-probabilities."""
    report = against.run("small", rounds=1)
    assert report["logprob_difference"] < 1e-4
    assert set(report["ratio"]) == {"generate", "update", "step", "memory"}
    assert all(ratio > 0 for ratio in report["ratio"].values())


@pytest.mark.parametrize("name", ["tiny", "small", "mid"])
@pytest.mark.parametrize("changes", [{}, {"frames": 2, "completion": 5, "layers": 1, "group": 2}])
def test_a_prompt_is_as_long_as_its_shape_says(name, changes):
    shape = resized(SHAPES[name]._replace(prompts=2), **changes)
    arrays, ids, mask, advantage = make_inputs(shape)
    assert arrays.prompt.mask.shape == (2, shape.bucket.prompt)
    assert arrays.prompt.mask.all()
    assert (np.asarray(arrays.prompt.visual_index) < 0).sum() == 2 * text_tokens(shape)
    assert text_tokens(shape) == text_tokens(SHAPES[name])
    assert ids.shape == mask.shape == (2, shape.group, shape.bucket.completion)
    assert advantage.shape == (2, shape.group)


def test_growth_is_measured_against_the_count_that_grew_more():
    """FLOPs alone where bytes are no limit."""
    small, large = Cell(1.0, 10.0, 4.0), Cell(6.0, 20.0, 16.0)
    assert large.grew_more(small) == 6.0 / 4.0
    assert large._replace(bytes=0.0).grew_more(small._replace(bytes=0.0)) == 6.0 / 2.0
    assert large._replace(bytes=4.0).grew_more(small) == 6.0 / 2.0


def test_the_part_data_reads_the_repository_s_configs():
    assert {"tiny.py", "tgrpo_7b.py"} <= {path.name for path in CONFIGS.iterdir()}


def test_lengths_are_those_of_the_reference():
    lengths = draw_lengths(1000, LONGEST)
    assert lengths.mean() == pytest.approx(MEAN, rel=0.01)
    assert lengths.max() == LONGEST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "part score needs --shape NAME"),
        (
            ["score", "--shape=huge"],
            "no shape 'huge'; there are tiny, small, mid, 3b, 3b-64-rows, 3b-256-rows, 7b, 7b-lora, tiny-lora",
        ),
        (["against", "--shape=huge"], "no shape 'huge'; there are small, mid, mid-400, mid-64-frames"),
        (["data", "--shape=mid"], "part data has no --shape"),
        (["data", "--json=/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", [str(BENCH), *arguments])
    monkeypatch.syspath_prepend(str(BENCH.parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCH), run_name="__main__")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
