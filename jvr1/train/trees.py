"""Sums of parameter trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def add_trees(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf, in the dtype of a."""
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


def zeros_like(tree: Any) -> Any:
    """fp32 zeros laid out as the tree is: where the gradients of microbatches add up."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32, device=x.sharding), tree)


def cast(tree: Any, dtype: str) -> Any:
    """A copy in a dtype (the same one, too), laid out as the tree is."""
    return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), tree)
