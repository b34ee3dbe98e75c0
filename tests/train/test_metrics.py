"""What is written is read back: TensorBoard events, wandb calls, rollouts, strips; sums and clocks add up."""

from __future__ import annotations

import io
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jvr1.errors import UserError
from jvr1.rl.objectives import Mean
from jvr1.train.metrics import MetricsWriter, PhaseClock, Profiler, Tally, frame_strip, write_rollouts


def read_events(workdir) -> EventAccumulator:
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return events


def test_events_are_read_back_by_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    for step in range(3):
        writer.scalars(step, {"reward/accuracy": jnp.float32(step / 4), "loss": np.float64(-step), "skipped": step})
    writer.text(2, "completions", "<think>**a** | b</think>\n<answer>B</answer>")
    writer.image(2, "videos/0", image)
    writer.flush()
    events = read_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("reward/accuracy")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert [e.value for e in events.Scalars("loss")] == [0.0, -1.0, -2.0]
    assert events.Scalars("skipped")[2].value == 2
    text = events.Tensors("completions")[0]
    # indented: markdown takes it as it is
    assert text.tensor_proto.string_val[0] == b"    <think>**a** | b</think>\n    <answer>B</answer>"
    stored = events.Images("videos/0")[0]
    assert (stored.step, stored.width, stored.height) == (2, 20, 12)
    np.testing.assert_array_equal(Image.open(io.BytesIO(stored.encoded_image_string)), image)
    writer.close()


def test_a_resumed_run_hides_what_the_killed_one_wrote_later(tmp_path):
    first = MetricsWriter(tmp_path)
    for step in range(6):
        first.scalars(step, {"loss": float(step)})
    first.close()
    second = MetricsWriter(tmp_path, first_step=4)
    for step in range(4, 6):
        second.scalars(step, {"loss": -float(step)})
    second.close()
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("loss")] == [
        (0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, -4.0), (5, -5.0)
    ]  # fmt: skip


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricsWriter(tmp_path, wandb_project="named, not installed")
    writer.scalars(0, {"loss": 1.0})
    writer.text(0, "t", "t")
    writer.image(0, "i", np.zeros((2, 2, 3), np.uint8))
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_must_be_installed_where_a_project_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.wandb is 'video' but wandb is not installed; pip install wandb"):
        MetricsWriter(tmp_path, "video")


def test_wandb_gets_the_same_and_the_run_goes_on(tmp_path, monkeypatch):
    logged, started = [], []
    run = types.SimpleNamespace(
        id="abc123", log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )
    fake: Any = types.ModuleType("wandb")
    fake.init = lambda **kw: started.append(kw) or run
    fake.Image = lambda image: ("image", image.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        writer = MetricsWriter(tmp_path, "video")
        writer.scalars(5, {"loss": jnp.float32(2)})
        writer.text(5, "completions", "B")
        writer.image(5, "strip", np.zeros((3, 4, 3), np.uint8))
        writer.close()
    assert logged[:3] == [(5, {"loss": 2.0}), (5, {"completions": "B"}), (5, {"strip": ("image", (3, 4, 3))})]
    assert [kw["id"] for kw in started] == [None, "abc123"]
    assert {(kw["project"], kw["resume"], kw["name"]) for kw in started} == {("video", "allow", tmp_path.name)}


def test_rollouts_are_written_whole(tmp_path, monkeypatch):
    rows = [
        {"text": "第三个是蓝色\n<answer>B</answer>", "reward": np.float32(1.5), "length": np.int64(3)},
        {"text": "lone \ud800 surrogate", "advantages": np.array([0.5, -0.5])},
    ]
    path = write_rollouts(tmp_path, 7, 2, rows)
    assert str(path) == str(tmp_path / "rollouts" / "step-7.process-2.jsonl")
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert first == {"text": "第三个是蓝色\n<answer>B</answer>", "reward": 1.5, "length": 3}
    assert second == {"text": "lone ? surrogate", "advantages": [0.5, -0.5]}
    write_rollouts(tmp_path, 7, 2, rows[:1])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    before = path.read_bytes()

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_rollouts(tmp_path, 7, 2, rows)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_strip_shows_the_frames_in_order_and_the_caption_below():
    frames = np.zeros((5, 40, 100, 3), np.uint8)
    frames[..., 0] = np.arange(50, 100, 10)[:, None, None]
    strip = frame_strip(frames, "ordered: B, right\nshuffled: " + "d" * 200)
    assert (strip.dtype, strip.shape[1:]) == (np.uint8, (4 * 302 - 2, 3))
    for i in range(5):  # four in a row, each pixel nine times: 40 rows are too few to be seen
        top, left = 122 * (i // 4), 302 * (i % 4)
        shown = strip[top : top + 120, left : left + 300]
        np.testing.assert_array_equal(shown[::3, ::3], frames[i])
        np.testing.assert_array_equal(shown[2::3, 2::3], frames[i])
    assert (strip[:242, 300:302] == 255).all()
    text = strip[242:]
    assert (text < 128).any()
    # all of the 200 letters are there: 200 stems, in lines within the margins
    assert (text[:, :4] == 255).all()
    assert (text[:, -4:] == 255).all()
    more = frame_strip(frames, "ordered: B, right\nshuffled: " + "d" * 400)
    assert more.shape[0] > strip.shape[0]
    assert frame_strip(frames, "d" * 40_000).shape == frame_strip(frames, "d" * 80_000).shape  # cut
    assert frame_strip(frames[:1, :, :10], "x").shape[1] == 480
    assert frame_strip(frames, "").shape == (250, 1206, 3)
    large = np.zeros((2, 120, 100, 3), np.uint8)
    assert frame_strip(large, "").shape == (128, 480, 3)


def test_tally_is_one_mean_over_unequal_microbatches(strict_dtypes):
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=n), rng.random(n) < 0.7) for n in (3, 17, 1, 8)]

    @jax.jit
    def add(tally, x, mask):
        sums = {"x": Mean(jnp.sum(jnp.where(mask, x, jnp.float32(0))), jnp.sum(mask.astype(jnp.float32)))}
        return tally.add(sums, {"x_max": jnp.max(x)})

    tally = Tally()
    for i, (x, mask) in enumerate(batches):
        tally = add(tally, jnp.float32(x), jnp.asarray(mask))
        tally = tally.add({"video": (jnp.float32(i), jnp.float32(1)), "never": (jnp.float32(0), jnp.float32(0))})
    means = tally.means()
    x, mask = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_allclose(means.pop("x"), x[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(means.pop("x_max"), x.max(), rtol=1e-6)
    assert means == {"video": 1.5}
    assert Tally().means() == {}


def test_a_tally_is_never_changed():
    one = Tally().add({"a": (1.0, 2.0)})
    assert one.add({"a": (1.0, 2.0), "b": (3.0, 1.0)}).means() == {"a": 0.5, "b": 3.0}
    assert one.means() == {"a": 0.5}
    assert Tally() == ({}, {})


def test_clock_adds_up_phases():
    times = iter([0.0, 1.0, 3.0, 5.0, 6.0, 7.0, 7.5, 10.0, 11.0, 13.0])
    clock = PhaseClock(lambda: next(times))
    with clock.phase("data"):
        pass
    with clock.phase("update"):
        pass
    with pytest.raises(RuntimeError), clock.phase("data"):
        raise RuntimeError
    assert clock.take() == {"data": 2.5, "update": 1.0, "total": 10.0}
    assert clock.take() == {"total": 1.0}


def test_only_the_steps_asked_for_are_in_the_trace(tmp_path):
    profiler = Profiler(tmp_path, range(2, 4))
    for step in range(1, 6):
        profiler.at(step)
        with jax.profiler.TraceAnnotation(f"my_step_{step}"):
            jnp.zeros(3).block_until_ready()
    profiler.close()
    (trace,) = (tmp_path / "profile" / "process-0").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert [step for step in range(1, 6) if f"my_step_{step}".encode() in content] == [2, 3]


def test_a_run_that_ends_within_the_steps_asked_for_leaves_its_trace(tmp_path):
    profiler = Profiler(tmp_path, range(1, 9))
    profiler.at(1)
    profiler.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
