"""Optimizers with schedule, clipping and decay, and parameters split into trained and frozen ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jvr1.errors import UserError
from jvr1.model.families import known
from jvr1.optimizers import OPTIMIZERS
from jvr1.optimizers.config import OptimizerConfig, read_by
from jvr1.sharding import path_name

Params = dict[str, Any]
"""Nested dicts with arrays (or their shapes) as leaves."""


def make_schedule(config: OptimizerConfig) -> Callable[[ArrayLike], Float[Array, ""]]:
    """The learning rate of step 0, 1, ... as a jittable function. With warm-up it is 0 at step 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    fall = max(config.steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, fall),
        "cosine": lambda: optax.cosine_decay_schedule(peak, fall),
    }[config.schedule]()
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    schedule = optax.join_schedules([rise, after], [warmup]) if warmup else after
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def make_optimizer(config: OptimizerConfig, params: Params) -> optax.GradientTransformationExtraArgs:
    """Clip, the direction of `config.name`, decay, learning rate, all in fp32 whatever the parameters' dtype. `params`
    are the trainable ones.

    Its `update` takes `step=`: the learning rate follows the run's step, whatever steps were skipped.
    """
    schedule = make_schedule(config)
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(OPTIMIZERS[config.name](**{name: getattr(config, name) for name in read_by(config.name)}))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask(params)))
    return _in_float32(optax.chain(*parts, _scale_by_rate(schedule)))


def decay_mask(params: Params) -> Params:
    """True for kernels, the embedding and adapters, which decay; False for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: known(path_name(path)).decays, params)


def partition(params: Params, patterns: Sequence[str], only: str = ".*") -> tuple[Params, Params]:
    """(trainable, frozen) parameters, each a nested dict without empty branches.

    Frozen is what a pattern matches from end to end, and what `only` does not match. Raises UserError for a pattern
    that matches nothing, that is no regular expression, or for patterns that leave nothing to train.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    frozen = {path for path in paths if not re.fullmatch(only, path)}
    for pattern in patterns:
        try:
            matched = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise UserError(f"optimizer.freeze pattern {pattern!r} is no regular expression: {error}") from None
        if not matched:
            raise UserError(f"optimizer.freeze pattern {pattern!r} matches no parameter; a path is like {paths[0]!r}")
        frozen |= matched
    if len(frozen) == len(paths):
        raise UserError(f"optimizer.freeze {tuple(patterns)} matches all that is trained; nothing is left to train")
    return _select(params, set(paths) - frozen, ""), _select(params, frozen, "")


def combine(trainable: Params, frozen: Params) -> Params:
    """The whole parameters from the two parts of `partition`."""
    both = {
        key: combine(trainable[key], frozen[key]) if key in trainable and key in frozen else (trainable | frozen)[key]
        for key in trainable.keys() | frozen.keys()
    }
    return dict(sorted(both.items()))


def _select(tree: Params, paths: set[str], prefix: str) -> Params:
    out = {}
    for key, value in tree.items():
        kept = _select(value, paths, f"{prefix}{key}/") if isinstance(value, dict) else value
        if kept if isinstance(value, dict) else f"{prefix}{key}" in paths:
            out[key] = kept
    return out


def _scale_by_rate(schedule: Callable[[ArrayLike], Array]) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, step: ArrayLike, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -schedule(step) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _in_float32(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return tx.update(widen(updates), state, widen(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(widen(params)), update)
