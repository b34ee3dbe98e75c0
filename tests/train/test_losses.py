"""Scores of tokens on a mesh; on one device and against torch: tests/rollout/test_generate.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jvr1.model.layers import batch_ways
from jvr1.plan.hlo import read_program
from jvr1.sharding import batch_sharding, make_mesh
from jvr1.train.losses import token_scores

B, G, C, D, V, CHUNK = 4, 2, 16, 8, 24, 4


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_on_a_mesh_the_head_and_its_gradient_move_once_not_for_each_chunk(sizes):
    rng = np.random.default_rng(0)
    head, hidden, weight = (rng.normal(size=s).astype(np.float32) for s in ((D, V), (B, G, C, D), (2, B, G, C)))
    targets = rng.integers(0, V, (B, G, C)).astype(np.int32)

    def loss(head, hidden, targets):
        scores = token_scores(head, hidden, targets, temperature=0.7, chunk=CHUNK)
        return jnp.sum(scores.logprobs * weight[0] + scores.entropy * weight[1]), scores

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    alone = step(*map(jnp.asarray, (head, hidden, targets)))
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(head, NamedSharding(mesh, P("fsdp", "tensor"))),
            *(jax.device_put(x, batch_sharding(mesh)) for x in (hidden, targets)),
        )
        split = step(*placed)
        program = read_program(step.lower(*placed).compile().as_text())
    for got, want in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    of_head = D * V // mesh.shape["tensor"]
    moved = [one for one in program.collectives() if any(np.prod(shape) >= of_head // 2 for shape in one.shapes)]
    assert {one.kind for one in moved} >= {"all-gather"}
    within = [one for one in program.collectives() if one.loops]
    exchanged = B // batch_ways(mesh) * G * CHUNK * D  # of a chunk, over tensor: the gradient of what words are made of
    assert all(np.prod(shape) <= exchanged < of_head for one in within for shape in one.shapes), within
