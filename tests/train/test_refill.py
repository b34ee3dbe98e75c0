"""Dynamic sampling: steps that draw more rows, and the position in the data whatever happens in between."""

from __future__ import annotations

import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import scalars, without_times

from jvr1 import config as settings
from jvr1.opening.holder import release_all
from jvr1.train.loop import Loop, Stopped
from jvr1.train.metrics import Tally
from jvr1.train.setup import open_run

STEPS = 6
MORE = (0, 2, 1, 0, 2, 1)
"""How often each step draws again."""


class Killed(Exception):
    pass


CHANGES = {
    "data__workers": 0, "train__steps": STEPS, "train__save_every": 2, "train__validate_every": 0, "rl__refill": 2,
    "batch__micro": 8, "batch__per_step": 1, "rl__beta": 0.0,
}  # fmt: skip


def rows_of_steps(demo, workdir, fails: type[Exception] | None = None) -> list[tuple[int, list[tuple[int, int]]]]:
    """(microbatch, row) of each step that a run took in this process. fails: in the midst of the fifth."""
    config, folder, *_ = settings.parse(["rl", *demo.arguments("rl", workdir, **CHANGES)])
    loop = Loop(open_run(config, folder, targets=False), {})
    zero, seen = jax.tree.map(jnp.zeros_like, loop.state.params), []

    def step_of(step, microbatches):
        drawn = list(microbatches)
        for again in range(MORE[step]):
            drawn += loop.more()
            if fails and (step, again) == (4, 0):
                raise fails
        seen.append((step, [(row.micro, row.number) for micro in drawn for row in micro.rows]))
        loop.kept = loop.kept | {"drawn": loop.kept.get("drawn", 0) + len(drawn), "exact": [0.1 + 0.2]}
        return Tally().add(loop.update(zero, has_rows=True)), None

    try:
        loop.run(step_of)
    except Killed:
        pass
    finally:
        loop.checkpoints.close()
        release_all()
    assert loop.kept == {"drawn": sum(1 + n for n in MORE[: loop.step]), "exact": [0.1 + 0.2]}
    return seen


def test_rows_go_on_after_the_last_step_that_was_taken(demo, tmp_path):
    """A run that ends while its fifth step draws again takes that step again, with the same rows; killed, then told."""
    whole = rows_of_steps(demo, tmp_path / "whole")
    assert [len(rows) for _, rows in whole] == [8 * (1 + n) for n in MORE]
    micros = [micro for _, rows in whole for micro, _ in rows]
    assert micros == sorted(micros)
    assert set(micros) == set(range(STEPS + sum(MORE)))  # each batch of rows once
    broken = rows_of_steps(demo, tmp_path / "broken", Killed)
    assert [step for step, _ in broken] == [0, 1, 2, 3]
    assert rows_of_steps(demo, tmp_path / "broken", Stopped) == []
    assert broken + rows_of_steps(demo, tmp_path / "broken") == whole


EVERYTHING = {
    "rl__refill": 2, "rl__refill_share": 0.7, "rl__minibatches": 2, "rl__updates": 2, "rl__clip_low": 0.2,
    "rl__clip_high": 0.28, "rl__clip_dual": 3.0, "rl__reference_every": 2, "rl__credit": "select",
    "rl__credit_alpha": 6.0, "rl__std_of": "kind", "rl__entropy_share": 0.8, "rl__entropy_target": 2.0,
    "rl__rollout_correction": "token_truncate", "rl__overlong": "penalty", "rl__overlong_tokens": 3,
    "rl__kl_in": "reward", "rl__combine": "normalise", "reward__user": "own_reward:with_e",
    "rl__correct_threshold": -1.0, "train__steps": 8, "train__save_every": 3, "train__validate_every": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(demo, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("everything")
    process = demo.main("rl", workdir, **EVERYTHING)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return workdir


@pytest.mark.nightly
def test_everything_at_once_is_logged(undisturbed):
    logged = scalars(undisturbed)
    named = ("loss", "loss/kl", "loss/correction", "loss/entropy_weight", "loss/clip_dual", "loss/logprob_gap")
    own = ("credit/right", "credit/size", "refill/rounds")
    by_update = [f"loss/{name}/{n}" for name in ("ratio", "kl", "clip_high") for n in (1, 4)]
    assert [name for name in (*named, *own, *by_update) if not logged.get(name)] == []
    assert all(np.isfinite(value) for values in logged.values() for _, value in values)
    assert all(value == pytest.approx(1, abs=1e-4) for _, value in logged["loss/ratio/1"])
    assert any(abs(value - 1) > 1e-4 for _, value in logged["loss/ratio/4"])
    assert all(value < 1e-3 for _, value in logged["loss/logprob_gap_max"])
    weights = [value for _, value in logged["loss/entropy_weight"]]
    assert weights[0] == 0
    np.testing.assert_allclose(np.diff(weights)[np.diff(weights) > 0], 5e-4, rtol=1e-3)
    assert {value for _, value in logged["refill/rounds"]} > {1.0}  # some steps drew more
    kl = dict(logged["loss/kl/1"])
    assert all((kl[step] < 1e-9) == (step % 2 == 1) for step in kl)  # the reference is renewed after every second step


@pytest.mark.nightly
def test_a_run_killed_in_dynamic_sampling_repeats_an_undisturbed_one_to_the_bit(demo, undisturbed, tmp_path):
    process = demo.main("rl", tmp_path, **EVERYTHING)
    while not list(tmp_path.glob("rollouts/step-5.*.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("rollouts/step-8.*"))
    process = demo.main("rl", tmp_path, **EVERYTHING)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resumed at step 3" in out or "resumed at step 6" in out
    want = without_times(scalars(undisturbed))
    assert len(want["loss"]) == 8
    assert without_times(scalars(tmp_path)) == want
