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
from jvr1.model.vision_language import merge
from jvr1.rl import tgrpo
from jvr1.rl.objectives import Mean, TokenExtras, loss_denominator, policy_loss, sampling_gap
from jvr1.rollout.sampling import cut_mass
from jvr1.sharding import batch_sharding
from jvr1.train.losses import TokenScores, supervised_loss, token_scores
from jvr1.train.optimizer import combine
from jvr1.train.trees import add_trees


class PolicyBatch(NamedTuple):
    """What the policy learns from, of a microbatch on the device.

    anchor: the reference's log-probabilities; None: no KL. sampled: those the tokens were drawn with. old: those of the
    step's first pass, which is its own (`first`: `old` may hold anything, and the gap to `sampled` is measured). mask:
    tokens in the loss. denominator: of the whole optimizer step. `first` and `denominator` are scalars. weight: of
    tokens in the objective; entropy_weight: of the entropy bonus; None where there is none.
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
    """advantages(scores, length [B,G], ids [B,G,C], beside, ended [B,G]) -> tgrpo.Advantages, tokens in the loss
    [B,G,C], this microbatch's part of the step's denominator, statistics as sums.

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
        return result, mask, loss_denominator(mask, algorithm), statistics

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
    """scores(params, arrays, ids [B,G,C]) -> log-probabilities [B,G,C] of the model KL is measured from.

    A program of its own: its parameters need not be on the device while gradients are, and a step with several updates
    scores once.
    """

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def reference_scores(params: dict, arrays: Arrays, ids: Array) -> Array:
        return completion_scores(graphdef, params, arrays, ids, temperature=temperature, chunk=chunk).logprobs

    return reference_scores


def make_first_scores(graphdef: nnx.GraphDef, mesh: Mesh, *, temperature: float, chunk: int) -> jax.stages.Wrapped:
    """scores(trainable, frozen, arrays, ids [B,G,C]) -> TokenScores [B,G,C] of the policy before a step's updates."""

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def first_scores(trainable: dict, frozen: dict, arrays: Arrays, ids: Array) -> TokenScores:
        params = combine(trainable, frozen)
        return completion_scores(graphdef, params, arrays, ids, temperature=temperature, chunk=chunk)

    return first_scores


def make_twin_scores(
    graphdef: nnx.GraphDef, mesh: Mesh, twin: str, *, temperature: float, chunk: int
) -> jax.stages.Wrapped:
    """scores(trainable, frozen, arrays, ids [B,G,C]) -> log-probabilities [B,G,C] of the policy for the same
    completions under a twin of the clip: its frames `shuffled`, or `blank` (black)."""

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def twin_scores(trainable: dict, frozen: dict, arrays: Arrays, ids: Array) -> Array:
        visual = arrays.visual
        assert visual is not None
        if twin == "shuffled":
            visual = visual._replace(pair=arrays.shuffled)
        else:
            visual = visual._replace(frames=jnp.zeros_like(visual.frames))
        params, seen = combine(trainable, frozen), arrays._replace(visual=visual)
        return completion_scores(graphdef, params, seen, ids, temperature=temperature, chunk=chunk).logprobs

    return twin_scores


def completion_scores(
    graphdef: nnx.GraphDef,
    params: dict,
    arrays: Arrays,
    ids: Array,
    *,
    temperature: float,
    chunk: int,
    **asked: Any,
) -> TokenScores:
    """Scores of completions [B,G,C], the prompt and its video computed once. asked: more, as `token_scores` has it."""
    model = merge(graphdef, params)
    hidden = model.complete(arrays.prompt, arrays.visual, ids)
    return token_scores(model.logits, hidden, ids, temperature=temperature, chunk=chunk, **asked)


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
    sums, largest gap, log-probabilities [B,G,C].

    shardings: of the trainable parameters, and so of `total`, which is donated. top_p, top_k: what was sampled with;
    the mass that they cut off is measured.
    """
    rows = batch_sharding(jax.tree.leaves(shardings)[0].mesh)
    measure = partial(cut_mass, top_p=top_p, top_k=top_k) if top_p < 1 or top_k else None

    @partial(jax.jit, donate_argnums=2, out_shardings=(shardings, None, None, None, rows))
    def gradients(
        trainable: dict, frozen: dict, total: dict, batch: PolicyBatch
    ) -> tuple[dict, Array, dict, Array, Array]:
        def loss(trainable: dict) -> tuple[Array, tuple[dict, Array, Array]]:
            params, bonus = combine(trainable, frozen), batch.entropy_weight is not None
            scores = completion_scores(
                graphdef, params, batch.arrays, batch.ids,
                temperature=temperature, chunk=chunk, entropy_gradient=bonus, measure=measure,
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
            if scores.measured is not None:
                statistics["cut_mass"] = Mean(jnp.sum(scores.measured * weight), jnp.sum(weight))
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
        prompt, own = model.prompt_and_completions(arrays.prompt, arrays.visual, ids)
        score = partial(token_scores, model.logits, chunk=chunk)
        mask = answer_mask(arrays)[:, None].astype(jnp.float32)
        answer = score(own, ids)
        loss = supervised_loss(answer.logprobs, mask, denominator)
        if on_prompt:
            following = prompt_mask(arrays)[:, None].astype(jnp.float32)
            scores = score(prompt[:, None, :-1], arrays.prompt.ids[:, None, 1:])
            loss = loss + supervised_loss(scores.logprobs, following, denominator)
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
