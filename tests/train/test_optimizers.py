"""Optimizers by name against optax' Muon, torch's Muon and HF's Adafactor; sharded, resumed, and one of a user's."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optax import contrib
from train.test_checkpoint import checkpoints
from transformers import Adafactor

from jvr1.errors import UserError
from jvr1.optimizers import OPTIMIZERS
from jvr1.optimizers.config import OptimizerConfig
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.optimizer import make_optimizer
from jvr1.train.state import abstract_state, apply_gradients, beside_params, init_state

SHAPES = {
    "text": {
        "embedding": (130, 128),
        "layers": {
            "q": {"kernel": (2, 128, 4, 32), "bias": (2, 4, 32)},
            "o": {"kernel": (2, 4, 32, 128)},
            "mlp": {"down": {"kernel": (2, 136, 128), "lora_a": (2, 136, 4), "lora_b": (2, 4, 128)}},
            "norm1": {"scale": (2, 128)},
        },
    },
    "visual": {
        "blocks": {"qkv": {"kernel": (2, 6, 3, 2, 4)}},
        "patch_embed": {"kernel": (2, 12, 6)},
        "merge_in": {"kernel": (24, 8), "bias": (8,)},
    },
}
LAYERS = {"text/layers/q/kernel": (128, 128), "text/layers/o/kernel": (128, 128),
          "text/layers/mlp/down/kernel": (136, 128), "text/layers/mlp/down/lora_a": (136, 4),
          "text/layers/mlp/down/lora_b": (4, 128)}  # fmt: skip
"""Of each layer a matrix [inputs, outputs]."""
NAMES = ("adamw", "adafactor", "muon", "lion")


@pytest.fixture(autouse=True)
def _lion(monkeypatch):
    """A user's own: one function, registered."""

    def lion(*, b1, b2):
        return optax.scale_by_lion(b1, b2)

    monkeypatch.setitem(OPTIMIZERS, "lion", lion)


def tree(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s) * scale, jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def one_by_one(tree) -> dict[str, np.ndarray]:
    """Each matrix by itself, and each layer's array of the others."""
    found = {}
    for name, x in named(tree).items():
        if name in LAYERS:
            found |= {f"{name}:{i}": x[i].reshape(LAYERS[name]) for i in range(2)}
        elif name == "visual/blocks/qkv/kernel":
            found |= {f"{name}:{i}{j}": x[i, :, j].reshape(6, 8) for i in range(2) for j in range(3)}
        elif name.startswith(("text/layers", "visual/blocks")):
            found |= {f"{name}:{i}": x[i].reshape(-1) for i in range(2)}
        else:
            found[name] = x.reshape(24, 6) if name == "visual/patch_embed/kernel" else x
    return found


def is_muons(name: str) -> bool:
    return name.startswith((*LAYERS, "visual/blocks/qkv", "visual/merge_in/kernel"))


def config_of(name: str) -> OptimizerConfig:
    return OptimizerConfig(name=name, learning_rate=0.02, weight_decay=0.1, clip_norm=None)


@cache
def stepped(name: str):
    """(one step, the states before and after each of four with seeded gradients), compiled once for all tests."""
    tx = make_optimizer(config_of(name), tree(0))
    update = jax.jit(lambda state, grads: apply_gradients(tx, state, grads)[0])
    states = [init_state(tx, tree(0))]
    for step in range(4):
        states.append(update(states[-1], tree(step + 1)))
    return update, states


def test_muon_is_optax_muon_of_each_layers_matrix():
    """optax' own, on a dict of plain matrices; the rest is AdamW to the bit."""
    _, states = stepped("muon")
    ours = one_by_one(states[-1].params)
    theirs = {name: jnp.asarray(x) for name, x in one_by_one(tree(0)).items() if is_muons(name)}
    tx = contrib.muon(0.02, weight_decay=0.1, consistent_rms=0.2)
    state = tx.init(theirs)
    for step in range(4):
        grads = {name: jnp.asarray(one_by_one(tree(step + 1))[name]) for name in theirs}
        updates, state = tx.update(grads, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert len(theirs) == 2 * 5 + 6 + 1
    for name, want in theirs.items():
        np.testing.assert_allclose(ours[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
    adamw = one_by_one(stepped("adamw")[1][-1].params)
    for name in set(ours) - set(theirs):
        np.testing.assert_array_equal(ours[name], adamw[name], err_msg=name)


def test_muon_is_torchs_but_for_its_bfloat16():
    """torch.optim.Muon, scaled as by Moonlight; it multiplies in bfloat16, and its momentum has no bias to correct."""
    params = one_by_one(tree(0))
    ours = [one_by_one(state.params) for state in stepped("muon")[1]]
    names = [name for name in params if is_muons(name) and min(params[name].shape) > 100]
    theirs = {name: torch.nn.Parameter(torch.tensor(params[name])) for name in names}
    muon = torch.optim.Muon(
        list(theirs.values()), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        before = {name: p.detach().numpy().copy() for name, p in theirs.items()}
        for name, p in theirs.items():
            p.grad = torch.tensor(one_by_one(tree(step + 1))[name])
        muon.step()
        for name, p in theirs.items():
            want, got = p.detach().numpy() - before[name], ours[step + 1][name] - ours[step][name]
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert error < (0.2 if step else 0.04), (name, step, error)


def test_muons_updates_are_orthogonal_and_of_adamws_size():
    before, after = (one_by_one(state.params) for state in stepped("muon")[1][:2])
    for name in LAYERS:
        step = (0.998 * before[f"{name}:0"] - after[f"{name}:0"]) / 0.02  # without the decay
        rows, columns = step.shape
        singular = np.linalg.svd(step / (0.2 * max(rows, columns) ** 0.5), compute_uv=False)
        # Newton-Schulz' five steps leave them near 1; the smallest of a square Gaussian matrix are out of reach
        assert np.quantile(singular, 0.1) > 0.6, name
        assert singular.max() < 1.25, name
        assert 0.15 < np.sqrt(np.mean(step**2)) < 0.25, name


def test_adafactor_is_transformers_adafactor_of_each_layers_array():
    _, states = stepped("adafactor")
    ours = one_by_one(states[-1].params)
    factored = states[-1].optimizer[0]
    assert factored.v_row["text"]["layers"]["q"]["kernel"].size == 2 * 128
    assert factored.v["text"]["layers"]["q"]["kernel"].size == 1
    assert factored.v["text"]["layers"]["norm1"]["scale"].shape == (2, 128)
    # HF factors small matrices, too: those are left out
    names = [name for name, x in one_by_one(tree(0)).items() if x.ndim == 1 or min(x.shape) >= 128]
    theirs = {name: torch.nn.Parameter(torch.tensor(one_by_one(tree(0))[name])) for name in names}
    decayed = [p for name, p in theirs.items() if "kernel" in name or "embedding" in name]
    rest = [p for name, p in theirs.items() if not ("kernel" in name or "embedding" in name)]
    adafactor = Adafactor(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=0.02, scale_parameter=False, relative_step=False,
    )  # fmt: skip
    for step in range(4):
        for name, p in theirs.items():
            p.grad = torch.tensor(one_by_one(tree(step + 1))[name])
        adafactor.step()
    assert len(decayed) == 7
    assert len(rest) == 5
    for name, want in theirs.items():
        np.testing.assert_allclose(ours[name], want.detach().numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_step_is_the_unsharded_one(name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = tree(0)
    placed = jax.device_put(params, param_shardings(params, mesh))
    tx = make_optimizer(config_of(name), placed)
    shapes = abstract_state(tx, placed, mesh)
    where = jax.tree.map(lambda x: x.sharding, shapes)
    state = jax.jit(lambda p: init_state(tx, p), out_shardings=where)(placed)
    assert jax.tree.all(jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype), state, shapes))
    update = jax.jit(lambda s, g: apply_gradients(tx, s, g)[0], out_shardings=where, donate_argnums=0)
    for step in range(2):
        state = update(state, jax.device_put(tree(step + 1), param_shardings(params, mesh)))
    want = stepped(name)[1][2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), state, want)
    for path, x in jax.tree_util.tree_leaves_with_path(state.optimizer):
        if x.size >= 512:
            assert not x.sharding.is_fully_replicated, path_name(path)


def test_factors_lie_as_the_axes_that_they_have():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = jax.device_put(tree(0), param_shardings(tree(0), mesh))
    tx = make_optimizer(OptimizerConfig(name="adafactor"), params)
    factored = beside_params(abstract_state(tx, params, mesh))["optimizer"][1]
    assert factored.v_row["text"]["layers"]["mlp"]["down"]["kernel"].sharding.spec == jax.P(None, "fsdp")
    assert factored.v_col["text"]["layers"]["mlp"]["down"]["kernel"].sharding.spec == jax.P(None, "tensor")
    assert factored.v["text"]["layers"]["q"]["kernel"].sharding.spec == jax.P()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_same_to_the_bit(name, tmp_path):
    update, states = stepped(name)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    params = jax.device_put(tree(0), param_shardings(tree(0), mesh))
    shapes = abstract_state(make_optimizer(config_of(name), params), params, mesh)
    with checkpoints(tmp_path) as manager:
        manager.save(2, states[2].params, beside_params(states[2]), {})
        got, beside, _ = manager.restore(shapes.params, beside_params(shapes))
    state = states[2]._replace(params=got, **beside)
    for step in (2, 3):
        state = update(state, tree(step + 1))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), state, states[4])
    assert not np.array_equal(named(states[4])["params/text/embedding"], named(states[2])["params/text/embedding"])


def test_muons_momentum_in_bfloat16():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(0))
    tx = make_optimizer(OptimizerConfig(name="muon", moment_dtype="bfloat16"), half)
    state, _ = jax.eval_shape(lambda p: apply_gradients(tx, init_state(tx, p), p), half)
    dtypes: dict[str, set[str]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state.optimizer):
        name = path_name(path)
        kind = "mu" if "/mu/" in name else "nu" if "/nu/" in name else "other"
        dtypes.setdefault(kind, set()).add(str(x.dtype))
    assert dtypes == {"mu": {"bfloat16"}, "nu": {"float32"}, "other": {"int32", "float32"}}
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("name", "setting", "value", "default"),
    [
        ("adamw", "momentum", 0.9, "0.95"), ("adafactor", "b1", 0.5, "0.9"), ("adafactor", "b2", 0.5, "0.999"),
        ("adafactor", "eps", 1e-6, "1e-08"), ("adafactor", "moment_dtype", "bfloat16", "'float32'"),
        ("lion", "eps", 1e-6, "1e-08"),
    ],
)  # fmt: skip
def test_a_setting_of_another_optimizer_is_refused(name, setting, value, default):
    message = f"^optimizer.{setting} is {value!r}, which optimizer.name='{name}' does not read; leave it at {default}$"
    with pytest.raises(UserError, match=message):
        OptimizerConfig(name=name, **{setting: value})


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"optimizer.name is 'sgd'; use one of adamw, adafactor, muon"):
        OptimizerConfig(name="sgd")
