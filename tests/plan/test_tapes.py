"""Operations of the compiled update beside those of the tokens that are there; what the planner makes of tapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import pytest
from step_shapes import SMALL, small_config

from jvr1 import config as settings
from jvr1.chips import chip_named
from jvr1.data.batch import Bucket
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.families import published
from jvr1.plan.compiling import compile_phase
from jvr1.plan.planning import changed, largest_bucket, make_plan
from jvr1.plan.programs import Shapes, step_shapes, tape_of
from jvr1.plan.topologies import lowering
from jvr1.sharding import make_mesh
from jvr1.train.flops import scoring

TGRPO = str(Path(__file__).parents[2] / "configs" / "tgrpo_7b.py")
SHARE = 385 / 768
"""Mean length of a completion, in the longest."""


def least(model: ModelConfig, step: Shapes, bucket: Bucket, tokens: float) -> float:
    """Operations of a chip's microbatch of such tokens: each layer's forward pass twice, and the head's."""
    passed = scoring(model, bucket, step.config.rl.group, tokens)
    return (passed.both + passed.layers + passed.head) * step.config.batch.micro / step.mesh.size


@pytest.mark.optimised
def test_products_are_little_more_than_those_of_real_tokens():
    """Attention's, computed in blocks by XLA, are among them. Of padded completions they are 1.86 times as many."""
    config = small_config(
        **{"data.buckets": (("text", 0, 0, 40, 64),), "batch.micro": 1, "rl.group": 8, "rl.beta": 0.0}
    )
    model = replace(SMALL, text=TextConfig(1024, 1, 8, 4, 4096, 528, (16, 24, 24)))
    (bucket,) = settings.buckets(config)
    step = step_shapes(config, model, make_mesh({"data": 1}, jax.devices()[:1]))
    assert (tape_of(step, bucket, SHARE * 64), tape_of(step, bucket)) == (288, None)
    products = compile_phase(step, "gradients", bucket, tokens=SHARE * 64).products
    real = least(model, step, bucket, SHARE * 64)
    assert real < products < 1.15 * real


@pytest.mark.nightly
@pytest.mark.optimised
def test_products_of_the_7b(topology):
    """Prompts of 1,216 tokens in the bucket of 1,536; cuDNN's kernels are not among the products, on either side."""
    config, model = settings.from_file(TGRPO), published("7b")
    bucket = largest_bucket(settings.buckets(config))
    step = step_shapes(config, model, make_mesh(settings.mesh_shape(config), topology("h100-80:8")))
    with lowering(step.mesh.devices.flat[0]):
        products = compile_phase(step, "gradients", bucket, tokens=385).products
    whole = Bucket(bucket.kind, bucket.steps, bucket.windows, 1216, bucket.completion)
    pairs = 1216**2 / 2 + 8 * 385 * (1216 + 385 / 2)
    kernel = 4 * pairs * model.text.heads * model.text.head_size * model.text.layers
    assert products < 1.15 * (least(model, step, whole, 385) - 4 * kernel)


def test_the_planner_counts_what_is_read():
    """Of 385 tokens of 768: tapes of 3,456 tokens beside prompts of 1,536, not of 6,144."""

    def flops(packing: int, tokens: int | None) -> list[float]:
        config = changed(settings.from_file(TGRPO), {"mesh.fsdp": 8, "rl.packing": packing})
        work = make_plan(config, published("7b"), chip_named("h100-80"), tokens).work
        return [work[phase].flops for phase in ("reference", "gradients")]

    full = flops(0, None)
    assert flops(0, 385) == flops(16, None) == full
    for packed, padded in zip(flops(16, 385), full, strict=True):
        assert packed / padded == pytest.approx((1536 + 3456) / (1536 + 6144), abs=0.04)
