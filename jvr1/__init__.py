"""Reinforcement learning for video reasoning in JAX."""

__version__ = "0.1.0"
