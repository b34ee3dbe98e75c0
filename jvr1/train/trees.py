"""Sums of parameter trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def add_trees(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf, in the dtype of a."""
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


@jax.jit
def zeros_like(tree: Any) -> Any:
    """fp32 zeros laid out as the tree is: where the gradients of microbatches add up."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), tree)


def cast(tree: Any, dtype: str, shardings: Any) -> Any:
    """A copy in another dtype, laid out as `shardings` say."""
    return jax.jit(lambda t: jax.tree.map(lambda x: x.astype(dtype), t), out_shardings=shardings)(tree)
