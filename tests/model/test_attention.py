"""Every backend computes dense attention, values and gradients: padding on either side, grouped heads, meshes.

The oracle is `jax.nn.dot_product_attention` in its XLA form under the whole mask. The splash kernel runs interpreted.
cuDNN's does not run here: its masks and its repeated prefix are tested by the same function in its XLA form, and the
kernel by what is lowered for CUDA. Tolerances: fp32, order of summation.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import Item, our_inputs, tokens

from jvr1.errors import UserError
from jvr1.model import blockwise, splash, vision_language
from jvr1.model.attention import QKV, attend_group, attend_prompt, attend_tape, choose
from jvr1.model.families import from_hf
from jvr1.model.tape import lay, unwind, wind
from jvr1.sharding import AXES, make_mesh

pytestmark = pytest.mark.usefixtures("strict_dtypes")
BACKENDS = ("xla", "interpreted", "cudnn")
DENSE = jax.nn.dot_product_attention
P, N, H = 40, 4, 16


@pytest.fixture
def kernels(monkeypatch):
    """Blocks so small that there are several, and `jax.nn`'s XLA form in cuDNN's place."""

    def stand_in(q, k, v, *, mask=None, is_causal=False, implementation):
        assert implementation == "cudnn"
        return DENSE(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(splash, "SPLASH_BLOCK", 128)
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 16)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def assert_blocks(blocks: tuple[blockwise.Span, ...], prompt: int, tape: int, total: int) -> None:
    """They cover all queries once, and their scores are counted as they are made."""
    assert [b.start for b in blocks] == [0, *(b.end for b in blocks[:-1])]
    assert blocks[-1].end == total
    mask, row = jnp.ones((1, prompt), bool), jnp.zeros((1, tape), jnp.int32)
    shapes = [
        [jnp.broadcast_shapes(k.seen.shape, (1, 1, b.end - b.start, 1)) for k in blockwise.keys_of(b, mask, row, 1)]
        for b in blocks
    ]
    counts = [sum(shape[2] * shape[3] for shape in of_block) for of_block in shapes]
    assert blockwise.score_counts(prompt, blocks) == (max(counts), sum(counts))


@pytest.mark.parametrize(("prompt", "rows", "length"), [(40, 3, 70), (40, 8, 6), (300, 0, 0), (5, 3, 1)])
def test_blocks_of_completions(monkeypatch, prompt, rows, length):
    """A prompt's scores up to its end, a completion's of the prompt and itself."""
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 16)
    blocks = blockwise.spans(prompt, rows, length)
    assert sum(b.rows for b in blocks) == rows
    assert max(b.end - b.start for b in blocks) <= max(16, length, -(-prompt // blockwise.MOST_BLOCKS))
    assert_blocks(blocks, prompt, 0, prompt + rows * length)


@pytest.mark.parametrize(("prompt", "tape", "longest"), [(40, 100, 70), (40, 40, 6), (5, 2, 1), (40, 900, 3)])
def test_blocks_of_a_tape(monkeypatch, prompt, tape, longest):
    """Scores of the prompt and of as many keys before a block as a completion may have."""
    monkeypatch.setattr(blockwise, "QUERY_BLOCK", 16)
    blocks = blockwise.tape_spans(prompt, tape, longest)
    own = [b for b in blocks if b.first]
    assert len(own) <= blockwise.MOST_BLOCKS
    assert [b.start - b.first for b in own] == [min(longest - 1, b.start - prompt) for b in own]
    assert_blocks(blocks, prompt, tape, prompt + tape)


def test_who_sees_whom():
    """Three prompt tokens, two completions of two, two of padding."""
    want = """
    1........
    11.......
    111......
    1111.....
    11111....
    111..1...
    111..11..
    .......1.
    .......11
    """
    got = ["".join(".1"[x] for x in row) for row in splash.packed_mask(3, 2, 2, 9)[:, :].astype(int)]
    assert got == want.split()
    np.testing.assert_array_equal(splash.packed_mask(5, 0, 0, 5)[:, :], np.tril(np.ones((5, 5), bool)))
    # completions of at most two, on a tape of four
    want = want.replace("111..1...", "111.11...")
    got = ["".join(".1"[x] for x in row) for row in splash.tape_mask(3, 4, 2, 9)[:, :].astype(int)]
    assert got == want.split()


@pytest.mark.parametrize(("total", "block", "padded"), [(1, 128, 128), (300, 384, 384), (513, 512, 1024)])
def test_sequences_are_padded_to_blocks(total, block, padded):
    assert splash.block_sizes(total) == (block, padded)


def padded_left(backend: str) -> bool:
    """Where padding stands on the left in a test: cuDNN takes it on the right alone."""
    return backend != "cudnn"


Case = tuple[int, int, int, bool]
"""Completions, their length, key/value heads, whether padding stands on the left."""


def group(rows: int, length: int, heads: int, left: bool) -> tuple[QKV, jax.Array, QKV]:
    """Prompts, one whole, two padded, one without any real token, with completions."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> QKV:
        return QKV(*(jnp.asarray(rng.normal(size=(*shape, n, H)), jnp.float32) for n in (N, heads, heads)))

    real = np.array([P, P - 13, 2, 0])[:, None]
    mask = np.arange(P) >= P - real if left else np.arange(P) < real
    return draw(4, P), jnp.asarray(mask), draw(4, rows, length)


def dense(packed: QKV, mask: jax.Array, rows: int, length: int) -> jax.Array:
    total = packed.q.shape[1]
    real = jnp.pad(mask, ((0, 0), (0, total - P)), constant_values=True)
    seen = splash.packed_mask(P, rows, length, total)[:, :][None] & real[:, None]
    return DENSE(*packed, mask=seen[:, None], implementation="xla")


def attended(prompt: QKV, mask: jax.Array, own: QKV, backend: str) -> tuple[jax.Array, jax.Array]:
    """What prompts and completions get, of `attend_group`."""
    rows, length = own.q.shape[1:3]
    packed = QKV(
        *(
            jnp.concatenate([x, y.reshape(len(y), rows * length, *y.shape[3:])], 1)
            for x, y in zip(prompt, own, strict=True)
        )
    )
    both = (
        dense(packed, mask, rows, length) if backend == "dense" else attend_group(packed, mask, rows, length, backend)
    )
    return both[:, :P], both[:, P:].reshape(own.q.shape)


def values_and_gradients(backend: str, prompt: QKV, mask: jax.Array, own: QKV):
    """Outputs at real tokens and gradients of a random function of them; everything must be finite."""
    rng = np.random.default_rng(9)
    weights = [jnp.asarray(rng.normal(size=x.q.shape), jnp.float32) for x in (prompt, own)]

    def loss(prompt, mask, own):
        x, y = (z.astype(jnp.float32) for z in attended(prompt, mask, own, backend))
        real = jnp.where(mask[..., None, None], x, jnp.float32(0))
        return jnp.sum(real * weights[0]) + jnp.sum(y * weights[1]), (x, real, y)

    grads, (x, *values) = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))(prompt, mask, own)
    assert all(np.isfinite(z).all() for z in jax.tree.leaves((x, grads)))
    return grads, values


@functools.cache
def by_dense(case: Case):
    return values_and_gradients("dense", *group(*case))


def assert_equal(got, want, tolerance=1e-5):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [(1, 24, 4), (3, 70, 2), pytest.param((5, 6, 2), marks=pytest.mark.nightly)])
def test_values_and_gradients_are_those_of_dense_attention(kernels, backend, case):
    case = (*case, padded_left(backend) and case[0] > 1)
    assert_equal(values_and_gradients(backend, *group(*case)), by_dense(case))


def test_in_bfloat16_blocks_round_as_little_as_dense_attention_does(kernels):
    """Both against fp32 of the same rounded inputs: outputs and gradients, the largest and the mean error."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, group(5, 6, 2, True))
    prompt, own = jax.tree.map(lambda x: x.astype(jnp.float32), rounded[::2])
    want = values_and_gradients("dense", prompt, rounded[1], own)
    errors = {}
    for backend in ("xla", "dense"):
        with jax.numpy_dtype_promotion("standard" if backend == "dense" else "strict"):  # that of `jax.nn` mixes dtypes
            got = values_and_gradients(backend, *rounded)
        assert {x.dtype for x in jax.tree.leaves(got[0])} == {jnp.dtype(jnp.bfloat16)}
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        errors[backend] = np.concatenate([np.abs(np.asarray(g, np.float32) - w).ravel() for g, w in pairs])
    assert errors["xla"].max() < 2 * errors["dense"].max()
    assert errors["xla"].mean() < 1.2 * errors["dense"].mean()


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_mesh(kernels, backend):
    """Rows split two ways, heads four ways: more than there are key/value heads."""
    case = (3, 70, 2, padded_left(backend))
    with jax.set_mesh(make_mesh(dict(zip(AXES, (1, 2, 4), strict=True)))):
        got = values_and_gradients(backend, *group(*case))
    assert_equal(got, by_dense(case))


LENGTHS = np.array([[70, 1, 30, 0, 64], [0, 0, 0, 0, 0], [3, 70, 70, 5, 20], [70, 70, 0, 12, 13]], np.int32)
"""Of five completions of at most 70 tokens; at most 168 in a row."""


@functools.cache
def on_tapes(backend: str, size: int, ways: int, left: bool):
    """Values and gradients of real tokens' attention, completions on tapes of so many tokens, or dense and padded."""
    prompt, mask, own = group(5, 70, 2, left)
    there = jnp.asarray(np.arange(70) < LENGTHS[..., None])[..., None, None]
    weights = [jnp.asarray(np.random.default_rng(9).normal(size=x.q.shape), jnp.float32) for x in (prompt, own)]

    def attention(prompt: QKV, own: QKV) -> tuple[jax.Array, jax.Array]:
        if backend == "dense":
            return attended(prompt, mask, own, "dense")
        tape = lay(jnp.asarray(LENGTHS), size)
        packed = QKV(*(jnp.concatenate([x, wind(y, tape)], axis=1) for x, y in zip(prompt, own, strict=True)))
        both = attend_tape(packed, mask, tape, 70, backend)
        return both[:, :P], unwind(both[:, P:], tape, 70)

    def loss(prompt, own):
        x, y = attention(prompt, own)
        real = jnp.where(mask[..., None, None], x, jnp.float32(0)), jnp.where(there, y, jnp.float32(0))
        return sum(jnp.sum(x * w) for x, w in zip(real, weights, strict=True)), (x, y, real)

    with jax.set_mesh(make_mesh(dict(zip(AXES, (1, ways, 8 // ways), strict=True)))) if ways else nullcontext():
        grads, (*every, values) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(prompt, own)
    assert all(np.isfinite(z).all() for z in jax.tree.leaves((every, grads)))
    return grads, values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "ways"), [pytest.param(168, 0, marks=pytest.mark.nightly), (200, 2)])
def test_on_a_tape_completions_see_the_prompt_and_themselves(kernels, backend, size, ways):
    """Without a mesh, tapes full to the last token; and with padding, on one."""
    left = padded_left(backend)
    assert_equal(on_tapes(backend, size, ways, left), on_tapes("dense", 0, 0, left))


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_alone(kernels, backend):
    prompt, mask, _ = group(1, 2, 2, padded_left(backend))
    got, want = jax.jit(attend_prompt, static_argnums=2)(prompt, mask, backend), dense(prompt, mask, 0, 0)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[mask], want[mask], rtol=1e-5, atol=1e-5)


def test_odd_lengths_are_left_to_xla(kernels):
    """cuDNN takes no mask of odd length in training."""
    prompt, mask, own = group(2, 5, 2, False)
    got, by_xla, want = (
        jax.jit(attended, static_argnums=3)(prompt, mask, own, name) for name in ("cudnn", "xla", "dense")
    )
    for g, x, w in zip(got, by_xla, want, strict=True):
        np.testing.assert_array_equal(g, x)
        np.testing.assert_allclose(g[:3], w[:3], rtol=1e-5, atol=1e-5)  # the fourth prompt has no real token


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_model_computes_the_same(kernels, backend):
    """As by XLA (against torch: tests/model/test_parity.py): logits, every parameter's gradient, what prefill keeps."""
    config = from_hf(oracle.raw_config(num_hidden_layers=2, vision_depth=1, vision_fullatt_block_indexes=[0]))
    rng = np.random.default_rng(5)
    items = [Item(rng, 4, 4, 4, 1.0)]
    prompt, visual = our_inputs(tokens(rng, 2, *items, 3), items, config, 30, left=padded_left(backend))
    ids = jnp.asarray(rng.integers(3, 90, (1, 3, 8)), jnp.int32)

    real = np.flatnonzero(prompt.mask[0])[-5:]

    def run(name):
        graphdef, params = oracle.random_model(config, remat="full", attention=name)

        def loss(params):
            model = vision_language.merge(graphdef, params)
            logits = model.logits(model.complete(prompt, visual, ids))
            last, kv = model.prefill(prompt, visual, None)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)
            return jnp.mean(losses), (
                logits,
                last,
                kv[0].k[..., real],
                kv[0].v[..., real, :],
            )  # keys at padding mean nothing

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    assert_equal(run(backend), run("xla"), 2e-5)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "head", "want"),
    [
        ("auto", "tpu", "bfloat16", 128, "splash"),
        ("auto", "tpu", "float32", 128, "splash"),
        ("auto", "tpu", "bfloat16", 16, "xla"),
        ("auto", "gpu", "bfloat16", 128, "cudnn"),
        ("auto", "gpu", "float32", 128, "xla"),
        ("auto", "gpu", "bfloat16", 12, "xla"),
        ("auto", "cpu", "bfloat16", 128, "xla"),
        ("xla", "tpu", "bfloat16", 128, "xla"),
        ("splash", "tpu", "bfloat16", 16, "splash"),
        ("splash", "cpu", "float32", 16, "interpreted"),
        ("cudnn", "gpu", "bfloat16", 64, "cudnn"),
    ],
)
def test_what_is_chosen(name, platform, dtype, head, want):
    assert choose(name, platform, dtype, head) == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("splash", "gpu", "bfloat16", 128), "needs a TPU; here are gpu, bfloat16 and heads of 128: use auto"),
        (("cudnn", "cpu", "bfloat16", 128), "needs a GPU, bfloat16 and heads of 8, 16 .. 128 values; here are"),
        (("cudnn", "gpu", "float32", 128), "here are gpu, float32 and heads of 128"),
        (("fast", "cpu", "bfloat16", 128), "model.attention is 'fast'; use one of auto, xla, splash, cudnn"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError) as error:
        choose(*arguments)
    assert message in str(error.value)


def test_for_cuda_cudnn_is_called_forward_and_backward(monkeypatch):
    """Lowered here for a GPU that is not: `jax.nn` asks for the library's version, as a GPU machine has it."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)

    def loss(prompt, mask, own):
        x, y = attended(prompt, mask, own, "cudnn")
        return jnp.sum(x.astype(jnp.float32)) + jnp.sum(y.astype(jnp.float32))

    prompt, mask, own = group(3, 6, 2, False)
    prompt, own = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (prompt, own))
    traced = jax.jit(jax.grad(loss, argnums=(0, 2))).trace(prompt, mask, own)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("Softmax", "ScaleBiasSoftmax"):  # the prompt's, without a mask; the completions'
        assert text.count(f"__cudnn$fmha{name}(") == 1, text
        assert text.count(f"__cudnn$fmha{name}Backward(") == 1
    assert "stablehlo.dot_general" not in text, "attention beside the kernel's"
