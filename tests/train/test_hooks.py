"""When hooks act, and that all processes of a run act at the same steps."""

from __future__ import annotations

import jax
import pytest
from runs import scalars

from jvr1 import config as settings
from jvr1.opening.holder import release_all
from jvr1.processes.peers import gather
from jvr1.train import loop as loop_module
from jvr1.train.hooks import Hook
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally
from jvr1.train.setup import open_run


def acted(clock, **how) -> list[int]:
    """Steps after which a hook acts; clock[i] is the time at which step i + 1 began."""
    steps: list[int] = []
    hook = Hook(lambda step, made: steps.append(step), **how)
    hook.begin()
    for step, now in enumerate(clock, 1):
        hook.after(step, "made", now)
    return steps


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ({}, []),
        ({"steps": 3}, [3, 6, 9]),
        ({"steps": 3, "first": 1}, [1, 4, 7, 10]),
        ({"steps": 3, "first": 5}, [5, 8]),
        ({"steps": 4, "at_start": True}, [0, 4, 8]),
        ({"at_start": True}, []),
        ({"seconds": 25.0}, [4, 7, 10]),
        ({"seconds": 10.0}, list(range(2, 11))),
        ({"steps": 5, "seconds": 25.0}, [4, 5, 8, 10]),  # what steps bring counts as the last time too
        ({"also": lambda: True}, list(range(1, 11))),
    ],
)
def test_steps_and_seconds(how, want):
    """Steps that begin every ten seconds."""
    assert acted([1000.0 + 10 * i for i in range(10)], **how) == want


def test_one_long_step_counts_once():
    """The clock is read as a step begins: what a long third step took is seen at the fourth."""
    assert acted([0.0, 1.0, 2.0, 500.0, 501.0, 502.0], seconds=60.0) == [4]


def test_processes_act_by_the_clock_of_the_first_and_mains_hooks_come_before_the_log(demo, tmp_path, monkeypatch):
    """A second process whose clock stands still is played: minutes pass on the first one's alone."""
    changes = {
        "batch__micro": 8, "data__workers": 0, "train__steps": 6, "train__save_every": 100, "train__save_minutes": 1.0,
        "train__keep": 9,
    }  # fmt: skip
    config, folder, *_ = settings.parse(["sft", *demo.arguments("sft", tmp_path / "run", **changes)])
    began: list[float] = []

    def of_two(value):
        every = gather(value)
        if not (isinstance(value, list) and len(value) == 4):
            return every
        began.append(30.0 * len(began))
        (own,) = every
        return [[*own[:3], began[-1]], [False, None, [], 7.0]]

    monkeypatch.setattr(loop_module, "gather", of_two)
    loop, seen = Loop(open_run(config, folder, targets=True), {}), []
    zero = jax.jit(lambda params: jax.tree.map(jax.numpy.zeros_like, params))

    def step_of(step, microbatches):
        return Tally().add(loop.update(zero(loop.state.params), has_rows=True) | {"steps": (step, 1)}), [step]

    def own(step, made):
        seen.append((step, made, loop.step, loop.checkpoints.latest_step()))
        loop.writer.scalars(step, {"own": step})

    code = loop.run(step_of, Hook(own, steps=2))
    release_all()
    assert code == 0
    assert seen == [(2, [1], 2, None), (4, [3], 4, 3), (6, [5], 6, 5)]
    saved = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {3, 5, 6}  # begun 60 and 120 seconds after the first step; the end
    logged = scalars(tmp_path / "run")
    assert logged["own"] == [(2, 2.0), (4, 4.0), (6, 6.0)]
    assert logged["steps"] == [(step + 1, step) for step in range(6)]
