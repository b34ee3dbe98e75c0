"""What a run says as it goes: a line a step in a log, a bar in a terminal, the compilations that take long."""

from __future__ import annotations

import io
import json
import sys
import threading

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jvr1.train import progress
from jvr1.train.progress import COMPILED, Compilations, Progress, duration, program_name, short

SHOW = {"reward": "reward", "loss/kl": "KL", "absent": "absent"}


def values(seconds: float, reward: float = 1.0) -> dict[str, float]:
    return {"reward": reward, "loss/kl": 0.00123, "seconds/step": seconds, "other": 1.0}


def test_a_log_gets_a_line_a_step(capsys):
    steps = Progress(10, 2, SHOW)
    for step, seconds in ((3, 60.0), (4, 2.0), (5, 2.0), (6, 4.0)):
        steps.after(step, values(seconds, 1 / 3))
    steps.close()
    out, error = capsys.readouterr()
    assert error == ""
    assert out.splitlines() == [
        "step 3/10  reward 0.333  KL 0.00123  60 s",
        "step 4/10  reward 0.333  KL 0.00123  2 s",
        "step 5/10  reward 0.333  KL 0.00123  2 s",
        "step 6/10  reward 0.333  KL 0.00123  4 s  left 12 s",  # 4 steps of 3 s, the median
    ]


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("out", "error", "bar", "lines"),
    [(True, True, True, False), (False, True, True, True), (True, False, False, True), (False, False, False, True)],
    ids=["terminal", "| tee run.log", "2> error.log", "> run.log 2>&1"],
)
def test_a_terminal_gets_a_bar_and_what_is_kept_gets_lines(monkeypatch, out, error, bar, lines):
    monkeypatch.setattr(sys, "stdout", said := Stream(out))
    monkeypatch.setattr(sys, "stderr", terminal := Stream(error))
    steps = Progress(4, 0, SHOW)
    for step in (1, 2, 3, 4):
        steps.after(step, values(2.0))
    steps.close()
    last = terminal.getvalue().split("\r")[-1]
    assert ("4/4 |" in last) == ("reward 1  KL 0.00123  2 s  left 0 s" in last) == bar
    told = ["1/4  reward 1  KL 0.00123  2 s", "2/4  reward 1  KL 0.00123  2 s", "3/4  reward 1  KL 0.00123  2 s"]
    told.append("4/4  reward 1  KL 0.00123  2 s  left 0 s")
    assert said.getvalue().splitlines() == ([f"step {line}" for line in told] if lines else [])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00"), (3599.6, "1:00:00"), (90_061, "25:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (123.4, "123"), (12345.6, "12,346"), (-2e3, "-2,000")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("name", "told"), [("jit(gradients)", "gradients"), ("jit_update", "update"), ("jit__apply", "apply"), ("x", "x")]
)
def test_programs_have_plain_names(name, told):
    assert program_name(name) == told


class AtOnce(threading.Timer):
    """What was to be said later is said at once."""

    def start(self) -> None:
        self.function(*self.args, **self.kwargs)


@pytest.fixture
def compile_afresh():
    """JAX's kept programs would be loaded, which is a compilation, too, but a fast one."""
    return lambda name, x: jax.jit(_named(name))(jnp.float32(x)).block_until_ready()


def _named(name):
    def program(x):
        return jnp.sin(x) * len(name)

    program.__name__ = name
    return program


def test_a_long_compilation_is_said_with_what_it_took_the_last_time(tmp_path, monkeypatch, capsys, compile_afresh):
    monkeypatch.setattr(progress.threading, "Timer", AtOnce)
    workdir = epath.Path(tmp_path)
    with Compilations(workdir, after=0.0).watched():
        compile_afresh("of_the_test", 1)
    first = [line for line in capsys.readouterr().out.splitlines() if "of_the_test" in line]
    assert first[0] == "compiling of_the_test"
    assert first[1].startswith("compiled of_the_test in ")
    kept = json.loads((tmp_path / COMPILED).read_text())
    assert list(kept)[-1] == "of_the_test 1"
    (tmp_path / COMPILED).write_text(json.dumps(kept | {"of_the_test 1": 125.0}))
    with Compilations(workdir, after=0.0).watched():
        compile_afresh("of_the_test", 2)
    assert "compiling of_the_test, which took 2:05 the last time" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / COMPILED).read_text())["of_the_test 1"] < 125
    compile_afresh("of_the_test", 3)
    assert capsys.readouterr().out == ""  # nobody listens any more


def test_each_shape_of_a_program_has_a_time_of_its_own(tmp_path, monkeypatch, capsys):
    """The last time is that of an earlier start; of another shape in this one it says nothing."""
    monkeypatch.setattr(progress.threading, "Timer", AtOnce)
    event = progress._EVENT

    def start(*seconds: float) -> list[str]:
        one = Compilations(epath.Path(tmp_path))
        for taken in seconds:
            one._begins(event, 0.0, fun_name="jit(gradients)")
            one._ended(event, taken, fun_name="jit(gradients)")
        return capsys.readouterr().out.splitlines()

    assert start(8.0, 30.0) == [
        "compiling gradients", "compiled gradients in 8 s", "compiling gradients", "compiled gradients in 30 s"
    ]  # fmt: skip
    assert json.loads((tmp_path / COMPILED).read_text()) == {"gradients 1": 8.0, "gradients 2": 30.0}
    assert start(9.0, 1.0, 20.0) == [
        "compiling gradients, which took 8 s the last time", "compiled gradients in 9 s",
        "compiling gradients, which took 30 s the last time", "compiled gradients in 1 s",
        "compiling gradients", "compiled gradients in 20 s",
    ]  # fmt: skip
    kept = json.loads((tmp_path / COMPILED).read_text())
    assert kept == {"gradients 1": 9.0, "gradients 2": 30.0, "gradients 3": 20.0}


def test_a_short_compilation_is_not_worth_a_word(tmp_path, capsys, compile_afresh):
    with Compilations(epath.Path(tmp_path), after=3600.0).watched():
        compile_afresh("of_the_test", 1)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / COMPILED).exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', "null"])
def test_a_file_of_times_that_cannot_be_read_is_as_none(tmp_path, content):
    (tmp_path / COMPILED).write_text(content)
    assert Compilations(epath.Path(tmp_path)).seconds == {}
