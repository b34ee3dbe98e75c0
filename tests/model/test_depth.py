"""Layers are scanned: the program of forward and backward is as long for 28 layers as for 2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import Item, our_inputs, tokens

from jvr1.model import vision_language
from jvr1.model.families import from_hf

pytestmark = pytest.mark.slow


def program(text_layers: int, vision_layers: int, remat: str) -> str:
    full = [number for number in range(vision_layers) if number % 2]  # the kinds repeat, as the published ones do
    config = from_hf(
        oracle.raw_config(num_hidden_layers=text_layers, vision_depth=vision_layers, vision_fullatt_block_indexes=full)
    )
    graphdef, shapes = vision_language.abstract(config, remat=remat)
    rng = np.random.default_rng(0)
    items = [Item(rng, 4, 4, 4, 1.0)]
    prompt, visual = our_inputs(tokens(rng, 2, *items, 2), items, config)

    def loss(params, prompt, visual, completions):
        model = vision_language.merge(graphdef, params)
        return jnp.sum(model.logits(model.complete(prompt, visual, completions)))

    completions = jax.ShapeDtypeStruct((1, 2, 3), jnp.int32)
    return jax.jit(jax.grad(loss)).lower(shapes, prompt, visual, completions).as_text()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_program_does_not_grow_with_depth(remat):
    short, deep = program(2, 4, remat), program(28, 32, remat)
    assert len(deep) < 1.05 * len(short)
    assert deep.count("stablehlo.dot_general") == short.count("stablehlo.dot_general")
