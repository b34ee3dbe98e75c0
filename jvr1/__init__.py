"""Reinforcement learning for video reasoning in JAX."""

import importlib.util
import sys
from collections.abc import Sequence

__version__ = "0.1.0"


def check_jax(argv: Sequence[str]) -> None:
    """Ends a command (`python -m jvr1...`) with one line where jax is missing: it is imported before any main can say
    so. An import by another program gets Python's own error."""
    if argv[:1] == ["-m"] and importlib.util.find_spec("jax") is None:
        print("error: jax is not installed: pip install jax, or jax[cuda12], jax[cuda13] or jax[tpu]", file=sys.stderr)
        sys.exit(2)


check_jax(sys.argv)
