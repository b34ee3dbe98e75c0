"""Sampling has the right distribution, is reproducible on any mesh, and is scored as it was sampled."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from oracle import END, IMAGE, START, VIDEO, Item, our_inputs, tokens
from scipy.stats import chisquare
from transformers import TopKLogitsWarper, TopPLogitsWarper

from jvr1.errors import UserError
from jvr1.model.families import from_hf
from jvr1.model.vision_language import merge
from jvr1.rollout.generate import generate, reads
from jvr1.rollout.sampling import Sampling, draw_token, token_logprob
from jvr1.sharding import make_mesh, put_batch, replicated
from jvr1.train.losses import supervised_loss, token_scores

pytestmark = pytest.mark.usefixtures("strict_dtypes")

B, C = 8, 6
CONFIG = from_hf(oracle.raw_config())
BANNED = (IMAGE, VIDEO, START, END)
FREE = Sampling(max_tokens=C, end_ids=(2, 5), banned_ids=BANNED)


# --- choose: one token from logits


def draws(logits: np.ndarray, sampling: Sampling, count: int, seed: int = 0) -> np.ndarray:
    """How often each word is drawn."""
    uniform = jax.random.uniform(jax.random.key(seed), (1, count))
    many = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (1, count, len(logits)))
    return np.bincount(
        np.asarray(jax.jit(draw_token, static_argnums=2)(many, uniform, sampling))[0], minlength=len(logits)
    )


def exact(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities by HF's warpers in HF's order: temperature, top-k, top-p."""
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    scores[:, list(sampling.banned_ids)] = -torch.inf
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return torch.softmax(scores, dim=-1)[0].numpy()


WAYS = {
    "plain": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.4},
    "top-p": {"top_p": 0.7},
    "top-k": {"top_k": 5},
    "temperature, top-k, top-p": {"temperature": 1.7, "top_k": 8, "top_p": 0.8},
    "banned": {"banned_ids": (0, 3, 11), "top_p": 0.9},
}


@pytest.mark.parametrize("way", WAYS)
def test_frequencies_are_the_exact_probabilities(way):
    logits = np.random.default_rng(1).normal(size=12) * 1.5
    sampling = dataclasses.replace(FREE, **({"banned_ids": ()} | WAYS[way]))
    want, got = exact(logits, sampling), draws(logits, sampling, 40_000)
    kept = want > 0
    assert got[~kept].sum() == 0
    assert chisquare(got[kept], want[kept] * got.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 0.95), (0.3, 0, 0.3), (1.0, 0, 0.001), (0.3, 50, 1.0), (1.0, 50, 0.95), (1.0, 1, 1.0), (2.0, 7, 0.5)],
)
def test_kept_words_are_those_of_transformers(temperature, top_k, top_p):
    """20 rows of 200 words; every word that a sweep over [0, 1) reaches."""
    logits = np.random.default_rng(2).normal(size=(20, 200)).astype(np.float32) * 3
    sampling = dataclasses.replace(FREE, banned_ids=(), top_k=top_k, top_p=top_p, temperature=temperature)
    want = np.stack([exact(row, sampling) for row in logits])
    # the middle of each kept word's share of [0, 1)
    middle = np.where(want > 0, np.cumsum(want, axis=1) - want / 2, 0).astype(np.float32)
    many = jnp.broadcast_to(logits[:, None], (20, 200, 200))
    got = np.asarray(jax.jit(draw_token, static_argnums=2)(many, jnp.asarray(middle), sampling))
    large = want > 1e-5
    np.testing.assert_array_equal(got[large], np.nonzero(large)[1])
    assert (np.take_along_axis(want, got, axis=1) > 0).all()


def test_nothing_outside_the_kept_words_is_drawn_at_their_edges():
    """A parallel cumsum over many words is not monotone to the last bit; a draw that falls there must still be kept."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4096).astype(np.float32) * 3
    sampling = dataclasses.replace(FREE, top_k=50, top_p=0.95)
    want = exact(logits, sampling)
    edges = np.cumsum(want)[want > 0].astype(np.float32)
    uniform = np.concatenate([edges * np.float32(1 + k * 2**-24) for k in range(-20, 21)])
    uniform = np.clip(uniform, 0, np.float32(1 - 2**-24))

    @jax.jit
    def sweep(uniform):
        return jax.lax.map(
            lambda u: draw_token(jnp.asarray(logits)[None, None], u[None, None], sampling)[0, 0], uniform
        )

    assert (want[np.asarray(sweep(jnp.asarray(uniform)))] > 0).all()


def test_temperature_0_takes_the_best_word_that_is_not_banned():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(4, 5, 96)), jnp.float32)
    logits = logits.at[0, 0, IMAGE].set(50.0)
    got = draw_token(logits, jnp.zeros((4, 5)), dataclasses.replace(FREE, temperature=0.0))
    allowed = np.array(logits)
    allowed[..., list(BANNED)] = -np.inf
    np.testing.assert_array_equal(got, allowed.argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 0.999999940395])
def test_the_ends_of_the_unit_interval(uniform):
    logits = jnp.asarray([[[0.0, 1.0, 2.0, 0.5]]])
    sampling = dataclasses.replace(FREE, banned_ids=(0, 3))
    assert int(draw_token(logits, jnp.full((1, 1), uniform, jnp.float32), sampling)[0, 0]) == (1 if uniform == 0 else 2)


def test_token_logprob_is_of_the_whole_vocabulary():
    logits = np.random.default_rng(4).normal(size=(3, 2, 96)).astype(np.float32)
    token = np.random.default_rng(5).integers(0, 96, (3, 2)).astype(np.int32)
    for temperature in (0.7, 1.0, 0.0):
        want = torch.log_softmax(torch.tensor(logits) / (temperature or 1), -1).gather(
            -1, torch.tensor(token).long()[..., None]
        )
        np.testing.assert_allclose(
            token_logprob(jnp.asarray(logits), jnp.asarray(token), temperature), want[..., 0], atol=1e-5
        )


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1)]
)
def test_settings_that_cannot_be(field, value):
    with pytest.raises(UserError, match=f"{field} is {value}"):
        dataclasses.replace(FREE, **{field: value})


# --- generate: rows of completions


@pytest.fixture(scope="module")
def world():
    """A tiny random model and B prompts, each of text around a video of 4 frames; ordered and shuffled pairs."""
    graphdef, params = oracle.random_model(CONFIG, scale=0.25)
    rng = np.random.default_rng(0)
    prompts, visuals = [], []
    for i in range(B):
        video = Item(rng, 4, 4, 4 + 2 * (i % 2), 1.0)
        prompt, visual = our_inputs(tokens(rng, 2 + i % 3, video, 4), [video], CONFIG, length=26, left=i % 2 == 1)
        prompts.append(prompt)
        visuals.append(visual)
    prompt, visual = (jax.tree.map(lambda *x: np.concatenate(x), *part) for part in (prompts, visuals))
    orders = np.stack([np.random.default_rng(i).permutation(4) for i in range(B)])
    shuffled = np.take_along_axis(orders, visual.pair.reshape(B, -1), axis=1).reshape(visual.pair.shape)
    pairs = np.stack([visual.pair, shuffled.astype(np.int32)], axis=1)
    return graphdef, params, prompt, visual, pairs


@pytest.fixture(scope="module")
def sample(world):
    graphdef, own, prompt, visual, pairs = world

    @partial(jax.jit, static_argnames=("rows", "sampling"))
    def run(params, prompt, visual, pairs, active, key, numbers, rows, sampling):
        return generate(merge(graphdef, params), prompt, visual, pairs, active, key, numbers, rows, sampling)

    def sample(
        rows, sampling=FREE, *, at=slice(None), streams=slice(None), numbers=None, active=None, seed=0, params=own
    ):
        """Of the prompts `at`; R = sum(rows) completions each, numbered by prompt unless `numbers` says otherwise."""
        taken = jax.tree.map(lambda x: jnp.asarray(x[at]), (prompt, visual, pairs[:, streams]))
        if numbers is None:
            numbers = np.arange(B)[at][:, None] * 16 + np.arange(sum(rows))
        active = np.ones(len(numbers), bool) if active is None else active
        numbers = jnp.asarray(numbers, jnp.int32)
        with jax.numpy_dtype_promotion("strict"):
            return jax.tree.map(
                np.asarray, run(params, *taken, jnp.asarray(active), jax.random.key(seed), numbers, rows, sampling)
            )

    return sample


@pytest.fixture(scope="module")
def both(sample):
    """3 ordered and 2 shuffled completions of each prompt."""
    return sample((3, 2))


def assert_same(got, want):
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_array_equal(got.length, want.length)
    np.testing.assert_array_equal(got.ended, want.ended)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


def test_rows_end_where_an_end_token_stands(both):
    ids, ends = both.ids, np.isin(both.ids, FREE.end_ids)
    assert both.ended.any()
    assert not both.ended.all()
    for b, r in np.ndindex(both.length.shape):
        n = both.length[b, r]
        assert both.ended[b, r] == ends[b, r, :n].any() == ends[b, r, n - 1]
        assert not ends[b, r, : n - 1].any()
        assert both.ended[b, r] or n == C
        assert (ids[b, r, n:] == FREE.pad_id).all()
        assert (both.logprobs[b, r, n:] == 0).all()
        assert (both.logprobs[b, r, :n] < 0).all()
    assert {int(ids[b, r, both.length[b, r] - 1]) for b, r in zip(*np.nonzero(both.ended), strict=True)} == {2, 5}
    assert not np.isin(ids, BANNED).any()


def test_rows_differ_and_a_key_reproduces_them(sample, both):
    rows = {tuple(x) for x in both.ids.reshape(-1, C)}
    assert len(rows) > 0.9 * both.length.size
    assert_same(sample((3, 2)), both)
    assert (sample((3, 2), seed=1).ids != both.ids).any()


@pytest.fixture(scope="module")
def apart(sample):
    """Three completions of one stream alone: (stream, the first row's number) -> completions."""

    def apart(stream, first):
        numbers = np.arange(B)[:, None] * 16 + np.arange(first, first + 3)
        return sample((3,), streams=slice(stream, stream + 1), numbers=numbers)

    return apart


def test_streams_in_one_call_equal_separate_calls(apart, both):
    ordered, shuffled = apart(0, 0), apart(1, 3)
    joined = [np.concatenate([x, y[:, :2]], axis=1) for x, y in zip(ordered[:4], shuffled[:4], strict=True)]
    assert_same(type(both)(*joined, both.steps), both)


def test_the_shuffled_stream_sees_other_frames(apart, both):
    """The same row numbers on the ordered frames give other log-probabilities: the twin is not the ordered encoding."""
    ordered = apart(0, 3)
    assert (np.abs(ordered.logprobs[:, :2, 0] - both.logprobs[:, 3:, 0]).max(axis=1) > 1e-4).sum() >= B - 1


def test_row_numbers_decide_not_the_batch(sample, both):
    at = [5, 0, 3, 3, 1, 0, 6, 5]
    alone = sample((3, 2), at=at)
    for i, b in enumerate(at):
        assert_same(type(both)(*(x[i] for x in alone[:4]), 0), type(both)(*(x[b] for x in both[:4]), 0))


def test_the_same_rows_on_eight_devices(world, both):
    graphdef, params, prompt, visual, pairs = world
    mesh = make_mesh({"data": 8})
    numbers = (np.arange(B)[:, None] * 16 + np.arange(5)).astype(np.int32)
    with jax.set_mesh(mesh):
        put = put_batch((prompt, visual, pairs, np.ones(B, bool), numbers), mesh)
        params = jax.device_put(params, replicated(mesh))
        run = jax.jit(
            lambda params, prompt, visual, pairs, active, numbers: generate(
                merge(graphdef, params), prompt, visual, pairs, active, jax.random.key(0), numbers, (3, 2), FREE
            )
        )
        got = run(params, *put)
    assert len(got.ids.sharding.device_set) == 8
    assert not got.ids.is_fully_replicated
    assert_same(jax.tree.map(np.asarray, got), both)


def test_inactive_prompts_have_no_completions_and_cost_no_steps(sample, both):
    active = np.arange(B) % 2 == 0
    got = sample((3, 2), active=active)
    assert (got.length[~active] == 0).all()
    assert (got.ids[~active] == FREE.pad_id).all()
    assert (got.logprobs[~active] == 0).all()
    assert not got.ended[~active].any()
    assert_same(type(both)(*(x[active] for x in got[:4]), 0), type(both)(*(x[active] for x in both[:4]), 0))
    assert sample((3, 2), active=np.zeros(B, bool)).steps == 1


@pytest.mark.slow
def test_reading_the_part_of_the_ring_that_is_in_use_changes_nothing(sample, monkeypatch):
    """Four loops in place of one; some rows end in each, and all have ended before the last token."""
    long = dataclasses.replace(FREE, end_ids=(2, 5, 7), max_tokens=40)
    assert reads(40, "xla") == (40,)
    whole = sample((3, 2), long)
    monkeypatch.setattr("jvr1.rollout.generate.LEAST_READ", 4)
    assert reads(40, "xla") == (5, 10, 20, 40)
    assert reads(40, "cudnn") == (40,)
    jax.clear_caches()
    got = sample((3, 2), long)
    assert {int(np.searchsorted((5, 10, 20), length)) for length in got.length.ravel()} == {0, 1, 2, 3}
    assert_same(got, whole)


def test_the_loop_ends_with_its_last_row(sample):
    got = sample((3, 2), dataclasses.replace(FREE, end_ids=tuple(range(0, 96, 2)), max_tokens=40))
    assert got.ended.all()
    assert 1 < got.steps == got.length.max() < 40


def test_greedy_rows_are_equal_and_the_best_words(world, sample):
    graphdef, params, prompt, visual, _ = world
    greedy = dataclasses.replace(FREE, temperature=0.0, end_ids=())
    got = sample((2,), greedy, streams=slice(0, 1))
    assert got.steps == C
    assert not got.ended.any()
    np.testing.assert_array_equal(got.ids[:, 0], got.ids[:, 1])

    @jax.jit
    def best(params, prompt, visual, ids):
        model = merge(graphdef, params)
        logits = model.logits(model.complete(prompt, visual, ids))
        return jnp.argmax(logits.at[..., jnp.asarray(BANNED)].set(-jnp.inf), axis=-1)

    want = best(params, *jax.tree.map(jnp.asarray, (prompt, visual)), jnp.asarray(got.ids))
    np.testing.assert_array_equal(got.ids, want)


@pytest.mark.parametrize(
    "sampling", [FREE, dataclasses.replace(FREE, temperature=0.6, top_p=0.9, top_k=20)], ids=["1", "0.6"]
)
def test_sampled_logprobs_are_those_that_scoring_gives(world, sample, sampling):
    graphdef, params, prompt, visual, pairs = world
    got = sample((3, 2), sampling)

    @jax.jit
    def scores(params, prompt, visual, ids):
        model = merge(graphdef, params)
        hidden = model.complete(prompt, visual, ids)
        return token_scores(model.head_kernel(), hidden, ids, temperature=sampling.temperature, chunk=4).logprobs

    for rows, stream in ((slice(0, 3), 0), (slice(3, 5), 1)):
        seen = visual._replace(pair=pairs[:, stream])
        scored = scores(params, *jax.tree.map(jnp.asarray, (prompt, seen, got.ids[:, rows])))
        real = np.arange(C) < got.length[:, rows, None]
        assert np.abs(np.where(real, scored - got.logprobs[:, rows], 0)).max() < 2e-5


# --- token_scores


def scoring_case(v=50, d=7, shape=(2, 3, 10)):
    rng = np.random.default_rng(6)
    hidden, kernel = rng.normal(size=(*shape, d)), rng.normal(size=(d, v))
    weight, targets = rng.normal(size=shape), rng.integers(0, v, shape)
    return tuple(x.astype(np.float32) for x in (hidden, kernel, weight)), targets.astype(np.int32)


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (3, 0.6), (5, 2.0), (10, 1.0), (128, 0.6)])
def test_token_scores_equal_the_full_computation(chunk, temperature):
    (hidden, kernel, weight), targets = scoring_case()

    def loss(hidden, kernel):
        scores = token_scores(kernel, hidden, jnp.asarray(targets), temperature=temperature, chunk=chunk)
        return jnp.sum(scores.logprobs * weight) + jnp.sum(scores.entropy), scores

    (_, scores), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, kernel)
    h, k = (torch.tensor(x, requires_grad=True) for x in (hidden, kernel))
    logp = torch.log_softmax(h @ k / temperature, dim=-1)
    chosen = logp.gather(-1, torch.tensor(targets).long()[..., None])[..., 0]
    entropy = torch.distributions.Categorical(logits=logp).entropy()
    ((chosen * torch.tensor(weight)).sum() + entropy.sum()).backward()
    np.testing.assert_allclose(scores.logprobs, chosen.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, entropy.detach(), atol=1e-5)
    for got, want in zip(grads, (h.grad, k.grad), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def largest(text: str) -> int:
    """Elements of the largest array in a program's text."""
    shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred|s8|u8|f16)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in s.split(",")])) for s in shapes)


def test_no_program_holds_the_full_logits():
    """Value and gradient of C = 64 tokens in chunks of 8 over V = 1000 words: nothing larger than a chunk's logits."""
    (hidden, kernel, weight), targets = scoring_case(v=1000, shape=(1, 2, 64))

    def loss(hidden, kernel, chunk):
        scores = token_scores(kernel, hidden, jnp.asarray(targets), chunk=chunk)
        return jnp.sum(scores.logprobs * weight)

    def compiled(chunk):
        return jax.jit(jax.value_and_grad(partial(loss, chunk=chunk), (0, 1))).lower(hidden, kernel).compile().as_text()

    assert largest(compiled(64)) >= 2 * 64 * 1000
    assert largest(compiled(8)) <= 2 * 8 * 1000


def test_supervised_loss_is_a_mean_over_the_whole_steps_tokens():
    logprobs = jnp.asarray(np.random.default_rng(7).normal(size=(2, 1, 5)), jnp.float32)
    mask = jnp.asarray([[[1, 1, 0, 0, 0]], [[1, 1, 1, 1, 0]]], jnp.float32)
    whole = supervised_loss(logprobs, mask, jnp.float32(6))
    parts = [supervised_loss(logprobs[i : i + 1], mask[i : i + 1], jnp.float32(6)) for i in range(2)]
    np.testing.assert_allclose(whole, -np.asarray(logprobs)[np.asarray(mask) > 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-6)
