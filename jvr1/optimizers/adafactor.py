"""Adafactor (Shazeer & Stern, arXiv 1804.04235) at a given learning rate, as HF's Trainer runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jvr1.model.families import known
from jvr1.sharding import path_name

FACTORED_FROM = 128
"""Matrices with a shorter side keep their second moment whole. No model has so many layers: they are never a side."""
LARGEST_RMS = 1.0
"""Bound on the root mean square of the update of an array, of each layer's where they are stacked."""


def adafactor() -> optax.GradientTransformation:
    """g / sqrt(v), scaled down to an RMS of 1 where it is above; v is the product of its means over the rows and over
    the columns of each matrix [inputs, outputs], and whole for other arrays. No first moment.

    v decays by 1 - t^-0.8 at update t. There are no relative step sizes and the parameters' size plays no part (HF's
    `relative_step=False, scale_parameter=False`).
    """
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=FACTORED_FROM)

    def init(params: Any) -> optax.OptState:
        return tx.init(_map(_as_matrices, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        matrices = _map(_as_matrices, updates)
        scaled, state = tx.update(matrices, state, matrices)  # of parameters it reads shapes alone
        return _map(lambda path, u, g: _bounded(path, u.reshape(g.shape)), scaled, updates), state

    return optax.GradientTransformation(init, update)


def _bounded(path: str, update: Array) -> Array:
    clip = optax.clip_by_block_rms(LARGEST_RMS)

    def one(x: Array) -> Array:
        return clip.update(x, optax.EmptyState())[0]

    return jax.vmap(one)(update) if known(path).stacked else one(update)


def _as_matrices(path: str, x: Array) -> Array:
    """Heads and their size as one axis, in what is in a product: the two sides of its matrices are the longest axes."""
    matrix = known(path).matrix
    if matrix is None:
        return x
    rows, columns = matrix.sides(x.shape)
    before, after = ([x.shape[i] for i in matrix.batch if (i > matrix.inputs[0]) == side] for side in (False, True))
    return jnp.reshape(x, (*before, rows, *after, columns))


def _map(function: Callable[..., Array], tree: Any, *others: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, *x: function(path_name(path), *x), tree, *others)
