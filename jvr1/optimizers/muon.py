"""Muon (Jordan et al., https://kellerjordan.github.io/posts/muon), scaled as by Liu et al. (arXiv 2502.16982)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax import contrib

from jvr1.model.families import known
from jvr1.model.parameters import Matrix
from jvr1.optimizers.adamw import adamw
from jvr1.sharding import path_name

RMS = 0.2
"""Of the values of an update, whatever the matrix's shape: about AdamW's, so that one learning rate serves both."""

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Jordan's coefficients, a row a step: optax runs rows as a loop, which compiles in a fraction of the time."""


def muon(*, momentum: float, b1: float, b2: float, eps: float, moment_dtype: str) -> optax.GradientTransformation:
    """Nesterov momentum, made orthogonal by five steps of Newton-Schulz, times 0.2 sqrt(max(inputs, outputs)): for the
    matrices of the linear maps inside the model and of their adapters (`Parameter.hidden`). AdamW for embeddings, the
    head, norms and biases.

    A matrix is a layer's [inputs, outputs], heads and their size one axis; one array of queries, keys and values is
    three. moment_dtype: of the momentum, and of AdamW's first moment.
    """
    rest = adamw(b1=b1, b2=b2, eps=eps, moment_dtype=moment_dtype)
    return optax.partition({"muon": orthogonal_momentum(momentum, moment_dtype), "adamw": rest}, _labels)


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if known(path_name(path)).hidden else "adamw", params
    )


def orthogonal_momentum(momentum: float, moment_dtype: str) -> optax.GradientTransformation:
    """optax' Muon on parameters that all are in a product, one layer of stacked ones after the other: all of them at
    once would be in memory whole, several times."""

    def transform(matrix: Matrix | None = None) -> optax.GradientTransformation:
        axes = None if matrix is None else contrib.MuonDimensionNumbers(matrix.inputs, matrix.outputs)
        return contrib.scale_by_muon(
            NEWTON_SCHULZ, beta=momentum, mu_dtype=jnp.dtype(moment_dtype), weight_dimension_numbers=axes
        )

    def update(updates: Any, state: contrib.MuonState, params: Any = None) -> tuple[Any, contrib.MuonState]:
        def one_array(path: Any, gradient: Array, mu: Array) -> tuple[Array, Array]:
            matrix, stacked = known(path_name(path)).matrix, known(path_name(path)).stacked
            assert matrix is not None
            scale = RMS * math.sqrt(max(matrix.sides(gradient.shape)))
            tx = transform(matrix.of_a_layer() if stacked else matrix)

            def one_layer(arrays: tuple[Array, Array]) -> tuple[Array, Array]:
                direction, new = tx.update(arrays[0], state._replace(mu=arrays[1]))
                return direction * scale, new.mu

            return jax.lax.map(one_layer, (gradient, mu)) if stacked else one_layer((gradient, mu))

        both = jax.tree_util.tree_map_with_path(one_array, updates, state.mu)
        directions, mu = (jax.tree.map(lambda _, pair, i=i: pair[i], updates, both) for i in (0, 1))
        return directions, state._replace(count=optax.safe_increment(state.count), mu=mu)

    return optax.GradientTransformation(transform().init, update)
