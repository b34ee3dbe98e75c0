"""The forms of the model agree: prefill + decode, prefix + G completions and separate forwards; padding is inert."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import Item, our_inputs, tokens

from jvr1.model import vision_language
from jvr1.model.families import from_hf
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.text import KV

pytestmark = pytest.mark.usefixtures("strict_dtypes")
CONFIG = from_hf(oracle.raw_config(num_hidden_layers=2, vision_depth=2, vision_fullatt_block_indexes=[0]))
P, STEPS, C = 64, 3, 4


@pytest.fixture(scope="module")
def model():
    return oracle.random_model(CONFIG)


@functools.cache
def batch(left: bool = False) -> tuple[Prompt, Visual]:
    """Two prompts: a video of three steps, and an image beside a video of two."""
    rng = np.random.default_rng(1)
    rows = []
    for items in ([Item(rng, 5, 4, 10, 0.7)], [Item(rng, 1, 6, 4), Item(rng, 4, 4, 4, 1.0)]):
        ids = tokens(rng, 2, *items, 3)
        prompt, visual = our_inputs(ids, items, CONFIG, P, left, windows=2, steps=STEPS)
        missing = 6 - visual.frames.shape[1]
        rows.append((prompt, visual._replace(frames=jnp.pad(visual.frames, [(0, 0), (0, missing), *[(0, 0)] * 3]))))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *rows)


def completions(count: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).integers(3, 90, (2, count, C)), jnp.int32)


def joined(prompt: Prompt, ids: jax.Array) -> Prompt:
    """Prompts with one completion each [B,C] appended after their padding: an ordinary batch of sequences."""
    b, c = ids.shape
    own = prompt.next_position[:, None] + jnp.arange(c, dtype=jnp.int32)[None]
    return Prompt(
        ids=jnp.concatenate([prompt.ids, ids], 1),
        positions=jnp.concatenate([prompt.positions, jnp.broadcast_to(own[:, None], (b, 3, c))], 2),
        mask=jnp.concatenate([prompt.mask, jnp.ones((b, c), bool)], 1),
        visual_index=jnp.concatenate([prompt.visual_index, jnp.full((b, c), -1, jnp.int32)], 1),
        next_position=prompt.next_position + jnp.int32(c),
    )


def separate(module, prompt, visual, ids):
    """The hidden states that predict the tokens of completions [B,G,C]: every prompt G times, as B*G sequences."""
    b, g, _ = ids.shape
    prompt, visual = jax.tree.map(lambda x: jnp.repeat(x, g, axis=0), (prompt, visual))
    last = prompt.mask.shape[1] - 1 - jnp.argmax(prompt.mask[:, ::-1], axis=1)
    hidden = module(joined(prompt, ids.reshape(b * g, -1)), visual)
    first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    return jnp.concatenate([first, hidden[:, P : P + C - 1]], axis=1).reshape(b, g, C, -1)


def test_prefix_and_completions_equal_separate_forwards(model):
    graphdef, params = model
    prompt, visual = batch()
    ids = completions(3)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(*ids.shape, CONFIG.text.hidden)), jnp.float32)

    def run(form):
        def loss(params, prompt, visual):
            hidden = form(vision_language.merge(graphdef, params), prompt, visual, ids)
            return jnp.sum(hidden * weights), hidden

        (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, prompt, visual)
        return hidden, grads

    got, got_grads = run(lambda m, *a: m.complete(*a))
    want, want_grads = run(separate)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got_grads), jax.tree.leaves(want_grads), strict=True):
        assert np.isfinite(g).all()
        assert np.linalg.norm(g - w) <= 1e-4 * np.linalg.norm(w) + 1e-6, path


@pytest.mark.parametrize("start", [0, 2])
def test_prefill_and_decode_equal_the_full_forward(model, start):
    """Two streams, the frames of the second in another order, with two and one rows; wherever the ring begins."""
    graphdef, params = model
    prompt, visual = batch(left=True)  # the test above pads on the right
    rows, ids = (2, 1), completions(3)
    pairs = jnp.stack([visual.pair, visual.pair[:, ::-1, ::-1]], axis=1)

    def sample(params, prompt, visual, pairs):
        module = vision_language.merge(graphdef, params)
        last, prefix = module.prefill(prompt, visual, pairs)
        layers, b, _, heads, _, size = prefix[0].v.shape
        lines = (layers, b, 3, heads)
        cache = KV(jnp.full((*lines, size, C), 7.0), jnp.full((*lines, C, size), 7.0))  # garbage, unread
        mask = jnp.repeat(prompt.mask[:, None], 2, axis=1)
        out = [jnp.stack([last[:, 0], last[:, 0], last[:, 1]], axis=1)]
        for i in range(C - 1):
            at = jnp.broadcast_to(prompt.next_position[:, None] + jnp.int32(i), (2, 3))
            index, length = jnp.int32((i + start) % C), jnp.full((2, 3), i + 1, jnp.int32)
            hidden, cache = module.decode(ids[:, :, i], at, prefix, mask, cache, index, length, rows)
            out.append(hidden)
        return jnp.stack(out, axis=2)

    full = jax.jit(
        lambda params, prompt, visual: separate(vision_language.merge(graphdef, params), prompt, visual, ids)
    )
    ordered, shuffled = (full(params, prompt, visual._replace(pair=pairs[:, s])) for s in (0, 1))
    got, want = (
        jax.jit(sample)(params, prompt, visual, pairs),
        jnp.concatenate([ordered[:, :2], shuffled[:, 2:]], axis=1),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
    assert not np.allclose(want[:, 0, 0], want[:, 2, 0], atol=1e-3), "the order of frames changed nothing"


def test_prefill_without_pairs_sees_the_video(model):
    graphdef, params = model
    prompt, visual = batch()
    prefill = jax.jit(lambda p, *a: vision_language.merge(graphdef, p).prefill(*a)[0])
    got, want = (prefill(params, prompt, visual, pairs) for pairs in (None, visual.pair[:, None]))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def pad_visual(visual: Visual, rows: int, frames: int, steps: int, windows: int) -> Visual:
    """More of everything; what is added holds noise, which nothing may read."""
    rng = np.random.default_rng(4)
    b, n, w = visual.frames.shape[:3]
    wide = rng.integers(0, 256, (b + rows, n + frames, w + windows, *visual.frames.shape[3:]), np.uint8)
    wide[:b, :n, :w] = visual.frames
    f = visual.pair.shape[1]
    pair = rng.integers(0, n + frames, (b + rows, f + steps, 2)).astype(np.int32)
    pair[:b, :f] = visual.pair
    hw = np.full((b + rows, f + steps, w + windows, *visual.hw.shape[3:]), -1, np.int32)
    hw[:b, :f, :w] = visual.hw
    return Visual(*map(jnp.asarray, (wide, pair, hw)))


@pytest.mark.parametrize(
    "more",
    [
        {"rows": 2, "frames": 0, "steps": 0, "windows": 0},
        {"rows": 0, "frames": 3, "steps": 0, "windows": 0},
        {"rows": 0, "frames": 0, "steps": 2, "windows": 0},
        {"rows": 0, "frames": 0, "steps": 0, "windows": 2},
    ],
    ids=["rows", "frames", "steps", "windows"],
)
def test_visual_tokens_do_not_change_when_padding_grows(model, more):
    graphdef, params = model
    _, visual = batch()
    tower = jax.jit(lambda p, v: vision_language.merge(graphdef, p).visual(v))
    want, got = np.asarray(tower(params, visual)), np.asarray(tower(params, pad_visual(visual, **more)))
    assert np.isfinite(got).all()
    b, f, w = visual.hw.shape[:3]
    real = np.asarray(visual.hw[..., 0] >= 0).reshape(b, f, w, -1, 4).all(-1)
    np.testing.assert_array_equal(got[:b, :f, :w][real], want[real])


@pytest.mark.parametrize("left", [False, True])
def test_hidden_states_do_not_see_the_padding(model, left):
    """What stands in the padding changes nothing to the bit; how much of it there is, only XLA's order of summation."""
    graphdef, params = model
    prompt, visual = batch(left)
    forward = jax.jit(lambda params, p, v: vision_language.merge(graphdef, params)(p, v))
    mask = np.asarray(prompt.mask)
    want = np.asarray(forward(params, prompt, visual))[mask]

    rng = np.random.default_rng(6)
    ids = np.where(mask, prompt.ids, rng.integers(0, 90, mask.shape)).astype(np.int32)
    positions = np.where(mask[:, None], prompt.positions, rng.integers(0, 500, (2, 3, P))).astype(np.int32)
    noisy = prompt._replace(ids=jnp.asarray(ids), positions=jnp.asarray(positions))
    np.testing.assert_array_equal(np.asarray(forward(params, noisy, visual))[mask], want)

    grow = (72, 0) if left else (0, 72)
    wider = Prompt(
        *(jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), grow], constant_values=v)
          for x, v in zip(prompt[:4], (0, 0, False, -1), strict=True)),
        prompt.next_position,
    )  # fmt: skip
    got = np.asarray(forward(params, wider, visual))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[np.asarray(wider.mask)], want, rtol=1e-5, atol=1e-5)


def test_rows_and_steps_of_padding_alone_are_finite_in_value_and_gradient(model):
    graphdef, params = model
    prompt, visual = batch()
    empty = jax.tree.map(jnp.zeros_like, prompt)._replace(visual_index=jnp.full_like(prompt.visual_index, -1))
    prompt = jax.tree.map(lambda *x: jnp.concatenate(x), prompt, empty)
    visual = pad_visual(visual, rows=2, frames=0, steps=2, windows=1)
    ids = jnp.concatenate([completions(2)] * 2)

    def loss(params, prompt, visual):
        hidden = vision_language.merge(graphdef, params).complete(prompt, visual, ids)
        return jnp.sum(hidden * hidden), hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, prompt, visual)
    assert np.isfinite(hidden).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
