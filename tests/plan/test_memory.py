"""The count against what JAX itself says of the same shapes: residuals, caches, state.

Against the TPU compiler: tests/plan/test_compile_tpu.py (nightly).
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1 import config as settings
from jvr1.data.batch import empty_example
from jvr1.model import vision_language
from jvr1.model.families import published
from jvr1.model.layers import REMAT_POLICIES
from jvr1.plan import memory
from jvr1.plan.planning import changed, counted_shapes, largest_bucket
from jvr1.plan.programs import PHASES
from jvr1.rollout.generate import generate
from jvr1.rollout.sampling import Sampling
from jvr1.train.optimizer import combine

pytestmark = [pytest.mark.optimised, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TGRPO = settings.from_file(str(ROOT / "configs" / "tgrpo_7b.py"))
BUCKET = largest_bucket(settings.buckets(TGRPO))
ONE = {"mesh.fsdp": 1, "batch.micro": 1}


def unplaced(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def batch(model, rows=1):
    one = empty_example(BUCKET, model)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)), np.asarray(x).dtype), one)


def size(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {"model.remat": remat}) for name in ("3b", "7b") for remat in REMAT_POLICIES),
        *(("3b", {"model.attention": "xla", "model.remat": remat}) for remat in ("dots", "none")),
        ("7b", {"optimizer.freeze": ("visual/.*",)}),
        ("7b", {"lora.rank": 32}),
    ],
)
def test_what_the_backward_pass_keeps_is_what_jax_keeps(name, changes):
    model = published(name)
    step = counted_shapes(changed(TGRPO, ONE | changes), model)

    def residuals(trainable, frozen, arrays, ids):
        def hidden(trainable):
            module = vision_language.merge(step.graphdef, combine(trainable, frozen))
            return module.complete(arrays.prompt, arrays.visual, ids)

        return jax.vjp(hidden, trainable)[1]

    ids = jax.ShapeDtypeStruct((1, TGRPO.rl.group, BUCKET.completion), jnp.int32)
    kept = jax.eval_shape(residuals, unplaced(step.state.params), unplaced(step.frozen), batch(model), ids)
    blocks = [x.shape[1:] for x in jax.tree.leaves(step.params["visual"]["blocks"])]
    weights = {x.shape for x in jax.tree.leaves(step.params)} | {(4, n, *shape) for n in (1, 7) for shape in blocks}
    expected = size([x for x in jax.tree.leaves(kept) if x.shape not in weights])
    assert memory.kept_bytes(step, BUCKET) == pytest.approx(expected, rel=0.12)


def test_keys_and_values_are_those_of_generation():
    model = published("3b")
    step = counted_shapes(changed(TGRPO, ONE | {"batch.per_step": 1}), model, "cpu")  # in one array
    counted = memory.generation_memory(step, BUCKET)
    found = []

    def run(params, arrays, key):
        module = vision_language.merge(step.graphdef, params)
        module.decode = lambda ids, positions, prefix, mask, cache, index, length, rows, read: (
            found.extend([prefix, cache]),
            (jnp.zeros((1, 12, model.text.hidden), jnp.bfloat16), cache),
        )[1]
        pairs = jnp.stack([arrays.visual.pair, arrays.shuffled], axis=1)
        numbers = jnp.arange(12)[None]
        sampling = Sampling(max_tokens=BUCKET.completion, end_ids=(1,))
        return generate(module, arrays.prompt, arrays.visual, pairs, arrays.valid, key, numbers, (8, 4), sampling)

    jax.eval_shape(run, unplaced(step.generation), batch(model), jax.eval_shape(lambda: jax.random.key(0)))
    prefix, cache = found[:2]
    assert counted["prefix"] == size(prefix)
    assert counted["cache"] == size(cache)


def test_what_lives_between_programs():
    """7B on 8 chips, fp32 parameters, two moments, gradients, bf16 reference, bf16 weights on every chip."""
    phases = memory.phase_memory(
        counted_shapes(changed(TGRPO, {"mesh.fsdp": 8, "mesh.decode_tensor": 1}), published("7b")), BUCKET
    )
    values = 8_292_166_656
    update = phases["update"]
    assert update["parameters"] == update["gradients"] == pytest.approx(4 * values / 8, rel=1e-3)
    assert update["moments"] == pytest.approx(8 * values / 8, rel=1e-3)
    assert update["reference"] == pytest.approx(2 * values / 8, rel=1e-3)
    assert phases["generation"]["generation weights"] == 2 * values
    assert set(phases) == set(PHASES)


@pytest.mark.parametrize(
    ("changes", "phase", "part", "factor"),
    [
        ({"optimizer.moment_dtype": "bfloat16"}, "update", "moments", 0.75),  # the second stays in fp32
        ({"model.reference": "host"}, "gradients", "reference", 0),
        ({"model.reference": "host"}, "reference", "reference", 1),
        ({"model.param_dtype": "bfloat16"}, "update", "parameters", 0.5),
        ({"mesh.decode_tensor": 4}, "generation", "generation weights", 0.25),
        ({"mesh.fsdp": 16, "batch.micro": 16}, "gradients", "kept", 1),
        ({"batch.micro": 16}, "gradients", "kept", 2),
        ({"mesh.decode_tensor": 2}, "generation", "generation weights", 0.5),
    ],
)
def test_a_setting_changes_its_part(changes, phase, part, factor):
    before, after = (
        memory.phase_memory(
            counted_shapes(changed(TGRPO, {"mesh.fsdp": 8, "mesh.decode_tensor": 1} | more), published("7b")), BUCKET
        )
        for more in ({}, changes)
    )
    assert after[phase][part] == pytest.approx(factor * before[phase][part], rel=2e-3)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_states_of_other_optimizers(name):
    """7B on 8 chips. Muon: one moment, not two, of what is neither embedding, head, norm nor bias. Adafactor: next to
    nothing."""
    config = changed(TGRPO, {"mesh.fsdp": 8, "optimizer.name": name})
    moments = memory.phase_memory(counted_shapes(config, published("7b")), BUCKET)["update"]["moments"]
    text = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    vision = 32 * (4 * 1280 * 1280 + 3 * 1280 * 3420) + 5120 * 5120 + 5120 * 3584
    if name == "muon":
        assert moments == pytest.approx(4 * (2 * 8_292_166_656 - (text + vision)) / 8, rel=1e-3)
    else:
        assert 0 < moments < 0.002 * (8 * 8_292_166_656 / 8)


def test_with_adapters_the_base_serves_all():
    """7B on one chip: the base in bf16 is policy, reference and weights of generation; adapters alone have moments."""
    config = changed(TGRPO, {"mesh.fsdp": 1, "batch.micro": 1, "lora.rank": 32})
    phases = memory.phase_memory(counted_shapes(config, published("7b")), BUCKET)
    adapters = 80_740_352  # decoder: 28 layers of 32 (q 3584 + 3584, k and v 3584 + 512, o 7168, mlp 3 (3584 + 18944))
    assert phases["update"]["parameters"] == 2 * 8_292_166_656 + 4 * adapters
    assert phases["update"]["moments"] == pytest.approx(8 * adapters, rel=1e-6)
    assert phases["update"]["gradients"] == 4 * adapters
    assert phases["generation"]["generation weights"] == 2 * adapters
    assert {one["reference"] for one in phases.values()} == {0}
    assert set(phases) == set(PHASES)


def test_without_beta_there_is_no_reference():
    step = counted_shapes(changed(TGRPO, {"mesh.fsdp": 8, "rl.beta": 0.0}), published("7b"))
    phases = memory.phase_memory(step, BUCKET)
    assert "reference" not in phases
    assert phases["update"]["reference"] == 0
