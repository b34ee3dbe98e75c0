"""What an optimizer step changes, and the step itself: pure, without host callbacks, safe on any mesh."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jvr1.errors import UserError
from jvr1.sharding import path_name, replicated
from jvr1.train.optimizer import Params


class TrainState(NamedTuple):
    """step: optimizer steps begun, skipped ones too. params: the trainable ones. optimizer: moments.

    bad_steps: non-finite gradients in a row. skipped: non-finite gradients since the start.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: optax.OptState
    bad_steps: Int[Array, ""]
    skipped: Int[Array, ""]


class UpdateStats(NamedTuple):
    """gradient_norm: global, before clipping, fp32; non-finite where the step was. applied: parameters changed."""

    gradient_norm: Float[Array, ""]
    applied: Bool[Array, ""]


def init_state(tx: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first step."""
    step, bad_steps, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))  # one buffer each: they are donated
    return TrainState(step, params, tx.init(params), bad_steps, skipped)


def abstract_state(tx: optax.GradientTransformation, params: Params, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes and shardings of `init_state`: moments lie as their parameters do, factors of moments as the axes of these
    that they have, anything else everywhere.

    `params` are arrays or ShapeDtypeStructs with a `.sharding`. To restore into, and for `out_shardings`.
    """

    def place(x: Any, sharding: jax.sharding.Sharding) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(lambda p: init_state(tx, p), params)
    there = {path_name(path): p for path, p in jax.tree_util.tree_leaves_with_path(params)}

    def beside(path: tuple[Any, ...], x: Any) -> Any:
        names = (path_name(path[i:]) for i in range(len(path)))  # the longest first
        param = next((there[name] for name in names if name in there), None)
        return place(x, replicated(mesh) if param is None else NamedSharding(mesh, _spec_beside(param, x.shape)))

    optimizer = jax.tree_util.tree_map_with_path(beside, state.optimizer)
    counters = {name: place(getattr(state, name), replicated(mesh)) for name in ("step", "bad_steps", "skipped")}
    return TrainState(params=jax.tree.map(lambda p: place(p, p.sharding), params), optimizer=optimizer, **counters)


def _spec_beside(param: Any, shape: tuple[int, ...]) -> PartitionSpec:
    """That of the parameter, of the axes it keeps where it has that shape without some of them; else whole."""
    spec = [*param.sharding.spec, *(None,) * (param.ndim - len(param.sharding.spec))]
    kept = (axes for axes in combinations(range(param.ndim), len(shape)) if _sizes(param.shape, axes) == shape)
    return PartitionSpec(*(spec[i] for i in next(kept, ())))


def _sizes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[i] for i in axes)


def beside_params(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds beside the parameters."""
    return {name: value for name, value in state._asdict().items() if name != "params"}


def apply_gradients(
    tx: optax.GradientTransformationExtraArgs, state: TrainState, grads: Params, has_rows: ArrayLike = True
) -> tuple[TrainState, UpdateStats]:
    """One optimizer step. The step number always advances.

    Parameters and moments stay as they are, to the bit, when the global gradient norm is not finite (counted in
    `bad_steps` and `skipped`), and when `has_rows` is false: no valid row, so the gradient means nothing (not counted).
    """
    norm = optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    has_rows, finite = jnp.asarray(has_rows), jnp.isfinite(norm)
    applied = has_rows & finite
    updates, optimizer = tx.update(grads, state.optimizer, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)

    def select(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, old)

    bad = (has_rows & ~finite).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=select(params, state.params),
        optimizer=select(optimizer, state.optimizer),
        bad_steps=jnp.where(has_rows, (state.bad_steps + 1) * bad, state.bad_steps),
        skipped=state.skipped + bad,
    )
    return new, UpdateStats(norm, applied)


def make_update(tx: optax.GradientTransformationExtraArgs, shardings: TrainState) -> jax.stages.Wrapped:
    """update(state, grads, has_rows) -> `apply_gradients`, jitted; the state is donated and stays where `shardings`
    say."""

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def update(state: TrainState, grads: Params, has_rows: ArrayLike) -> tuple[TrainState, UpdateStats]:
        return apply_gradients(tx, state, grads, has_rows)

    return update


def check_bad_steps(step: int, bad_steps: int, limit: int) -> None:
    """Raises UserError when `limit` or more steps in a row had a non-finite gradient. `step` is the last of them."""
    if bad_steps >= limit:
        raise UserError(
            f"the gradient was not finite in {bad_steps} steps in a row up to step {step}; resume from an earlier "
            "checkpoint with a lower optimizer.learning_rate or clip_norm, or raise optimizer.max_bad_steps"
        )


def check_last_steps(step: int, bad_steps: int) -> None:
    """Raises UserError when the run ends on steps with a non-finite gradient: it did not learn what it was to."""
    if bad_steps:
        raise UserError(
            f"the gradient was not finite in the last {bad_steps} steps up to the end, step {step}: they changed "
            "nothing. What is saved is whole; look for the cause, then raise train.steps to go on"
        )
