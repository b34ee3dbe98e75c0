"""Adapters: where they can be, how they begin, what they compute; sharded, merged, taken away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_sharding
import torch
from oracle import Item, our_inputs, tokens

from jvr1.errors import UserError
from jvr1.model import lora, vision_language
from jvr1.model.families import adaptable, from_hf, published
from jvr1.model.lora import ADAPTERS, LoRAConfig
from jvr1.sharding import AXES, make_mesh, param_shardings, path_name, put_batch
from jvr1.train.optimizer import combine, partition

pytestmark = pytest.mark.slow

CONFIG = from_hf(oracle.raw_config())
EVERYWHERE = LoRAConfig(rank=4, alpha=6.0, patterns=(".*",))


OWN = tuple(name for name in adaptable() if not name.startswith("visual/deepstack"))
"""Of this family."""


def named(tree: dict) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def at(tree: dict, name: str) -> dict:
    for key in name.split("/"):
        tree = tree[key]
    return tree


def inputs():
    """A prompt with a clip and a picture, and two completions."""
    rng = np.random.default_rng(0)
    items = [Item(rng, 4, 4, 6, 1.0), Item(rng, 1, 4, 4)]
    ids = tokens(rng, 3, *items, 4)
    return *our_inputs(ids, items, CONFIG), jnp.asarray(rng.integers(3, 90, (1, 2, 5)), jnp.int32)


def dense(params: dict, config: LoRAConfig) -> dict:
    """The plain model's parameters with W + A B alpha / rank, by definition."""
    _, base = partition(params, (), ADAPTERS)
    base = jax.tree.map(lambda x: x, base)  # other dicts
    for name in OWN:
        linear = at(params, name)
        if "lora_a" in linear:
            one = lambda a, b: jnp.tensordot(a, b, 1)  # noqa: E731
            product = one if name.startswith("visual/merge") else jax.vmap(one)
            at(base, name)["kernel"] = linear["kernel"] + product(linear["lora_a"], linear["lora_b"]) * config.scale
    return base


def test_all_linear_maps_but_two_are_adaptable():
    graphdef, shapes = vision_language.abstract(CONFIG)
    names = {name for name, _ in lora.linear_maps(vision_language.merge(graphdef, shapes))}
    assert names - set(OWN) == {"text/head", "visual/patch_embed"}
    assert set(OWN) <= names


@pytest.mark.parametrize(
    ("patterns", "adapted"),
    [
        (("text/layers/(q|v)",), {"text/layers/q", "text/layers/v"}),
        (("visual/blocks/mlp/.*", "visual/merge_in"), {f"visual/blocks/mlp/{n}" for n in ("gate", "up", "down")}
         | {"visual/merge_in"}),
        ((".*",), set(OWN)),
    ],
)  # fmt: skip
def test_patterns_choose_the_linear_maps(patterns, adapted):
    _, shapes = vision_language.abstract(CONFIG, lora=LoRAConfig(4, 8.0, patterns))
    got = named(partition(shapes, (), ADAPTERS)[0])
    assert set(got) == {f"{name}/lora_{x}" for name in adapted for x in "ab"}
    for name in adapted:
        kernel, a, b = (at(shapes, name)[x] for x in ("kernel", "lora_a", "lora_b"))
        layers, inputs = kernel.shape[: 0 if name.startswith("visual/merge") else 1], a.ndim - 1
        assert a.shape == (*kernel.shape[:inputs], 4)
        assert b.shape == (*layers, 4, *kernel.shape[inputs:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora.rank is 0; an adapter's rank must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0.0; it must be positive"),
        ({"alpha": float("nan")}, "lora.alpha is nan"),
        ({"patterns": ()}, "lora.patterns is empty"),
        ({"patterns": ("text/layers/q", "text/head")}, "'text/head' matches no linear map; they are text/layers/q, "),
        ({"patterns": ("q_proj",)}, "'q_proj' matches no linear map; they are text/layers/q, "),
        ({"patterns": ("text/(",)}, "lora.patterns holds 'text/(', which is no regular expression"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError) as error:
        LoRAConfig(**{"rank": 4, "alpha": 8.0} | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_adapters_begin_as_those_of_torch_do():
    """`kaiming_uniform_(a=sqrt(5))` over [rank, inputs], and zeros."""
    _, params = vision_language.init(CONFIG, 3, lora=LoRAConfig(64, 8.0, (".*",)))
    for name, inputs in {"text/layers/o": 48, "visual/blocks/mlp/down": 44, "visual/merge_in": 128}.items():
        a, b = (np.asarray(at(params, name)[x]) for x in ("lora_a", "lora_b"))
        want = torch.nn.init.kaiming_uniform_(torch.empty(3 * 64, inputs), a=5**0.5).numpy()
        assert not b.any()
        assert np.abs(a).max() == pytest.approx(np.abs(want).max(), rel=0.02)
        assert a.std() == pytest.approx(want.std(), rel=0.05)
        assert abs(a.mean()) < 0.1 * a.std()
    q, k = (np.asarray(at(params, f"text/layers/{name}")["lora_a"]) for name in "qk")
    assert not np.array_equal(q, k)
    assert not np.array_equal(q[0], q[1])


def test_adapters_are_drawn_alike_on_any_mesh():
    graphdef, base = oracle.random_model(CONFIG)
    _, shapes = lora.with_adapters(graphdef, base, EVERYWHERE)
    shardings = param_shardings(shapes, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    one, other, spread = lora.draw(shapes, 1), lora.draw(shapes, 2), lora.draw(shapes, 1, shardings)
    adapters = partition(spread, (), ADAPTERS)[0]
    for name, x in named(adapters).items():
        assert x.sharding == named(shardings)[name]
        np.testing.assert_array_equal(x, named(one)[name])
        assert np.array_equal(x, named(other)[name]) == name.endswith("lora_b")
    assert all(
        a is b for a, b in zip(jax.tree.leaves(partition(one, (), ADAPTERS)[1]), jax.tree.leaves(base), strict=True)
    )


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.nightly), "bfloat16"])
@pytest.mark.usefixtures("strict_dtypes")
def test_a_fresh_model_gives_what_its_base_gives_to_the_bit(dtype):
    graphdef, base = oracle.random_model(CONFIG, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    adapted, shapes = lora.with_adapters(graphdef, base, EVERYWHERE)
    params = lora.draw(shapes, 0)

    @jax.jit
    def both(base, params):
        plain, with_adapters = vision_language.merge(graphdef, base), vision_language.merge(adapted, params)
        return plain.complete(*inputs()), with_adapters.complete(*inputs())

    want, got = both(base, params)
    assert np.abs(np.asarray(want, np.float32)).max() > 0.5
    np.testing.assert_array_equal(got, want)


def loss_of(graphdef, params, prompt, visual, completions):
    model = vision_language.merge(graphdef, params)
    logits = model.logits(model.complete(prompt, visual, completions))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), completions[..., None], axis=-1))


@pytest.fixture(scope="module")
def adapted():
    """Graph with adapters everywhere, all parameters random (lora_b too), and the plain graph."""
    plain, _ = vision_language.abstract(CONFIG, remat="full")
    return *oracle.random_model(CONFIG, remat="full", lora=EVERYWHERE), plain


@pytest.mark.usefixtures("strict_dtypes")
def test_values_and_gradients_are_those_of_the_dense_sum(adapted):
    graphdef, params, plain = adapted
    adapters, base = partition(params, (), ADAPTERS)
    value, grads = jax.jit(jax.value_and_grad(lambda a: loss_of(graphdef, combine(a, base), *inputs())))(adapters)
    by_definition = lambda a: loss_of(plain, dense(combine(a, base), EVERYWHERE), *inputs())  # noqa: E731
    want, want_grads = jax.jit(jax.value_and_grad(by_definition))(adapters)
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    assert float(value) != pytest.approx(float(loss_of(plain, base, *inputs())), rel=1e-3)
    for name, got in named(grads).items():
        expected = np.asarray(named(want_grads)[name])
        assert np.linalg.norm(expected) > 0
        assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected), name


def shapes_made(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all that a program computes, in the programs within it too."""
    for eqn in jaxpr.eqns:
        inner = [x for v in eqn.params.values() for x in (v if isinstance(v, tuple | list) else [v])]
        inner = [getattr(x, "jaxpr", x) for x in inner]
        inner = [x for x in inner if hasattr(x, "eqns")]
        if not inner:
            yield from (v.aval.shape for v in eqn.outvars)
        for x in inner:
            yield from shapes_made(x)


def test_no_product_of_adapters_and_no_gradient_of_a_kernel_is_ever_formed(adapted):
    """Nothing of a kernel's shape is computed, neither a layer's nor a stack's; a full update does compute them."""
    graphdef, params, _ = adapted
    adapters, base = partition(params, (), ADAPTERS)
    kernels = {name: at(params, name)["kernel"].shape for name in OWN}
    layers = {shape if "merge" in name else shape[1:] for name, shape in kernels.items()}
    forbidden = layers | set(kernels.values())
    step = lambda a, b: jax.grad(lambda a: loss_of(graphdef, combine(a, b), *inputs()))(a)  # noqa: E731
    assert not forbidden & set(shapes_made(jax.make_jaxpr(step)(adapters, base).jaxpr))
    full = jax.make_jaxpr(jax.grad(lambda p: loss_of(graphdef, p, *inputs())))(params)
    assert layers <= set(shapes_made(full.jaxpr))


def test_the_base_is_the_same_arrays_and_the_plain_graph(adapted):
    graphdef, params, plain = adapted
    graph, base = lora.without_adapters(graphdef, params)
    assert graph == plain
    want = partition(params, (), ADAPTERS)[1]
    assert jax.tree.structure(base) == jax.tree.structure(want)
    assert all(a is b for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(want), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_gives_the_plain_model_with_the_dense_sum(adapted, dtype):
    graphdef, params, plain = adapted
    adapters, base = partition(params, (), ADAPTERS)
    base = jax.tree.map(lambda x: jnp.array(x, dtype), base)
    want = dense(jax.tree.map(lambda x: x.astype(jnp.float32), combine(adapters, base)), EVERYWHERE)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = combine(adapters, base)
    placed = jax.device_put(params, param_shardings(params, mesh))
    graph, merged = lora.merge_adapters(graphdef, placed)
    assert graph == plain
    for name, x in named(merged).items():
        assert x.dtype == dtype
        assert x.sharding == named(param_shardings(base, mesh))[name]
        error = np.abs(np.asarray(x, np.float32) - named(want)[name]).max()
        assert error <= (2e-6 if dtype == "float32" else 2**-8 * np.abs(named(want)[name]).max()), name


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.nightly)])
def test_sharded_equals_unsharded(sizes):
    """In a model whose every parameter can be split, with the batch of the test of the plain model."""
    config, data = test_sharding.CONFIG, test_sharding.batch()
    graphdef, params = oracle.random_model(config, remat="full", lora=EVERYWHERE)
    params = jax.tree.map(np.asarray, params)

    def step(params, batch):
        adapters, base = partition(params, (), ADAPTERS)
        return jax.value_and_grad(lambda a: loss_of(graphdef, combine(a, base), *batch))(adapters)

    want, want_grads = jax.jit(step)(params, data)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    shardings = param_shardings(params, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        out = (None, partition(shardings, (), ADAPTERS)[0])
        value, grads = jax.jit(step, out_shardings=out)(placed, put_batch(data, mesh))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for name, got in named(grads).items():
        expected = np.asarray(named(want_grads)[name])
        assert np.linalg.norm(np.asarray(got) - expected) < 1e-4 * np.linalg.norm(expected), name


def test_adapters_of_the_7b_are_split_as_the_kernels_beside_them():
    mesh = jax.sharding.AbstractMesh((1, 4, 2), AXES)
    _, shapes = vision_language.abstract(published("7b"), lora=LoRAConfig(32, 64.0, (".*",)))
    specs = {name: tuple(s.spec) for name, s in named(param_shardings(shapes, mesh)).items()}
    assert specs["text/layers/q/lora_a"] == (None, "fsdp", None)
    assert specs["text/layers/q/lora_b"][2] == "tensor"
    assert specs["text/layers/o/lora_a"][1] == "tensor"
    assert specs["text/layers/o/lora_b"] == (None, None, "fsdp")
    assert specs["text/layers/mlp/down/lora_a"][1] == "tensor"
    assert specs["visual/blocks/qkv/lora_b"][3] == "tensor"
    adapters = {name: spec for name, spec in specs.items() if "/lora_" in name}
    assert adapters
    for name, spec in adapters.items():
        assert "fsdp" in spec, name
        if name.startswith(("text/layers/", "visual/blocks/")):
            assert spec[0] is None, name
