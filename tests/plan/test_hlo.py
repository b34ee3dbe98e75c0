"""Reading compiled programs: loops, trip counts, collectives with their bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jvr1.plan.hlo import read_program, totals
from jvr1.plan.products import product_flops
from jvr1.plan.topologies import compiler_options
from jvr1.sharding import make_mesh

TEXT = """HloModule jit_f, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%ring_cond (p: (u32[], bf16[4,8])) -> pred[] {
  %bound = u32[]{:T(128)} constant(4)
  %p = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={op_name="ring"}
}

%ring_body (p: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %two = u32[]{:T(128)} constant(2)
  %one = u32[]{:T(128)} constant(1)
  %p = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %half = u32[]{:T(128)} add(%i, %one)
  %send = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1
  %sent = bf16[4,8]{1,0} collective-permute-done(%send)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %out = (u32[], bf16[4,8]{1,0}) tuple(%next, %sent)
}

%cond (q: (s32[], pred[])) -> pred[] {
  %q = (s32[], pred[]) parameter(0)
  %n = s32[] constant(768)
  %j = s32[] get-tuple-element(%q), index=0
  %less = pred[] compare(%j, %n), direction=LT
  %done = pred[] get-tuple-element(%q), index=1
  %all = u32[] all-reduce(%done), to_apply=%add
  ROOT %and = pred[] and(%less, %done)
}

%body (q: (s32[], pred[])) -> (s32[], pred[]) {
  %q = (s32[], pred[]) parameter(0)
  %w = (u32[], bf16[4,8]) while(%start), condition=%ring_cond, body=%ring_body, metadata={op_name="f/decode/while/body/ring/while"}
  %fused = f32[2,3] fusion(%w), kind=kLoop, calls=%fusion
  ROOT %r = (s32[], pred[]) tuple(%j, %d)
}

%fusion (x: f32[2,3]) -> f32[2,3] {
  %x = f32[2,3] parameter(0)
  ROOT %ar = (f32[2,3]{1,0}, bf16[5]{0}) all-reduce(%x, %y), to_apply=%add, metadata={op_name="f/decode/while/body/sum all-gather("}
}

ENTRY %main (x: f32[2]) -> f32[] {
  %g = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
  %loop = (s32[], pred[]) while(%init), condition=%cond, body=%body, metadata={op_name="f/decode/while"}
  %known = (s32[]) while(%init), condition=%cond, body=%fusion, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501

pytestmark = pytest.mark.optimised


def test_loops_collectives_and_bytes():
    program = read_program(TEXT)
    (loop,) = program.loops("f/decode/while")
    assert loop.trips is None  # it may end before its bound
    within = program.collectives_within(loop)
    assert [(one.kind, one.loops, one.bytes) for one in within] == [
        ("all-reduce", (None,), 2 * 3 * 4 + 5 * 2),
        ("collective-permute", (None, 2), 64),  # 4 by steps of 2; sent and received are one array
        ("all-reduce", (None,), 4),
    ]
    assert within[0].shapes == ((2, 3), (5,))
    assert totals(program.collectives(), unknown=10) == {
        "all-gather": (1, 1, 256),
        "all-reduce": (4, 10 + 10 + 5 + 5, 10 * 34 + 10 * 4 + 5 * 34 + 5 * 4),
        "collective-permute": (1, 20, 20 * 64),
    }


@pytest.mark.parametrize("place", ["cpu", "v5p:2x2x1"])
def test_products_are_counted_as_often_as_they_run(topology, place):
    """A scan of products, one of them in one of two branches, and a convolution."""
    device = jax.devices()[0] if place == "cpu" else topology(place)[0]
    layers, n, heads = 5, 256, 4

    def f(weights, x, kernel, flag):
        def layer(x, w):
            y = jnp.einsum("nd,dhe->nhe", x, w)
            y = jax.lax.cond(flag, lambda y: jnp.tanh(jnp.einsum("nhe,mhe->nhm", y, y)), jnp.sin, y)
            return y.sum(1), None

        x, _ = jax.lax.scan(layer, x, weights)
        how = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x.reshape(1, 8, 8, -1), kernel, (1, 1), "VALID", dimension_numbers=how)

    shapes = [(layers, n, heads, n), (n, n), (3, 3, n * n // 64, 32)]
    given = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=SingleDeviceSharding(device)) for s in shapes]
    flag = jax.ShapeDtypeStruct((), jnp.bool_, sharding=SingleDeviceSharding(device))
    found = product_flops(read_program(jax.jit(f).lower(*given, flag).compile().as_text()), unknown=0)
    want = layers * 2 * 2 * heads * n**3 + 2 * 6 * 6 * 9 * (n * n // 64) * 32
    assert found == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("triton", [False, True])
def test_products_of_a_gpu_are_read_from_calls_of_cublas_and_from_fusions_of_triton(topology, triton):
    """A product of batches within a loop, and one that contracts both first axes."""
    (device,) = topology("h100-80:1")

    def f(x, weights):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(jnp.einsum("bnd,bdm->bnm", x, w)), None), x, weights)
        return jnp.einsum("bnd,bne->bde", x, x)

    layers, b, n, d = 5, 3, 64, 128
    given = [
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=SingleDeviceSharding(device))
        for s in ((b, n, d), (layers, b, d, d))
    ]
    options = (compiler_options(device) or {}) | {"xla_gpu_enable_triton_gemm": triton}
    text = jax.jit(f).lower(*given).compile(options).as_text()
    assert ("__triton" in text, "__cublas" in text) == (triton, not triton)
    assert product_flops(read_program(text), unknown=0) == pytest.approx((layers + 1) * 2 * b * n * d * d, rel=1e-3)


def test_a_program_of_xla():
    """A scan of 7 layers split over 8 devices: each all-gathers its weights."""
    mesh = make_mesh({"fsdp": 8})

    def spec(*axes):
        return NamedSharding(mesh, P(*axes))

    def f(weights, x):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), spec("fsdp")), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = (
        jax.ShapeDtypeStruct((7, 48, 48), jnp.float32, sharding=spec(None, "fsdp")),
        jax.ShapeDtypeStruct((512, 48), jnp.float32, sharding=spec("fsdp")),
    )
    found = read_program(jax.jit(f).lower(*shapes).compile().as_text()).collectives()
    assert {one.kind for one in found} == {"all-gather"}
    assert sum(one.times(unknown=0) * one.bytes for one in found) == 7 * 48 * 48 * 4
