"""A training run with Muon: it learns, and goes on to the bit."""

from __future__ import annotations

from runs import scalars, without_times

STEPS = 8


def test_a_stopped_run_goes_on_to_the_bit(demo, tmp_path):
    settings = {"optimizer__name": "muon", "optimizer__warmup_steps": 0, "optimizer__learning_rate": 3e-3}

    def train(folder: str, steps: int) -> dict:
        arguments = demo.arguments("sft", tmp_path / folder, train__steps=steps, **settings)
        demo.done(["-mjvr1.train_sft"], arguments)
        return without_times(scalars(tmp_path / folder))

    whole = train("whole", STEPS)
    train("parts", STEPS // 2)
    assert train("parts", STEPS) == whole
    loss = [value for _, value in whole["loss"]]
    assert loss[-1] < loss[0] - 0.1
