"""Every optimizer setting may change when a run goes on but what has no state in the checkpoint: moments by name."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.test_checkpoint import checkpoints, make_params

from jvr1.errors import UserError
from jvr1.optimizers.config import OptimizerConfig
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.optimizer import make_optimizer, partition
from jvr1.train.state import abstract_state, beside_params, init_state

BASE = OptimizerConfig(schedule="linear", warmup_steps=2)
CHANGES = {
    "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 0, "steps": 2000, "weight_decay": 0.1, "b1": 0.5,
    "b2": 0.9, "eps": 1e-6, "clip_norm": None, "freeze": ("visual/.*",), "moment_dtype": "bfloat16", "max_bad_steps": 9,
    "momentum": 0.9,
}  # fmt: skip


def state_of(config: OptimizerConfig, seed: int = 0):
    """(optimizer, trainable parameters, state beside them with moments that are not zero)"""
    trainable, _ = partition(make_params(), config.freeze)
    tx = make_optimizer(config, trainable)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 9).astype(x.dtype), init_state(tx, trainable))
    return tx, trainable, beside_params(state)


def shapes_of(config: OptimizerConfig):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])

    def placed(tree):
        shardings = param_shardings(tree, mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    tx, trainable, _ = state_of(config)
    return placed(make_params()), beside_params(abstract_state(tx, placed(trainable), mesh))


def named(tree) -> dict[str, np.ndarray]:
    """By what a leaf is, not by its place in the chain."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {re.sub(r"^optimizer/\d+/", "", path_name(path)): np.asarray(x) for path, x in leaves}


def test_all_settings_are_tried():
    assert set(CHANGES) == {field.name for field in fields(OptimizerConfig)} - {"name"}  # which may not change
    assert all(getattr(BASE, name) != value for name, value in CHANGES.items())


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("back", [False, True])
def test_a_changed_setting_keeps_the_state(tmp_path, name, back):
    before = replace(BASE, name="muon") if name == "momentum" else BASE
    after = replace(before, **{name: CHANGES[name]})
    if back:
        before, after = after, before
    _, _, saved = state_of(before)
    with checkpoints(tmp_path) as manager:
        manager.save(3, make_params(), saved, {})
        if name == "freeze" and back:
            with pytest.raises(UserError, match=r"has no mu/visual/merge_in/bias: that was frozen when it was made"):
                manager.restore(*shapes_of(after))
            return
        _, got, _ = manager.restore(*shapes_of(after))
    assert jax.tree.structure(got) == jax.tree.structure(state_of(after)[2])
    got, want = named(got), named(saved)
    assert set(got) <= set(want)
    assert (set(got) == set(want)) == (name != "freeze")
    for path, x in got.items():
        expected = want[path]
        if name == "moment_dtype" and path.startswith("mu/"):
            assert x.dtype != expected.dtype
        np.testing.assert_array_equal(x, expected.astype(x.dtype), strict=True)
