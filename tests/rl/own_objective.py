"""The objective that docs/extending.md shows, as a user would write it."""

import jax.numpy as jnp
from jax.lax import stop_gradient


def gppo(terms, config):
    """Clipped tokens keep a gradient, of the size it had at the bound (Klear-Reasoner, arXiv 2508.07629)."""
    held = jnp.clip(terms.ratio, 1 - config.clip_low, 1 + config.clip_high)
    kept = stop_gradient(held / terms.ratio) * terms.ratio
    return jnp.minimum(terms.ratio * terms.advantage, kept * terms.advantage)
