"""AdamW, schedules, clipping, skipping and freezing, against torch and transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from transformers import get_scheduler

from jvr1.errors import UserError
from jvr1.optimizers.config import OptimizerConfig
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.optimizer import combine, decay_mask, make_optimizer, make_schedule, partition
from jvr1.train.state import abstract_state, apply_gradients, check_bad_steps, init_state

SHAPES = {
    "text": {
        "embedding": (16, 8),
        "head": {"kernel": (8, 16)},
        "layers": {"q": {"kernel": (2, 8, 2, 4), "bias": (2, 2, 4)}, "norm1": {"scale": (2, 8)}},
    },
    "visual": {"patch_embed": {"kernel": (2, 12, 8)}, "merge_in": {"kernel": (8, 8), "bias": (8,)}},
}
DECAYED = {"text/embedding", "text/head/kernel", "text/layers/q/kernel", "visual/patch_embed/kernel",
           "visual/merge_in/kernel"}  # fmt: skip


def random_tree(seed: int, scale: float = 1.0, dtype: str = "float32"):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s) * scale, jnp.float32).astype(dtype), SHAPES, is_leaf=is_shape
    )


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def jitted(tx):
    return jax.jit(lambda state, grads, has_rows: apply_gradients(tx, state, grads, has_rows))


TX = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.1), random_tree(0))
UPDATE = jitted(TX)
YES, NO = jnp.bool_(True), jnp.bool_(False)


@pytest.mark.parametrize(("schedule", "clip_norm"), [("constant", 5.0), ("linear", None), ("cosine", 5.0)])
def test_equals_torch_adamw(schedule, clip_norm):
    """Twelve updates with gradients on both sides of the clip norm: torch.optim.AdamW, clip_grad_norm_, HF schedule."""
    config = OptimizerConfig(
        learning_rate=3e-3, schedule=schedule, warmup_steps=3, steps=12, weight_decay=0.1, b1=0.85, b2=0.98, eps=1e-7,
        clip_norm=clip_norm,
    )  # fmt: skip
    params = random_tree(0)
    tx = make_optimizer(config, params)
    state, update = init_state(tx, params), jitted(tx)
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in named(params).items()}
    groups = [
        {"params": [p for n, p in theirs.items() if n in DECAYED], "weight_decay": 0.1},
        {"params": [p for n, p in theirs.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.85, 0.98), eps=1e-7)
    names = {"constant": "constant_with_warmup"}
    scheduler = get_scheduler(names.get(schedule, schedule), adamw, num_warmup_steps=3, num_training_steps=12)
    for i in range(12):
        grads = random_tree(i + 1, scale=0.05 if i % 3 else 2.0)
        state, stats = update(state, grads, YES)
        for name, g in named(grads).items():
            theirs[name].grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm or float("inf"))
        np.testing.assert_allclose(stats.gradient_norm, norm.item(), rtol=1e-6)
        assert clip_norm is None or (norm.item() > clip_norm) == (i % 3 == 0)
        adamw.step()
        scheduler.step()
    for name, p in named(state.params).items():
        np.testing.assert_allclose(p, theirs[name].detach().numpy(), rtol=2e-6, atol=2e-6, err_msg=name)
    assert int(state.step) == 12


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_equal_transformers(schedule, warmup):
    ours = make_schedule(OptimizerConfig(learning_rate=2e-4, schedule=schedule, warmup_steps=warmup, steps=20))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(21):
        np.testing.assert_allclose(ours(step), theirs.get_last_lr()[0], rtol=1e-5, atol=1e-11)
        optimizer.step()
        theirs.step()


def test_only_kernels_and_the_embedding_decay():
    assert {name for name, decays in named(decay_mask(random_tree(0))).items() if decays} == DECAYED


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_gradient_changes_nothing_and_is_counted(bad):
    before, _ = UPDATE(init_state(TX, random_tree(0)), random_tree(1), YES)
    grads = random_tree(2)
    grads["text"]["head"]["kernel"] = grads["text"]["head"]["kernel"].at[3, 5].set(bad)
    after, stats = UPDATE(before, grads, YES)
    assert not stats.applied
    assert not np.isfinite(stats.gradient_norm)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.optimizer), (before.params, before.optimizer))
    assert (int(after.step), int(after.bad_steps), int(after.skipped)) == (2, 1, 1)
    after, _ = UPDATE(after, grads, YES)
    assert (int(after.step), int(after.bad_steps), int(after.skipped)) == (3, 2, 2)
    after, stats = UPDATE(after, random_tree(3), YES)
    assert stats.applied
    assert (int(after.step), int(after.bad_steps), int(after.skipped)) == (4, 0, 2)
    # at a constant rate the good update is what it would have been without the bad ones
    direct, _ = UPDATE(before, random_tree(3), YES)
    jax.tree.map(np.testing.assert_array_equal, after.params, direct.params)


def test_a_fresh_state_may_be_donated():
    update = jax.jit(lambda s, g: apply_gradients(TX, s, g)[0], donate_argnums=0)
    assert int(update(init_state(TX, random_tree(0)), random_tree(1)).step) == 1


@pytest.mark.parametrize("scale", [1.0, np.nan])
def test_a_step_without_rows_does_nothing(scale):
    before = init_state(TX, random_tree(0))._replace(bad_steps=jnp.int32(2), skipped=jnp.int32(3))
    after, stats = UPDATE(before, random_tree(5, scale), NO)
    assert not stats.applied
    jax.tree.map(np.testing.assert_array_equal, after, before._replace(step=jnp.int32(1)))


def test_the_learning_rate_follows_the_step_over_skipped_ones():
    params = random_tree(0)
    config = OptimizerConfig(learning_rate=1e-2, schedule="linear", steps=10, clip_norm=None)
    tx = make_optimizer(config, params)
    update = jitted(tx)
    state = init_state(tx, params)
    for _ in range(5):
        state, _ = update(state, random_tree(1), NO)
    state, _ = update(state, random_tree(1), YES)
    # Adam's first update has the size of the learning rate
    moved = np.abs(named(state.params)["text/embedding"] - named(params)["text/embedding"])
    np.testing.assert_allclose(moved, 0.5e-2, rtol=1e-3)


def test_bad_steps_end_the_run_at_the_limit():
    check_bad_steps(step=9, bad_steps=2, limit=3)
    with pytest.raises(UserError, match="not finite in 3 steps in a row up to step 9"):
        check_bad_steps(step=9, bad_steps=3, limit=3)


def test_partition_and_combine():
    params = random_tree(0)
    trainable, frozen = partition(params, (r"visual/.*", r".*/norm1/scale"))
    assert set(named(frozen)) == {
        "text/layers/norm1/scale", "visual/merge_in/bias", "visual/merge_in/kernel", "visual/patch_embed/kernel"
    }  # fmt: skip
    assert set(trainable) == {"text"}
    assert set(trainable["text"]["layers"]) == {"q"}
    whole = combine(trainable, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True))
    assert partition(params, ()) == (params, {})
    assert jax.tree.structure(combine(params, {})) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("visual",), "'visual' matches no parameter; a path is like 'text/embedding'"),
        (("visual/.*", "viual/.*"), "'viual/.*' matches no parameter"),
        (("visual/(",), "is no regular expression"),
        ((".*",), "nothing is left to train"),
    ],
)
def test_freeze_patterns_that_cannot_be(patterns, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*").replace(".", r"\.")):
        partition(random_tree(0), patterns)


def test_frozen_parameters_stay_and_the_others_learn():
    """Through a loss on the whole model, as the mains do it."""
    params = random_tree(0)
    trainable, frozen = partition(params, (r"visual/.*", r"text/embedding"))
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.1), trainable)

    @jax.jit
    def step(state, frozen):
        def loss(trainable):
            return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(combine(trainable, frozen)))

        return apply_gradients(tx, state, jax.grad(loss)(state.params))[0]

    state = init_state(tx, trainable)
    for _ in range(3):
        state = step(state, frozen)
    before, after = named(params), named(combine(state.params, frozen))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(named(trainable))
    assert "text/layers/q/bias" in changed


@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16"])
def test_moments_of_bf16_parameters(moment_dtype):
    params = random_tree(0, dtype="bfloat16")
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, moment_dtype=moment_dtype), params)
    state, _ = jitted(tx)(init_state(tx, params), random_tree(1, dtype="bfloat16"), YES)
    adam = next(s for s in state.optimizer if hasattr(s, "mu"))
    assert {str(x.dtype) for x in jax.tree.leaves(adam.mu)} == {moment_dtype}
    assert {str(x.dtype) for x in jax.tree.leaves(adam.nu)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"bfloat16"}


def test_sharded_state_lies_as_its_parameters_and_gives_the_same_update():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = random_tree(0)
    shardings = param_shardings(params, mesh)
    placed = jax.device_put(params, shardings)
    shapes = abstract_state(TX, placed, mesh)
    where = jax.tree.map(lambda x: x.sharding, shapes)
    state = jax.jit(lambda p: init_state(TX, p), out_shardings=where)(placed)
    adam = next(s for s in state.optimizer if hasattr(s, "mu"))
    assert adam.nu["text"]["embedding"].sharding == NamedSharding(mesh, P("tensor", "fsdp"))
    assert jax.tree.all(jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype), state, shapes))
    update = jax.jit(lambda s, g: apply_gradients(TX, s, g), out_shardings=(where, None), donate_argnums=0)
    state, stats = update(state, jax.device_put(random_tree(1), shardings))
    want, want_stats = UPDATE(init_state(TX, params), random_tree(1), YES)
    np.testing.assert_allclose(stats.gradient_norm, want_stats.gradient_norm, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, want)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "cosin"), ("moment_dtype", "float16"), ("learning_rate", 0.0), ("learning_rate", -1e-6),
        ("learning_rate", float("nan")), ("eps", 0.0), ("weight_decay", -0.1), ("b1", 1.0), ("b2", -0.1),
        ("clip_norm", 0.0), ("max_bad_steps", 0), ("warmup_steps", -1),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(field, value):
    with pytest.raises(UserError, match=f"optimizer.{field} is "):
        OptimizerConfig(**{field: value})


def test_warmup_must_end_before_the_steps_do():
    with pytest.raises(UserError, match=r"between 0 and optimizer\.steps, 10"):
        OptimizerConfig(schedule="linear", warmup_steps=10, steps=10)
    OptimizerConfig(schedule="constant", warmup_steps=10, steps=10)
