"""What compiled programs read and write: a text counted by hand, XLA's own count, whether weights are copied."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jvr1.plan.decoding import loop_traffic
from jvr1.plan.hlo import read_program
from jvr1.plan.products import product_flops
from jvr1.plan.topologies import compiler_options
from jvr1.plan.traffic import program_traffic

TEXT = """HloModule jit_f, is_scheduled=true

%slice_one (stack: bf16[3,16,16], at: s32[]) -> bf16[16,16] {
  %stack = bf16[3,16,16]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,16,16]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,16,16}
  ROOT %flat = bf16[16,16]{1,0} bitcast(%cut)
}

%write_one (ring: bf16[3,8,16], new: bf16[2,16], at: s32[]) -> bf16[3,8,16] {
  %ring = bf16[3,8,16]{2,1,0} parameter(0)
  %new = bf16[2,16]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = bf16[1,2,16]{2,1,0} bitcast(%new)
  ROOT %written = bf16[3,8,16]{2,1,0} dynamic-update-slice(%ring, %row, %at, %zero, %zero)
}

%layer (p: (s32[], bf16[2,16], bf16[3,16,16], bf16[3,8,16])) -> (s32[], bf16[2,16], bf16[3,16,16], bf16[3,8,16]) {
  %p = (s32[], bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[2,16]{1,0} get-tuple-element(%p), index=1
  %w = bf16[3,16,16]{2,1,0} get-tuple-element(%p), index=2
  %ring = bf16[3,8,16]{2,1,0} get-tuple-element(%p), index=3
  %loop_dynamic_slice_fusion = bf16[16,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_one
  %gemm = (bf16[2,16]{1,0}, s8[4194304]{0}) custom-call(%x, %loop_dynamic_slice_fusion), custom_call_target="__cublas$gemm", backend_config={"operation_queue_id":"0","gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %y = bf16[2,16]{1,0} get-tuple-element(%gemm), index=0
  %kept = bf16[3,8,16]{2,1,0} fusion(%ring, %y, %i), kind=kLoop, calls=%write_one
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}) tuple(%next, %y, %w, %kept)
}

%layers_left (p: (s32[], bf16[2,16], bf16[3,16,16], bf16[3,8,16])) -> pred[] {
  %p = (s32[], bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%token (q: (bf16[2,16], bf16[3,16,16], bf16[3,8,16], pred[])) -> (bf16[2,16], bf16[3,16,16], bf16[3,8,16], pred[]) {
  %q = (bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}, pred[]) parameter(0)
  %x = bf16[2,16]{1,0} get-tuple-element(%q), index=0
  %w = bf16[3,16,16]{2,1,0} get-tuple-element(%q), index=1
  %ring = bf16[3,8,16]{2,1,0} get-tuple-element(%q), index=2
  %zero = s32[] constant(0)
  %init = (s32[], bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}) tuple(%zero, %x, %w, %ring)
  %layers = (s32[], bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}) while(%init), condition=%layers_left, body=%layer
  %y = bf16[2,16]{1,0} get-tuple-element(%layers), index=1
  %kept = bf16[3,8,16]{2,1,0} get-tuple-element(%layers), index=3
  %attended = bf16[2,16]{1,0} custom-call(%y, %kept), custom_call_target="__cudnn$fmhaSoftmax"
  %over = pred[] custom-call(%attended), custom_call_target="over"
  ROOT %out = (bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}, pred[]) tuple(%attended, %w, %kept, %over)
}

%goes_on (q: (bf16[2,16], bf16[3,16,16], bf16[3,8,16], pred[])) -> pred[] {
  %q = (bf16[2,16]{1,0}, bf16[3,16,16]{2,1,0}, bf16[3,8,16]{2,1,0}, pred[]) parameter(0)
  ROOT %over = pred[] get-tuple-element(%q), index=3
}

ENTRY %main (x: bf16[2,16], w: bf16[3,16,16], ring: bf16[3,8,16]) -> bf16[2,16] {
  %x = bf16[2,16]{1,0} parameter(0), metadata={op_name="x"}
  %w = bf16[3,16,16]{2,1,0} parameter(1), metadata={op_name="weights[\\'text\\'][\\'up\\']"}
  %ring = bf16[3,8,16]{2,1,0} parameter(2), metadata={op_name="cache.k"}
  %yes = pred[] constant(true)
  %copy = bf16[3,16,16]{1,2,0} copy(%w)
  %init = (bf16[2,16]{1,0}, bf16[3,16,16]{1,2,0}, bf16[3,8,16]{2,1,0}, pred[]) tuple(%x, %copy, %ring, %yes)
  %tokens = (bf16[2,16]{1,0}, bf16[3,16,16]{1,2,0}, bf16[3,8,16]{2,1,0}, pred[]) while(%init), condition=%goes_on, body=%token, metadata={op_name="jit(f)/decode/while"}
  ROOT %last = bf16[2,16]{1,0} get-tuple-element(%tokens), index=0
}
"""  # noqa: E501

pytestmark = pytest.mark.optimised
LAYER, ROWS, RING, FLAG, COUNT = 16 * 16 * 2, 2 * 16 * 2, 3 * 8 * 16 * 2, 1, 4
WEIGHT = "weights['text']['up']"


def test_a_text_counted_by_hand():
    """For each of 3 layers its slice is read, written and read again; the ring's row is written in place."""
    program = read_program(TEXT)
    (token,) = loop_traffic(program)
    assert token.copied == {WEIGHT: 3 * LAYER}
    assert token.read[WEIGHT] == 3 * 2 * LAYER
    # by attention, whole; in place nothing is read of it
    assert token.read["cache.k"] == RING
    assert token.calls == {"__cudnn$fmhaSoftmax": 1, "over": 1}
    # in a layer: slice, product, row, next; its condition; then attention and the flag
    assert token.kernels == 3 * 4 + 3 + 2
    # product and row of each layer, attention, the flag; counters and comparisons
    assert token.written == 3 * (2 * ROWS + COUNT + FLAG) + ROWS + FLAG
    whole = program_traffic(program, unknown=10)
    assert whole.copied == {WEIGHT: 3 * LAYER + 10 * 3 * LAYER}  # and once before the loop
    assert whole.bytes == 2 * 3 * LAYER + 10 * token.bytes
    assert product_flops(program, unknown=10) == 10 * 3 * 2 * 2 * 16 * 16


def dense(x, w):
    return jnp.tanh(x @ w) @ w.T


def cut(x, w):
    return jax.lax.dynamic_slice(w, (jnp.int32(3), jnp.int32(0)), (8, w.shape[1])) + x[:8]


def summed(x, w):
    return jnp.sum(x * 2 + w, axis=0)


@pytest.mark.parametrize("f", [dense, cut, summed])
def test_without_loops_it_is_what_xla_counts(f):
    """Its own analysis, which looks into fusions as well."""
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(f).lower(shape, shape).compile()
    count = compiled.cost_analysis()["bytes accessed"]
    assert program_traffic(read_program(compiled.as_text()), 1).bytes == pytest.approx(count, rel=0.01)


LAYERS, WIDTH = 6, 256


def tokens(layers, x):
    """A decode loop with a given pass through the layers."""

    def step(carry):
        x, n = carry
        return layers(x), n + 1

    with jax.named_scope("decode"):
        return jax.lax.while_loop(lambda carry: carry[1] < jnp.max(carry[0]), step, (x, jnp.zeros((), x.dtype)))


def stacked(x, weights):
    return tokens(lambda x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights["all"])[0], x)


def separate(x, weights):
    def through(x):
        for w in weights.values():
            x = jnp.tanh(x @ w)
        return x

    return tokens(through, x)


@pytest.mark.parametrize("place", ["cpu", "v5p:2x2x1", "h100-80:1"])
def test_whether_weights_are_copied_for_each_token(topology, place):
    """Of layers in one array a CPU and a GPU cut out each layer for its product, a TPU reads it where it lies; nobody
    copies an array that is a layer's own. Either way all weights are read for each token."""
    device = jax.devices()[0] if place == "cpu" else topology(place)[0]
    dtype = jnp.dtype(jnp.float32 if place == "cpu" else jnp.bfloat16)  # those that each multiplies as they are

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(device))

    one = WIDTH * WIDTH * dtype.itemsize
    whole = {"all": shape(LAYERS, WIDTH, WIDTH)}
    own = {f"layer{i}": shape(WIDTH, WIDTH) for i in range(LAYERS)}
    for f, weights, copies in ((stacked, whole, 0 if place.startswith("v5p") else 1), (separate, own, 0)):
        compiled = jax.jit(f).lower(shape(8, WIDTH), weights).compile(compiler_options(device))
        (token,) = loop_traffic(read_program(compiled.as_text()))
        assert token.copied.total() == copies * LAYERS * one, (f, token)
        for name in weights:
            assert token.read[f"weights['{name}']"] == (1 + copies) * LAYERS * one // len(weights), (f, token)
