"""The compiled step read: what moves between devices, on simulated CPU devices and for a TPU topology."""

from __future__ import annotations

import math

import jax
import pytest
from step_shapes import SMALL, small_config

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.sharding import is_stacked, make_mesh, path_name
from jvr1.train.decode import make_decoder
from jvr1.train.hlo import Collective, read
from jvr1.train.programs import (
    END_IDS,
    PHASES,
    batch_shapes,
    chip_bytes,
    compile_phase,
    lower_phase,
    row_counts,
    step_shapes,
)

PLACES = ("cpu", "v5p:2x2x2")
CONFIG = small_config()
(BUCKET,) = settings.buckets(CONFIG)


@pytest.fixture(scope="module", params=PLACES)
def devices(request, topology):
    return jax.devices() if request.param == "cpu" else topology(request.param)


def in_decode_loop(text: str) -> list[Collective]:
    program = read(text)
    (loop,) = program.loops("rollout)/decode/while")
    return program.collectives_within(loop)


def parameters(params: dict) -> dict[int, str]:
    """Number of values of each parameter and of one layer of it -> its path."""
    sizes = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        sizes[math.prod(x.shape)] = name
        if is_stacked(name):
            sizes[math.prod(x.shape[1:])] = f"a layer of {name}"
    return sizes


def moved(collectives: list[Collective], params: dict) -> set[str]:
    """Parameters that collectives carry, whole or a layer of them."""
    sizes = parameters(params)
    return {sizes[n] for one in collectives for shape in one.shapes if (n := math.prod(shape)) in sizes}


@pytest.mark.parametrize("tensor", [1, 4])
def test_no_parameter_moves_between_devices_while_tokens_are_sampled(devices, tensor):
    config = small_config(**{"mesh.decode_tensor": tensor})
    step = step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config), devices))
    (program,) = lower_phase(step, "generation", BUCKET)
    found = in_decode_loop(program.lowered.compile().as_text())
    assert not moved(found, step.params)
    if tensor == 1:
        assert {one.kind for one in found} <= {"all-reduce"}  # whether every row of every device is done
        assert all(one.bytes <= 8 for one in found)
        return
    # split over tensor: what moves is activations of this replica's rows, and the probabilities that are added up
    rows, drawn = CONFIG.batch.micro // (8 // tensor), sum(row_counts(config, BUCKET))
    for one in found:
        for shape in one.shapes:
            assert shape[:1] in ((), (rows,)), one
            assert math.prod(shape) <= rows * drawn * 640, one  # 528 words, padded
    layers = [one for one in found if len(one.loops) == 2]
    assert [one.kind for one in layers] == ["all-reduce"] * 2, layers  # attention's and the MLP's output


def test_weights_split_over_fsdp_would_move_for_every_token(devices):
    """The test above can fail: laid out as in training, all weights are gathered within the loop."""
    step = step_shapes(CONFIG, SMALL, make_mesh(settings.mesh_shape(CONFIG), devices))
    decoder = make_decoder(step.graphdef, step.mesh, SMALL, END_IDS, dtype="bfloat16")
    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = row_counts(CONFIG, BUCKET)
    # the reference: cast as the weights of generation are, laid out as in training
    lowered = decoder.lower(
        step.reference, batch_shapes(step, BUCKET), key, rows, decoder.sampling(BUCKET, temperature=1.0)
    )
    names = moved(in_decode_loop(lowered.compile().as_text()), step.params)
    assert {f"a layer of text/layers/mlp/{part}/kernel" for part in ("up", "down")} & names, names
    assert names & {"text/head/kernel", "text/embedding"}, names


def test_every_phase_compiles_and_its_arguments_are_the_counted_ones(topology):
    step = step_shapes(CONFIG, SMALL, make_mesh(settings.mesh_shape(CONFIG), topology("v5p:2x2x2")))
    measured = {phase: compile_phase(step, phase, BUCKET) for phase in PHASES}
    state = chip_bytes(step.state)
    assert state <= measured["update"].arguments - chip_bytes(step.total) < 1.5 * state  # small arrays are padded
    for phase in ("reference", "gradients"):
        kinds = {one.kind for one in measured[phase].collectives}
        assert {"all-gather"} <= kinds, phase  # weights, a layer at a time
    gathered = [one for one in measured["gradients"].collectives if one.kind == "all-gather" and one.loops]
    assert gathered
    # no activation is replicated: what a device has of one is of its own row
    full = {math.prod(x.shape) for x in jax.tree.leaves(step.params)}
    assert not [one for one in gathered for shape in one.shapes if shape and math.prod(shape) in full - {64, 128}]


def test_a_tensor_size_that_cannot_be_is_refused():
    config = small_config(**{"mesh.decode_tensor": 3})
    with pytest.raises(UserError, match="decode_tensor=3"):
        step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config)))
