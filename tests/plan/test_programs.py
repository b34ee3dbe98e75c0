"""The compiled step read: what moves between devices, on simulated CPU devices and for a TPU topology."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import jax
import pytest
from step_shapes import SMALL, moved, small_config

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.model.config import TextConfig
from jvr1.plan.compiling import compile_lowered, compile_phase
from jvr1.plan.decoding import KERNEL, decode_program, least_bytes, loop_traffic, parameter_name, token_bytes
from jvr1.plan.hlo import Collective, CompiledProgram, read_program
from jvr1.plan.programs import Shapes, batch_shapes, chip_bytes, lower_phase, row_counts, slots_of, step_shapes
from jvr1.plan.topologies import lowering
from jvr1.rollout.decoder import places
from jvr1.sharding import make_mesh, path_name

pytestmark = pytest.mark.optimised
PLACES = ("cpu", "v5p:2x2x2", "h100-80:8")
CONFIG = small_config()
(BUCKET,) = settings.buckets(CONFIG)


@pytest.fixture(scope="module")
def devices(request, topology):
    return jax.devices() if request.param == "cpu" else topology(request.param)


def in_decode_loop(program: CompiledProgram) -> list[Collective]:
    (loop,) = program.loops("advance_slots)/decode/while")
    return program.collectives_within(loop)


def compiled_decode(step: Shapes) -> CompiledProgram:
    with lowering(step.mesh.devices.flat[0]):
        return read_program(compile_lowered(decode_program(step, BUCKET), step.mesh).as_text())


@pytest.mark.parametrize(
    ("devices", "tensor"),
    [("cpu", 1)]
    + [(place, 4) for place in PLACES]
    + [pytest.param(place, 1, marks=pytest.mark.nightly) for place in PLACES[1:]],
    indirect=["devices"],
)
def test_no_parameter_moves_between_devices_while_tokens_are_sampled(devices, tensor):
    """And what the loop reads of the chip's memory is at least all that it needs."""
    config = small_config(**{"mesh.decode_tensor": tensor, "batch.per_step": 1})
    step = step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config), devices))
    program = compiled_decode(step)
    if devices[0].platform != "tpu":  # which keeps weights as small as these on the chip
        check_reading(step, program)
    found = in_decode_loop(program)
    carried = moved(found, step.params)
    if devices[0].platform == "gpu":  # several arrays in one flat one: as many values as a bias say nothing
        carried = {name for name in carried if not name.endswith("/bias")}
    assert not carried
    if tensor == 1:
        assert {one.kind for one in found} <= {"all-reduce"}  # whether every row of every device is done
        assert all(one.bytes <= 8 for one in found)
        return
    # split over tensor: what moves is activations of this replica's rows, and the probabilities that are added up
    rows, drawn = slots_of(step) // (8 // tensor), sum(row_counts(config, BUCKET))
    for one in found:
        for shape in one.shapes:
            flat = devices[0].platform == "gpu" or one.kind == "all-to-all"  # which draws from whole rows of logits
            assert shape[:1] in ((), (rows,)) or flat, one
            assert math.prod(shape) <= rows * drawn * 640, one  # 528 words, padded
    if devices[0].platform == "gpu":
        return
    outputs = [one for one in found if one.kind == "all-reduce" and one.shapes[0][-1:] == (SMALL.text.hidden,)]
    within = [one for one in outputs if len(one.loops) == 2]  # of attention and the MLP, where layers are scanned
    assert len(within or outputs[1:]) == (2 if within else 2 * SMALL.text.layers), found  # the first is of the table


def check_reading(step: Shapes, program: CompiledProgram) -> None:
    """Every parameter of the decoder is read for each token, in its whole size on a chip, and the caches are; a chip
    that makes copies reads these again."""
    (token,) = loop_traffic(program)
    sizes: dict[str, int] = defaultdict(int)
    for path, x in jax.tree_util.tree_leaves_with_path(step.generation["text"]):
        sizes[path_name(path).rstrip("/0123456789")] += chip_bytes(x)  # of lists all layers
    read_: dict[str, float] = defaultdict(float)
    for source, count in token.read.items():
        read_[parameter_name(source).removeprefix("text/")] += count
    for name, size in sizes.items():
        if name.endswith("kernel"):  # small arrays that are joined have the first one's name
            assert read_.get(name, 0) >= 0.9 * size, (name, read_)
    found, (weights, caches) = token_bytes(program, BUCKET, step.attention), least_bytes(step, BUCKET)
    assert found.weights >= 0.9 * weights
    assert found.caches >= 0.9 * caches
    if KERNEL in token.calls:  # of the ring it reads what is in use
        assert found.all < token.bytes
    else:
        assert found.all == pytest.approx(token.bytes)


def test_on_gpus_a_kernel_attends_to_prefix_and_ring_in_decoding(topology):
    """One call a layer for each stream's prefix and one for the rows' own, which read what they are given once."""
    config = small_config(**{"mesh.decode_tensor": 4, "data.buckets": (("video", 2, 1, 48, 32),)})
    (bucket,) = settings.buckets(config)
    step = step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config), topology("h100-80:8")))
    with lowering(step.mesh.devices.flat[0]):
        program = read_program(compile_lowered(decode_program(step, bucket), step.mesh).as_text())
    (token,) = loop_traffic(program)
    assert token.calls[KERNEL] == 3 * SMALL.text.layers
    read = sum(count for source, count in token.read.items() if parameter_name(source) == "ring")
    found, (_, least) = token_bytes(program, bucket, step.attention), least_bytes(step, bucket)
    assert found.caches == pytest.approx(least + read / 32 * (32 - 33 / 2))  # a block of 32, where 16.5 are in use


@pytest.mark.parametrize("devices", PLACES[:2], indirect=True)
def test_weights_split_over_fsdp_would_move_for_every_token(devices):
    """The test above can fail: laid out as in training, weights are gathered within the loop."""
    step = step_shapes(CONFIG, SMALL, make_mesh(settings.mesh_shape(CONFIG), devices))
    step = replace(step, places=places(step.params, step.mesh, CONFIG.model.dtype))
    names = moved(in_decode_loop(compiled_decode(step)), step.params)
    assert {f"a layer of text/layers/mlp/{part}/kernel" for part in ("up", "down")} & names, names


@pytest.mark.parametrize(("rank", "phase"), [(0, "update"), (4, "update"), (4, "reference")])
def test_arguments_and_what_lies_beside_are_all_there_is(rank, phase):
    """Compiled for simulated devices, which do not pad small arrays. With adapters the base is the reference, too."""
    config = small_config(**{"lora.rank": rank})
    step = step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config)))
    expected = sum(map(chip_bytes, (step.state, step.frozen, step.reference_copy())))
    expected += config.batch.per_step * chip_bytes(batch_shapes(step, BUCKET))
    expected += chip_bytes(step.total) if phase == "update" else 0
    measured = compile_phase(step, phase, BUCKET)
    assert measured.arguments + measured.beside == pytest.approx(expected, rel=0.02)


def test_a_tensor_size_that_cannot_be_is_refused():
    config = small_config(**{"mesh.decode_tensor": 3})
    with pytest.raises(UserError, match="decode_tensor=3"):
        step_shapes(config, SMALL, make_mesh(settings.mesh_shape(config)))


WIDE = replace(
    SMALL, text=TextConfig(512, 3, 4, 2, 640, 528, (16, 24, 24)), vision=replace(SMALL.vision, out_hidden=512)
)
"""Heads of 128 values, as the published models have."""


@pytest.mark.parametrize("tensor", [*(pytest.param(t, marks=pytest.mark.nightly) for t in (1, 2)), 4])
def test_for_tpus_attention_is_the_splash_kernel_and_nothing_is_gathered_for_it(topology, tensor, monkeypatch):
    """Compiled on a CPU machine: the mesh decides. tensor=4: more than there are key/value heads, and completions on
    tapes. Nothing but what is where XLA itself splits attention."""
    mesh = make_mesh({"data": 1, "fsdp": 8 // tensor, "tensor": tensor}, topology("v5p:2x2x2"))
    texts, gathered = {}, {}
    for attention in ("auto", "xla"):
        if attention == "xla":
            monkeypatch.setattr("jvr1.model.attention._each_device", lambda f, heads, rows: f(*heads, *rows))
        step = step_shapes(small_config(**{"model.attention": attention}), WIDE, mesh)
        (program,) = lower_phase(step, "gradients", BUCKET, 12 if tensor == 4 else None)
        texts[attention] = program.lowered.compile().as_text()
        found = [one for one in read_program(texts[attention]).collectives() if one.kind == "all-gather"]
        gathered[attention] = {shape for one in found if not moved([one], step.params) for shape in one.shapes}
    for kernel in ("splash_mha_fwd_segmented", "splash_mha_dq_segmented", "splash_mha_dkv_segmented"):
        assert kernel in texts["auto"]
        assert kernel not in texts["xla"]
    assert gathered["auto"] <= gathered["xla"]


def test_prefill_for_tpus_uses_the_kernel(topology):
    step = step_shapes(small_config(**{"mesh.decode_tensor": 4}), WIDE, make_mesh({"fsdp": 8}, topology("v5p:2x2x2")))
    first, _ = lower_phase(step, "generation", BUCKET)
    text = first.lowered.as_text()
    assert "splash_mha_fwd_segmented" in text
    assert step.attention == "splash"
