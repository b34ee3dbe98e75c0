"""The pure steps of the mains: what groups are worth, and what a microbatch adds to the gradient of its step.

Each maker binds what is static and returns a jitted function that compiles once a bucket; its result is laid out as
its arguments are, so that no second microbatch compiles it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jvr1.data.batch import Arrays
from jvr1.model.tape import lay, needed, unwind, wind
from jvr1.model.vision_language import merge
from jvr1.rl import tgrpo
from jvr1.rl.objectives import Mean, TokenExtras, loss_denominator, policy_loss, sampling_gap
from jvr1.sharding import batch_sharding
from jvr1.train.losses import TokenScores, Truncation, supervised_loss, token_scores
from jvr1.train.optimizer import combine
from jvr1.train.trees import add_trees


class PolicyBatch(NamedTuple):
    """What the policy learns from, of a microbatch on the device.

    anchor: the reference's log-probabilities; None: no KL. sampled: those the tokens were drawn with. old: those of the
    step's first pass, which is its own (`first`: `old` may hold anything, and the gap to `sampled` is measured). mask:
    tokens whose scores the loss needs. denominator: of the whole optimizer step. `first` and `denominator` are scalars.
    weight: of tokens in the objective; entropy_weight: of the entropy bonus; None where there is none.
    """

    arrays: Arrays
    ids: Int[Array, "B G C"]
    anchor: Float[Array, "B G C"] | None
    sampled: Float[Array, "B G C"]
    old: Float[Array, "B G C"]
    first: ArrayLike
    advantage: Float[Array, "B G"]
    mask: Bool[Array, "B G C"]
    denominator: ArrayLike
    weight: Float[Array, "B G C"] | None = None
    entropy_weight: ArrayLike | None = None


def make_advantages(algorithm: tgrpo.TGRPOConfig, mesh: Mesh) -> Callable[..., Any]:
    """advantages(scores, length [B,G], ids [B,G,C], beside, ended [B,G]) -> tgrpo.Advantages, tokens whose scores
    the loss needs [B,G,C], this microbatch's part of the step's denominator, statistics as sums.

    ended: whether an end token came, for `rl.overlong` mask."""
    rows = batch_sharding(mesh)

    @partial(jax.jit, out_shardings=(rows, rows, None, None))
    def advantages(
        scores: tgrpo.RolloutScores,
        length: Array,
        ids: Array,
        beside: tgrpo.Beside = tgrpo.NOTHING_BESIDE,
        ended: Array | None = None,
    ) -> tuple[Any, Array, Array, dict]:
        beside = with_overlong(beside, length, ids.shape[-1], algorithm)
        result = tgrpo.advantages(scores, algorithm, beside)
        mask = tgrpo.loss_mask(written(length, ids.shape[-1]), result.weight)
        if algorithm.overlong == "mask":
            mask &= jnp.asarray(ended)[..., None]
        statistics = tgrpo.group_statistics(scores, result, algorithm)
        needed = tgrpo.needed_tokens(mask, result.advantage, algorithm)
        return result, needed, loss_denominator(mask, algorithm), statistics

    return advantages


def make_compared_rewards(algorithm: tgrpo.TGRPOConfig, mesh: Mesh) -> Callable[..., Any]:
    """rewards(scores, length [B,G], room, beside) -> what advantages compare [B,G]. room: a completion's tokens at
    most."""

    @partial(jax.jit, static_argnums=2, out_shardings=batch_sharding(mesh))
    def rewards(scores: tgrpo.RolloutScores, length: Array, room: int, beside: tgrpo.Beside) -> Array:
        beside = with_overlong(beside, length, room, algorithm)
        shaped = tgrpo.shaped_rewards(scores, tgrpo.temporal_signal(scores, algorithm), algorithm)
        return tgrpo.compared_rewards(scores, shaped, algorithm, beside)

    return rewards


def with_overlong(beside: tgrpo.Beside, length: Array, room: int, algorithm: tgrpo.TGRPOConfig) -> tgrpo.Beside:
    """With the penalty of `rl.overlong` added."""
    if algorithm.overlong != "penalty":
        return beside
    penalty = tgrpo.overlong_penalty(length, room, algorithm)
    return beside._replace(penalty=penalty if beside.penalty is None else beside.penalty + penalty)


def written(length: Int[Array, "B G"], room: int) -> Bool[Array, "B G C"]:
    """The tokens of completions, of C = room."""
    return jnp.arange(room)[None, None] < length[..., None]


def make_reference_scores(graphdef: nnx.GraphDef, mesh: Mesh, *, temperature: float, chunk: int) -> jax.stages.Wrapped:
    """scores(params, arrays, ids [B,G,C]) -> log-probabilities [B,G,C] of the model KL is measured from; `mask` and
    `tape` are those of `completion_scores`.

    A program of its own: its parameters need not be on the device while gradients are, and a step with several updates
    scores once.
    """

    @partial(jax.jit, static_argnames="tape", out_shardings=batch_sharding(mesh))
    def reference_scores(
        params: dict, arrays: Arrays, ids: Array, mask: Array | None = None, tape: int | None = None
    ) -> Array:
        return completion_scores(
            graphdef, params, arrays, ids, mask, tape, temperature=temperature, chunk=chunk
        ).logprobs

    return reference_scores


def make_first_scores(graphdef: nnx.GraphDef, mesh: Mesh, *, temperature: float, chunk: int) -> jax.stages.Wrapped:
    """scores(trainable, frozen, arrays, ids [B,G,C], mask, tape) -> TokenScores [B,G,C] of the policy before a step's
    updates; `mask` and `tape` are those of `completion_scores`."""

    @partial(jax.jit, static_argnames="tape", out_shardings=batch_sharding(mesh))
    def first_scores(
        trainable: dict, frozen: dict, arrays: Arrays, ids: Array, mask: Array | None = None, tape: int | None = None
    ) -> TokenScores:
        params = combine(trainable, frozen)
        return completion_scores(graphdef, params, arrays, ids, mask, tape, temperature=temperature, chunk=chunk)

    return first_scores


def make_twin_scores(
    graphdef: nnx.GraphDef, mesh: Mesh, twin: str, *, temperature: float, chunk: int
) -> jax.stages.Wrapped:
    """scores(trainable, frozen, arrays, ids [B,G,C], mask, tape) -> log-probabilities [B,G,C] of the policy for the
    same completions under a twin of the clip: its frames `shuffled`, or `blank` (black)."""

    @partial(jax.jit, static_argnames="tape", out_shardings=batch_sharding(mesh))
    def twin_scores(
        trainable: dict, frozen: dict, arrays: Arrays, ids: Array, mask: Array | None = None, tape: int | None = None
    ) -> Array:
        visual = arrays.visual
        assert visual is not None
        if twin == "shuffled":
            visual = visual._replace(pair=arrays.shuffled)
        else:
            visual = visual._replace(frames=jnp.zeros_like(visual.frames))
        params, seen = combine(trainable, frozen), arrays._replace(visual=visual)
        return completion_scores(graphdef, params, seen, ids, mask, tape, temperature=temperature, chunk=chunk).logprobs

    return twin_scores


def completion_scores(
    graphdef: nnx.GraphDef,
    params: dict,
    arrays: Arrays,
    ids: Int[Array, "B G C"],
    mask: Bool[Array, "B G C"] | None = None,
    tape: int | None = None,
    *,
    temperature: float,
    chunk: int,
    truncation: Truncation | None = None,
) -> TokenScores:
    """Scores of completions [B,G,C], the prompt and its video computed once; truncation as `token_scores` has it.

    tape: scores are only needed where `mask` is true, and may be anything elsewhere; what the model must see for them
    lies on tapes of so many tokens, enough for every row (`packing.tape_size`).
    """
    model, how = merge(graphdef, params), {"temperature": temperature, "truncation": truncation}
    if tape is None:
        hidden = model.complete(arrays.prompt, arrays.visual, ids)
        return token_scores(model.head_kernel(), hidden, ids, chunk=chunk, **how)
    assert mask is not None
    (rows, count), laid = ids.shape[1:], lay(needed(mask), tape)
    own = wind(ids, laid)
    hidden = model.complete_tape(arrays.prompt, arrays.visual, own, laid, count)
    chunk = -(-tape // -(-tape // (rows * chunk)))  # as many logits at a time, in chunks of one size
    scores = token_scores(model.head_kernel(), hidden[:, None], own[:, None], chunk=chunk, **how)
    return jax.tree.map(lambda x: unwind(x[:, 0], laid, count), scores)


def make_policy_gradients(
    graphdef: nnx.GraphDef,
    algorithm: tgrpo.TGRPOConfig,
    shardings: Any,
    *,
    temperature: float,
    chunk: int,
    top_p: float = 1.0,
    top_k: int = 0,
) -> jax.stages.Wrapped:
    """gradients(trainable, frozen, total, batch) -> total with this microbatch's gradient added, loss, statistics as
    sums, largest gap, log-probabilities [B,G,C]; `tape` is that of `completion_scores`.

    shardings: of the trainable parameters, and so of `total`, which is donated. top_p, top_k: what was sampled with;
    the mass that they cut off is measured.
    """
    rows = batch_sharding(jax.tree.leaves(shardings)[0].mesh)
    truncation = (top_p, top_k) if top_p < 1 or top_k else None

    @partial(jax.jit, donate_argnums=2, static_argnames="tape", out_shardings=(shardings, None, None, None, rows))
    def gradients(
        trainable: dict, frozen: dict, total: dict, batch: PolicyBatch, tape: int | None = None
    ) -> tuple[dict, Array, dict, Array, Array]:
        def loss(trainable: dict) -> tuple[Array, tuple[dict, Array, Array]]:
            params, bonus = combine(trainable, frozen), batch.entropy_weight is not None
            scores = completion_scores(
                graphdef, params, batch.arrays, batch.ids, batch.mask, tape,
                temperature=temperature, chunk=chunk, truncation=truncation,
            )  # fmt: skip
            before = jnp.where(batch.first, jax.lax.stop_gradient(scores.logprobs), batch.old)
            extras = TokenExtras(batch.sampled, batch.weight)
            if bonus:
                extras = extras._replace(entropy=scores.entropy, entropy_weight=batch.entropy_weight)
            value, statistics = policy_loss(
                scores.logprobs,
                before,
                batch.anchor,
                batch.advantage,
                batch.mask,
                jnp.asarray(batch.denominator),
                algorithm,
                extras,
            )
            weight = batch.mask.astype(jnp.float32)
            entropy = jax.lax.stop_gradient(scores.entropy)
            statistics["entropy"] = Mean(jnp.sum(entropy * weight), jnp.sum(weight))
            if scores.cut is not None:
                cut = jax.lax.stop_gradient(scores.cut)
                statistics["cut_mass"] = Mean(jnp.sum(cut * weight), jnp.sum(weight))
            statistics["logprob_gap"], largest = sampling_gap(batch.sampled, scores.logprobs, batch.mask & batch.first)
            return value, (statistics, largest, scores.logprobs)

        (value, (statistics, largest, logprobs)), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return add_trees(total, grads), value, statistics, largest, logprobs

    return gradients


def make_answer_gradients(graphdef: nnx.GraphDef, shardings: Any, *, chunk: int, on_prompt: bool) -> Callable[..., Any]:
    """gradients(trainable, frozen, total, arrays, denominator) -> total with this microbatch's gradient added, loss,
    statistics as sums. on_prompt: the prompt is learned too. `total`, laid out as `shardings` say, is donated."""

    def losses(params: dict, arrays: Arrays, denominator: Array) -> tuple[Array, dict]:
        model = merge(graphdef, params)
        ids = arrays.target[:, None]
        prompt, hidden = model.prompt_and_completions(arrays.prompt, arrays.visual, ids)
        mask = answer_mask(arrays)[:, None].astype(jnp.float32)
        targets, weight, before = jnp.asarray(ids), mask, 0
        if on_prompt:
            hidden = jnp.concatenate([prompt[:, None, :-1], hidden], axis=2)
            targets = jnp.concatenate([arrays.prompt.ids[:, None, 1:], ids], axis=2)
            following = prompt_mask(arrays)[:, None].astype(jnp.float32)
            weight, before = jnp.concatenate([following, mask], axis=2), following.shape[2]
        scores = token_scores(model.head_kernel(), hidden, targets, chunk=chunk)
        loss = supervised_loss(scores.logprobs, weight, denominator)
        answer = jax.tree.map(lambda x: x[:, :, before:], scores)
        tokens = jnp.sum(mask)
        return loss, {
            "loss/entropy": (jnp.sum(answer.entropy * mask), tokens),
            "loss/answer_logprob": (jnp.sum(answer.logprobs * mask), tokens),
        }

    @partial(jax.jit, donate_argnums=2, out_shardings=(shardings, None, None))
    def gradients(
        trainable: dict, frozen: dict, total: dict, arrays: Arrays, denominator: Array
    ) -> tuple[dict, Array, dict]:
        def loss(trainable: dict) -> tuple[Array, dict]:
            return losses(combine(trainable, frozen), arrays, denominator)

        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return add_trees(total, grads), value, statistics

    return gradients


def make_answer_count(*, on_prompt: bool) -> Callable[..., Any]:
    """count(arrays) -> this microbatch's part of the step's denominator, and the answer tokens in it."""

    @jax.jit
    def count(arrays: Arrays) -> tuple[Array, Array]:
        tokens = jnp.sum(answer_mask(arrays)).astype(jnp.float32)
        return tokens + (jnp.sum(prompt_mask(arrays)).astype(jnp.float32) if on_prompt else 0.0), tokens

    return count


def answer_mask(arrays: Arrays) -> Bool[Array, "B C"]:
    """The tokens of valid rows' answers."""
    return arrays.target_mask & arrays.valid[:, None]


def prompt_mask(arrays: Arrays) -> Bool[Array, "B Q"]:
    """The tokens of valid rows' prompts that another precedes, Q = P - 1."""
    return arrays.prompt.mask[:, 1:] & arrays.valid[:, None]
