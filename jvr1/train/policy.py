"""T-GRPO's step from judged completions to changed weights: passes, advantages, weights of tokens, optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jvr1.processes.peers import gather
from jvr1.rl import credit, spread, tgrpo
from jvr1.rl.objectives import kl_penalty, sampling_gap
from jvr1.rl.top_share import top_threshold
from jvr1.sharding import batch_sharding, put_batch, take_local
from jvr1.train.loop import Loop
from jvr1.train.losses import TokenScores
from jvr1.train.metrics import Sums, Tally
from jvr1.train.optimizer import combine
from jvr1.train.packing import tape_size, tokens_to_read
from jvr1.train.reference import Reference, open_reference
from jvr1.train.rollouts import Judgement, Rollout, reward_parts
from jvr1.train.steps import (
    PolicyBatch,
    make_advantages,
    make_compared_rewards,
    make_first_scores,
    make_policy_gradients,
    make_reference_scores,
    make_twin_scores,
    written,
)
from jvr1.train.trees import zeros_like

BY_UPDATE = ("ratio", "clip_low", "clip_high", "clip_dual", "kl", "kl_token")
"""Statistics of the loss that are logged of each optimizer step too, where a batch has several: means of all of them
hide that the first has ratio 1 and clips nothing."""


class TokenCredit(NamedTuple):
    """What completions owe to their clip: d_t of tokens, its mean by completion, and which rows have a twin."""

    change: Float[Array, "B G C"]
    mean: Float[Array, "B G"]
    there: Bool[Array, " B"]


@dataclass(frozen=True)
class Passes:
    """What was scored of a microbatch before its step's updates, None where nothing asks for it. anchor [B,G,C]: the
    reference's log-probabilities; first: the policy's own; credit: from those under the clip's twin; mask [B,G,C]: the
    tokens of valid rows, which were scored."""

    anchor: jax.Array | None = None
    first: TokenScores | None = None
    credit: TokenCredit | None = None
    mask: jax.Array | None = None


class Policy:
    """Compares what a step's prompts were answered, and learns from it.

    Programs compile once a bucket; settings say which there are. `kept` of the loop holds what goes on from step to
    step: moments of rewards, the weight of the entropy bonus; its `also` the reference, where that is renewed.
    """

    def __init__(self, loop: Loop, algorithm: tgrpo.TGRPOConfig, reference: Reference | None):
        run = loop.run_
        self.loop, self.algorithm, self.reference, self._run = loop, algorithm, reference, run
        scoring = {"temperature": run.settings.sampling.temperature, "chunk": run.settings.model.logit_chunk}
        self._first_pass = run.settings.rl.minibatches > 1 or algorithm.entropy_share < 1
        graphdef, mesh = run.graphdef, run.mesh
        self._advantages = make_advantages(algorithm, mesh)
        self._rewards = make_compared_rewards(algorithm, mesh)
        self._anchor = make_reference_scores(reference.graphdef if reference else graphdef, mesh, **scoring)
        self._first = make_first_scores(graphdef, mesh, **scoring)
        self._twin = make_twin_scores(graphdef, mesh, algorithm.credit_twin, **scoring)
        self._credit, self._weights = make_credit(algorithm, mesh), make_token_weights(algorithm, mesh)
        self._penalty = make_kl_penalty(algorithm, mesh)
        self._gap, self._written = jax.jit(sampling_gap), make_written(mesh)
        drawn = {"top_p": run.settings.sampling.top_p, "top_k": run.settings.sampling.top_k}
        self._gradients = make_policy_gradients(graphdef, algorithm, run.shardings, **scoring, **drawn)

    def passes_of(self, kind: str) -> int:
        """Forward passes over completions of a kind of media, beside the reference's and those of updates."""
        return self._first_pass + (self.algorithm.measures_credit and kind != "text")

    # --- compare

    def compare(
        self, answered: Sequence[Judgement], learned: Sequence[bool]
    ) -> tuple[list[Rollout], list[Passes], Tally]:
        """Completions compared within their groups, what was scored for that, and statistics. learned: of which
        microbatches there is anything to learn; others take no pass."""
        with self.loop.phase("update"):
            passes, tally = self._score(answered, learned)
        rollouts = []
        with self.loop.phase("reward"):
            for one, beside in zip(answered, self._beside(answered, passes), strict=True):
                ended = one.ended if self.algorithm.overlong == "mask" else None
                result, mask, denominator, sums = self._advantages(one.scores, one.length, one.ids, beside, ended)
                tally = tally.add(sums)
                tape, read = self._tape(mask)
                room = float(mask.shape[0] * (tape or mask.shape[1] * mask.shape[2]))
                tally = tally.add({"update/padded": (room - read, room)})
                own = jax.tree.map(take_local, result)
                rollouts.append(Rollout(**vars(one), advantage=result.advantage, mask=mask, tape=tape,
                                        denominator=float(denominator), result=own))  # fmt: skip
        return rollouts, passes, tally

    def _tape(self, mask: Bool[Array, "B G C"]) -> tuple[int | None, Array]:
        """Tokens of the tapes that take what scores of these tokens need, and how many those are."""
        most, read = tokens_to_read(mask)
        return tape_size(int(most), mask.shape[1], mask.shape[2], self._run.settings.rl.packing), read

    def _score(self, answered: Sequence[Judgement], learned: Sequence[bool]) -> tuple[list[Passes], Tally]:
        used, tally, passes = [i for i, is_used in enumerate(learned) if is_used], Tally(), [Passes()] * len(answered)
        masks = [self._written(answered[i].scores, answered[i].length, answered[i].ids) for i in used]
        asked = [(answered[i], mask, self._tape(mask)[0]) for i, mask in zip(used, masks, strict=True)]
        anchored = self.algorithm.kl_in == "reward"
        anchors = self._anchors(asked) if anchored else [None] * len(asked)
        policy = (self.loop.state.params, self._run.frozen)
        for i, (one, mask, tape), anchor in zip(used, asked, anchors, strict=True):
            first, owed = None, None
            if self._first_pass:
                first = self._first(*policy, one.arrays, one.ids, mask, tape=tape)
                gap, largest = self._gap(one.sampled, first.logprobs, mask)
                tally = tally.add({"loss/logprob_gap": gap}, {"loss/logprob_gap_max": largest})
            if self.algorithm.measures_credit and one.arrays.visual is not None:
                twin = self._twin(*policy, one.arrays, one.ids, mask, tape=tape)
                logprobs = one.sampled if first is None else first.logprobs
                owed, sums = self._credit(one.scores, one.length, logprobs, twin)
                tally = tally.add(sums)
            passes[i] = Passes(anchor, first, owed, mask)
        return passes, tally

    def _anchors(self, asked: Sequence[tuple[Judgement, Array, int | None]]) -> Sequence[jax.Array | None]:
        """The reference's log-probabilities of microbatches, each with the tokens that are needed and its tape; None
        without a reference."""
        if self.reference is None:
            return [None] * len(asked)
        with self.reference.on_device() as params:
            anchors = [self._anchor(params, one.arrays, one.ids, mask, tape=tape) for one, mask, tape in asked]
            jax.block_until_ready(anchors)
        return anchors

    def _beside(self, answered: Sequence[Judgement], passes: Sequence[Passes]) -> list[tgrpo.Beside]:
        """What advantages depend on beside the scores, of each microbatch."""
        every, algorithm = [], self.algorithm
        for one, scored in zip(answered, passes, strict=True):
            beside = tgrpo.Beside()
            if algorithm.combine == "normalise":
                parts, weights = put_batch(reward_parts(one.judged, one.rows[0], self._run.settings), self._run.mesh)
                beside = beside._replace(parts=parts, weights=weights)
            if algorithm.kl_in == "reward" and scored.anchor is not None:
                beside = beside._replace(penalty=self._penalty(one.sampled, scored.anchor, one.length))
            if algorithm.credit_alpha > 0 and scored.credit is not None:
                beside = beside._replace(credit=scored.credit.mean, credited=scored.credit.there)
            every.append(beside)
        return self._divided(answered, every) if algorithm.normalise_std and algorithm.std_of != "group" else every

    def _divided(self, answered: Sequence[Judgement], every: Sequence[tgrpo.Beside]) -> list[tgrpo.Beside]:
        """With the standard deviations of `std_of`, which the rewards of the whole step give."""
        algorithm, groups = self.algorithm, []
        for one, beside in zip(answered, every, strict=True):
            rewards = take_local(self._rewards(one.scores, one.length, one.ids.shape[-1], beside))
            rows = zip(one.micro.rows, one.judged.scored, rewards, strict=True)
            groups += [
                (row.record.problem_type, own[scored])
                for row, scored, own in rows
                if row.record is not None and scored.any()
            ]
        own_sums = spread.reward_sums(groups) if self._run.share.owner else {}
        sums = spread.joined(gather(own_sums))
        if algorithm.std_of == "batch":
            whole = spread.batch_std(sums, unbiased=algorithm.unbiased_std)
            stds = dict.fromkeys(sums, whole)
        else:
            moments = spread.moved(self.loop.kept.get("moments", {}), sums, algorithm.std_decay)
            self.loop.kept = self.loop.kept | {"moments": moments}
            stds = {kind: spread.kind_std(moments, kind, algorithm.std_decay) for kind in sums}
        divided = []
        for one, beside in zip(answered, every, strict=True):
            kinds = [None if row.record is None else row.record.problem_type for row in one.micro.rows]
            divisor = np.asarray([stds.get(str(kind), 1.0) for kind in kinds], np.float32)
            divided.append(beside._replace(divisor=put_batch(divisor, self._run.mesh)))
        return divided

    # --- learn

    def learn(self, rollouts: Sequence[Rollout], passes: Sequence[Passes]) -> Tally:
        """`rl.updates` times an optimizer step on each of `rl.minibatches` parts of the rollouts."""
        rl, tally = self._run.settings.rl, Tally()
        bonus, weights = self._entropy_weight(), self._token_weights(rollouts, passes)
        anchors = [scored.anchor for scored in passes]
        if self.algorithm.kl_in == "loss":
            anchors = list(self._anchors([(r, r.mask, r.tape) for r in rollouts]))
        old = [r.sampled if s.first is None else s.first.logprobs for r, s in zip(rollouts, passes, strict=True)]
        batches = [
            PolicyBatch(r.arrays, r.ids, anchor, r.sampled, before, np.bool_(not self._first_pass), r.advantage, r.mask,
                        np.float32(0), weight, bonus)
            for r, anchor, before, weight in zip(rollouts, anchors, old, weights, strict=True)
        ]  # fmt: skip
        parts = [part.tolist() for part in np.array_split(np.arange(len(batches)), rl.minibatches) if len(part)]
        for number in range(rl.updates * len(parts)):
            part = parts[number % len(parts)]
            denominator = sum(rollouts[i].denominator for i in part)
            total = zeros_like(self.loop.state.params)
            for i in part:
                batch = batches[i]._replace(denominator=np.float32(denominator))
                total, loss, sums, largest, logprobs = self._gradients(
                    self.loop.state.params, self._run.frozen, total, batch, tape=rollouts[i].tape
                )
                if batch.first:
                    batches[i] = batch._replace(old=logprobs, first=np.bool_(False))
                named = {f"loss/{name}": value for name, value in sums.items()}
                if rl.updates * len(parts) > 1:
                    named |= {f"loss/{name}/{number + 1}": sums[name] for name in BY_UPDATE if name in sums}
                tally = tally.add({"loss": (loss, 1 / len(part)), **named}, {"loss/logprob_gap_max": largest})
            tally = tally.add(self.loop.update(total, has_rows=denominator > 0))
        return tally.add(self._entropy_moves(tally, bonus))

    def _token_weights(
        self, rollouts: Sequence[Rollout], passes: Sequence[Passes]
    ) -> Sequence[Float[Array, "B G C"] | None]:
        """What the objective counts tokens: those of the highest entropy, those that owe most to the clip."""
        algorithm, both = self.algorithm, list(zip(rollouts, passes, strict=True))
        if not algorithm.weighs_tokens:
            return [None] * len(both)
        by_entropy, by_credit = algorithm.entropy_share < 1, algorithm.credit in ("select", "weight")
        least = most = np.float32(0)
        entropies = [s.first.entropy if by_entropy and s.first is not None else None for _, s in both]
        scored = [(entropy, s.credit, s.mask) for entropy, (_, s) in zip(entropies, both, strict=True)]
        if by_entropy:
            known = [(entropy, mask) for entropy, _, mask in scored if entropy is not None and mask is not None]
            least = top_threshold([x for x, _ in known], [mask for _, mask in known], algorithm.entropy_share)
        if algorithm.credit == "select":
            owing = [(owed, mask) for _, owed, mask in scored if owed is not None and mask is not None]
            sizes, masks = [jnp.abs(c.change) for c, _ in owing], [m & c.there[:, None, None] for c, m in owing]
            most = top_threshold(sizes, masks, algorithm.credit_share)
        return [
            self._weights(r.mask, entropy, least, s.credit if by_credit else None, most)
            for (r, s), entropy in zip(both, entropies, strict=True)
        ]

    # --- from step to step

    def _entropy_weight(self) -> np.float32 | None:
        """Of the bonus in this step; None: there is none."""
        if not self.algorithm.has_entropy_bonus:
            return None
        weight, target = (
            self.loop.kept.get("entropy_weight", self.algorithm.entropy_weight),
            self.algorithm.entropy_target,
        )
        entropy = self.loop.kept.get("entropy", 0.0)
        return np.float32(weight if target is None or entropy <= target else 0.0)

    def _entropy_moves(self, tally: Tally, bonus: np.float32 | None) -> Sums:
        """c <- max(0, c +- entropy_step), up where the entropy is below its target (Skywork-OR1, arXiv 2505.22312)."""
        if bonus is None:
            return {}
        target, kept = self.algorithm.entropy_target, self.loop.kept
        total, count = jax.device_get(tally.sums["loss/entropy"])
        if target is not None and count:
            entropy = float(total) / float(count)
            step = self.algorithm.entropy_step if entropy < target else -self.algorithm.entropy_step
            weight = max(0.0, kept.get("entropy_weight", self.algorithm.entropy_weight) + step)
            self.loop.kept = kept | {"entropy_weight": weight, "entropy": entropy}
        # the same on every process: a mean of as many parts
        return {"loss/entropy_weight": (float(bonus), 1.0)}

    def renew_reference(self, step: int) -> None:
        """After every `reference_every` steps the reference is the policy as it is. step: steps taken."""
        every = self.algorithm.reference_every
        if self.reference is None or not every or step % every:
            return
        jax.tree.map(lambda x: x.delete(), self.reference.params)  # memory
        whole = combine(self.loop.state.params, self._run.frozen)
        self.reference = open_reference(self._run.graphdef, whole, self._run.settings.model.dtype)
        self.loop.also = {REFERENCE: self.reference.params}


REFERENCE = "reference"
"""Its name in checkpoints."""


def make_varied(algorithm: tgrpo.TGRPOConfig) -> Callable[[tgrpo.RolloutScores], Array]:
    """varied(scores) -> how many groups have different rewards."""

    @jax.jit
    def varied(scores: tgrpo.RolloutScores) -> Array:
        advantage = tgrpo.advantages(scores, algorithm).advantage
        return jnp.any(advantage != 0.0, axis=1).astype(jnp.float32).sum()

    return varied


def make_written(mesh: Mesh) -> Callable[..., Any]:
    """tokens(scores, length [B,G], ids [B,G,C]) -> those of valid rows' completions [B,G,C]."""

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def tokens(scores: tgrpo.RolloutScores, length: Array, ids: Array) -> Array:
        return written(length, ids.shape[-1]) & scores.valid[:, None, None]

    return tokens


def make_kl_penalty(algorithm: tgrpo.TGRPOConfig, mesh: Mesh) -> Callable[..., Any]:
    """penalty(sampled [B,G,C], anchor [B,G,C], length [B,G]) -> what the KL takes from rewards [B,G]."""

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def penalty(sampled: Array, anchor: Array, length: Array) -> Array:
        return kl_penalty(sampled, anchor, written(length, sampled.shape[-1]), algorithm)

    return penalty


def make_credit(algorithm: tgrpo.TGRPOConfig, mesh: Mesh) -> Callable[..., Any]:
    """owed(scores, length [B,G], log-probabilities [B,G,C] with the clip and with its twin) -> TokenCredit, statistics.

    Rows with a twin: valid ones; of the shuffled twin videos of `min_distinct_frames` or more."""

    @partial(jax.jit, out_shardings=(batch_sharding(mesh), None))
    def owed(scores: tgrpo.RolloutScores, length: Array, logprobs: Array, twin: Array) -> tuple[TokenCredit, dict]:
        there = scores.valid
        if algorithm.credit_twin == "shuffled":
            there &= scores.is_video & (scores.distinct_frames >= algorithm.min_distinct_frames)
        mask = written(length, logprobs.shape[-1])
        change = credit.token_credit(logprobs, twin, mask)
        right = tgrpo.correct(scores.accuracy, algorithm) > 0.0
        statistics = credit.credit_statistics(change, mask, right, there)
        return TokenCredit(change, credit.mean_credit(change, mask, algorithm), there), statistics

    return owed


def make_token_weights(algorithm: tgrpo.TGRPOConfig, mesh: Mesh) -> Callable[..., Any]:
    """weights(mask [B,G,C], entropy [B,G,C] or None, the least that counts, TokenCredit or None, the least change that
    counts) -> what the objective counts each token [B,G,C]."""

    @partial(jax.jit, out_shardings=batch_sharding(mesh))
    def weights(
        mask: Array, entropy: Array | None, least: ArrayLike, owed: TokenCredit | None, change: ArrayLike
    ) -> Array:
        weight = jnp.ones(mask.shape, jnp.float32)
        if entropy is not None:
            weight = weight * (entropy >= least).astype(jnp.float32)
        if owed is not None:
            weight = weight * credit.credit_weight(owed.change, mask, owed.there, jnp.asarray(change), algorithm)
        return weight

    return weights
