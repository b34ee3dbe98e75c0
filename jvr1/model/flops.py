"""Floating-point operations of a pass through a model, the only count of them; `jvr1.train.flops` has those of a step.

Counted are products of weights and of attention, 2 operations for each multiplication; what is elementwise, and the
lookup of tokens, are nothing beside them. A backward pass is two things: gradients with respect to activations, which
cost a product once more, and only where something below it is trained, so that they have somewhere to go; and gradients
with respect to weights, once more for each weight that is trained. Full training comes to twice the forward pass, LoRA
to a little more than once, a frozen tower below to nothing. What is computed again to save memory is not useful: `Pass`
has it apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jvr1.model.config import ModelConfig
from jvr1.model.parameters import A, B

Number = float | int


@dataclass(frozen=True)
class Trained:
    """Which parameters a run trains, by their paths; None: all. ranks: path of a linear map -> rank of its adapter."""

    paths: frozenset[str] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)

    def has(self, path: str) -> bool:
        return self.paths is None or path in self.paths


ALL = Trained()
"""Everything is trained, without adapters. Of a pass without a backward pass: without adapters."""


@dataclass
class Pass:
    """FLOPs of a pass through the model. forward; activations and weights: of the backward pass, gradients with respect
    to these. layers, head: of the forward pass, what the backward pass may need again and compute twice: all of a layer
    but its last product (`model.remat` full), the logits (always)."""

    forward: float = 0.0
    activations: float = 0.0
    weights: float = 0.0
    layers: float = 0.0
    head: float = 0.0

    @property
    def backward(self) -> float:
        return self.activations + self.weights

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


class Walk:
    """Goes through the model from its input on and adds up. What it hands on, `live`, is whether a value depends on a
    trained parameter: only then does a backward pass need the gradient with respect to it."""

    def __init__(self, trained: Trained):
        self.trained, self.sums = trained, Pass()

    def product(self, flops: float, *, live: bool, trained: bool) -> bool:
        """Of a value, live or not, with a weight, trained or not; returns whether the result is live."""
        self.sums.forward += flops
        self.sums.activations += flops * live
        self.sums.weights += flops * trained
        return live or trained

    def linear(self, path: str, tokens: Number, inputs: int, outputs: int, live: bool) -> bool:
        has = self.trained.has
        out = self.product(2.0 * tokens * inputs * outputs, live=live, trained=has(f"{path}/kernel"))
        if rank := self.trained.ranks.get(path, 0):
            low = self.product(2.0 * tokens * inputs * rank, live=live, trained=has(f"{path}/{A}"))
            out |= self.product(2.0 * tokens * rank * outputs, live=low, trained=has(f"{path}/{B}"))
        return out or has(f"{path}/bias")

    def norm(self, path: str, live: bool) -> bool:
        return live or self.trained.has(f"{path}/scale") or self.trained.has(f"{path}/bias")

    def attention(self, flops: float, q: bool, k: bool, v: bool) -> bool:
        """Two products of `flops` together, queries with keys and weights with values; which of the three are live."""
        scores = q or k
        self.sums.forward += flops
        self.sums.activations += flops / 2 * (q + k + v + scores)  # of scores: with respect to weights of values
        return scores or v

    def mlp(self, path: str, tokens: Number, size: int, hidden: int, live: bool) -> bool:
        gate = self.linear(f"{path}/gate", tokens, size, hidden, live)
        up = self.linear(f"{path}/up", tokens, size, hidden, live)
        return self.linear(f"{path}/down", tokens, hidden, size, gate or up)

    def layer_end(self, before: float, last: float, live: bool) -> bool:
        """After a layer that began at `before` forward FLOPs and ends with a product of `last`."""
        self.sums.layers += (self.sums.forward - before - last) * live
        return live

    def tower(self, config: ModelConfig, steps: int, windows: int) -> bool:
        """`steps` temporal steps of `windows` windows, slots counted, full or not; returns whether tokens are live."""
        return bool(steps * windows) and config.family.tower_flops(self, config.vision, steps, windows)

    def decoder(self, config: ModelConfig, tokens: Number, pairs: Number, head: Number, live: bool) -> None:
        """One row of tokens through all layers. pairs: of a query and a key it sees, in one layer; head: tokens that
        get logits; live: of visual tokens among them."""
        t, at = config.text, "text/layers"
        width, narrow = t.heads * t.head_size, t.kv_heads * t.head_size
        live |= self.trained.has("text/embedding")
        for _ in range(t.layers):
            before, inner = self.sums.forward, self.norm(f"{at}/norm1", live)
            q, k, v = (
                self.linear(f"{at}/{name}", tokens, t.hidden, size, inner)
                for name, size in (("q", width), ("k", narrow), ("v", narrow))
            )
            q, k = self.norm(f"{at}/q_norm", q), self.norm(f"{at}/k_norm", k)
            mixed = self.attention(4.0 * pairs * width, q, k, v)
            live |= self.linear(f"{at}/o", tokens, width, t.hidden, mixed)
            live |= self.mlp(f"{at}/mlp", tokens, t.hidden, t.intermediate, self.norm(f"{at}/norm2", live))
            live = self.layer_end(before, 2.0 * tokens * t.hidden * t.intermediate, live)
        live = self.norm("text/norm", live)
        weight = self.trained.has("text/embedding" if config.tied else "text/head/kernel")
        logits = 2.0 * head * t.hidden * t.vocab
        self.sums.head += logits * self.product(logits, live=live, trained=weight)


def merger_flops(walk: Walk, slots: int, size: int, merge: int, out: int, live: bool, at: str = "visual") -> bool:
    """The two products that make tokens of width `out` of merge x merge patches of width `size`."""
    live = walk.norm(f"{at}/merge_norm", live)
    merged, tokens = size * merge**2, slots / merge**2
    live = walk.linear(f"{at}/merge_in", tokens, merged, merged, live)
    return walk.linear(f"{at}/merge_out", tokens, merged, out, live)
