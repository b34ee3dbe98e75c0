"""What lies where on a tape, read off with numpy; and gradients through it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1.model.tape import lay, needed, unwind, wind

LENGTH = np.array([[3, 0, 4, 1], [0, 0, 0, 0], [4, 4, 4, 4]], np.int32)
C = 4
pytestmark = pytest.mark.usefixtures("strict_dtypes")


def tapes(x: np.ndarray, size: int) -> np.ndarray:
    """Completions one after the other, then zeros."""
    rows = [np.concatenate([x[b, g, :n] for g, n in enumerate(length)]) for b, length in enumerate(LENGTH)]
    return np.stack([np.pad(row, [(0, size - len(row)), (0, 0)]) for row in rows])


@pytest.fixture
def completions() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4, C, 2)).astype(np.float32)


@pytest.mark.parametrize("size", [16, 19])
def test_completions_lie_one_after_the_other(completions, size):
    tape = lay(jnp.asarray(LENGTH), size)
    np.testing.assert_array_equal(tape.row[0, :9], [0, 0, 0, 2, 2, 2, 2, 3, 4])
    np.testing.assert_array_equal(tape.place[0, :8], [0, 1, 2, 0, 1, 2, 3, 0])
    assert (np.asarray(tape.row[1]) == 4).all()  # padding alone
    on_tape = wind(jnp.asarray(completions), tape)
    np.testing.assert_array_equal(on_tape, tapes(completions, size))
    there = (np.arange(C) < LENGTH[..., None])[..., None]
    np.testing.assert_array_equal(unwind(on_tape, tape, C), np.where(there, completions, 0))


def test_gradients_go_where_values_came_from(completions):
    """Against JAX's own of the same selection as a matrix."""
    size = 17
    tape = lay(jnp.asarray(LENGTH), size)
    places = np.arange(LENGTH.size * C, dtype=np.float32).reshape(*LENGTH.shape, C, 1) + 1
    took = tapes(places, size)[..., 0]
    matrix = took[:, :, None] == places.reshape(3, 1, -1)  # [B,S,G*C]
    rng = np.random.default_rng(1)
    x = {"wind": completions, "unwind": rng.normal(size=(3, size, 2)).astype(np.float32)}
    for name, f in (("wind", lambda x: wind(x, tape)), ("unwind", lambda x: unwind(x, tape, C))):
        out, back = jax.vjp(f, jnp.asarray(x[name]))
        weight = rng.normal(size=out.shape).astype(np.float32)
        select = matrix if name == "wind" else matrix.swapaxes(1, 2)
        want = np.einsum("bij,bih->bjh", select, weight.reshape(3, -1, 2)).reshape(x[name].shape)
        np.testing.assert_array_equal(back(jnp.asarray(weight))[0], want)


def test_what_comes_before_a_token_is_needed_too():
    mask = np.zeros((1, 3, 5), bool)
    mask[0, 0, [1, 3]] = mask[0, 2] = True
    np.testing.assert_array_equal(needed(jnp.asarray(mask)), [[4, 0, 5]])
