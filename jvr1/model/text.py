"""The decoder: one sequence, a prompt with its G completions, or one step over a shared prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jvr1.model.attention import QKV, Backend, attend_group, attend_prompt, attend_shared, attend_tape
from jvr1.model.config import TextConfig
from jvr1.model.layers import (
    GatedMLP,
    Linear,
    RMSNorm,
    constrain_batch,
    constrain_head,
    constrain_rows,
    lies_apart,
    scan_layers,
    stack,
)
from jvr1.model.rope import rotate
from jvr1.model.tape import Tape


class KV(NamedTuple):
    """Rotated keys and values of all layers, of S prefixes of P tokens or of R rows of C: stacked, or, of layers that
    lie apart, lists with an array a layer.

    Keys lie with their tokens last: XLA on CPUs would otherwise transpose them for their product with the queries, at
    every token.
    """

    k: Float[Array, "layers B S K H P"] | list[Float[Array, "B S K H P"]]
    v: Float[Array, "layers B S K P H"] | list[Float[Array, "B S K P H"]]


@dataclass(frozen=True)
class Embedded:
    """B prompts as the decoder gets them: embeddings, angles of their rotary positions, which tokens are real. A family
    whose decoder gets more adds it."""

    x: Float[Array, "B P D"]
    angles: Float[Array, "B P h"]
    mask: Bool[Array, "B P"]


class TextLayer(nnx.Module):
    """Pre-norm grouped-query attention and gated MLP (HF `Qwen2DecoderLayer`)."""

    bias = True
    """Whether queries, keys and values have one."""

    def __init__(self, config: TextConfig, *, std: float, param_dtype: DTypeLike, rngs: nnx.Rngs):
        size, heads, kv_heads, head = config.hidden, config.heads, config.kv_heads, config.head_size
        kw: dict[str, Any] = {"std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = RMSNorm(size, eps=config.eps, param_dtype=param_dtype)
        self.norm2 = RMSNorm(size, eps=config.eps, param_dtype=param_dtype)
        self.q = Linear((size,), (heads, head), bias=self.bias, **kw)
        self.k = Linear((size,), (kv_heads, head), bias=self.bias, **kw)
        self.v = Linear((size,), (kv_heads, head), bias=self.bias, **kw)
        self.o = Linear((heads, head), (size,), bias=False, **kw)
        self.mlp = GatedMLP(size, config.intermediate, bias=False, **kw)

    def qkv(self, x: Float[Array, "*X D"], angles: Float[Array, "*X h"]) -> QKV:
        """Queries [*X,N,H], keys and values [*X,K,H]."""
        x = self.norm1(x)
        return QKV(rotate(self.q(x), angles), rotate(self.k(x), angles), self.v(x))

    def finish(self, x: Float[Array, "*X D"], mixed: Float[Array, "*X N H"]) -> Float[Array, "*X D"]:
        """What follows attention: output projection, residual, MLP."""
        x = x + self.o(mixed)
        return constrain_batch(x + self.mlp(self.norm2(x)))


class TextDecoder(nnx.Module):
    """Token table, layers, final norm and head. A tied model has no `head`: the table serves for both."""

    def __init__(
        self,
        config: TextConfig,
        *,
        tied: bool,
        remat: str,
        attention: Backend,
        std: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        layer: type[TextLayer] = TextLayer,
    ):
        self.config, self.remat, self.attention, self.dtype = config, remat, attention, dtype
        table = jax.random.normal(rngs.params(), (config.vocab, config.hidden), param_dtype)
        self.embedding = nnx.Param(table * jnp.asarray(std, param_dtype))
        self.layers = stack(
            lambda rngs: layer(config, std=std, param_dtype=param_dtype, rngs=rngs), config.layers, rngs
        )
        self.norm = RMSNorm(config.hidden, eps=config.eps, param_dtype=param_dtype)
        head: dict[str, Any] = {"bias": False, "std": std, "param_dtype": param_dtype, "rngs": rngs}
        self.head = None if tied else Linear((config.hidden,), (config.vocab,), **head)

    def embed(self, ids: Int[Array, "*X"]) -> Float[Array, "*X D"]:
        # whole rows: from a table split over its width too, XLA would make the batch whole on every device
        return constrain_rows(self.embedding[...].astype(self.dtype))[ids]

    def logits(self, hidden: Float[Array, "*X D"]) -> Float[Array, "*X V"]:
        """Logits in fp32, whatever the compute dtype. Ask for few: 152k words a token."""
        kernel = constrain_head(self.head_kernel().astype(hidden.dtype))
        return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)

    def head_kernel(self) -> Float[Array, "D V"]:
        return self.embedding[...].T if self.head is None else self.head.kernel[...]

    def cache(self, prompts: int, lines: int, tokens: int) -> KV:
        """Room for the keys and values of so many tokens of each of a prompt's lines, as this decoder's layers lie."""
        config = self.config
        heads, layers = (prompts, lines, config.kv_heads), config.layers
        shapes = (*heads, config.head_size, tokens), (*heads, tokens, config.head_size)
        if lies_apart(nnx.state(self.layers)):
            return KV(*([jnp.zeros(shape, self.dtype) for _ in range(layers)] for shape in shapes))
        return KV(*(jnp.zeros((layers, *shape), self.dtype) for shape in shapes))

    def prompt(self, given: Embedded, *, keep: bool) -> tuple[Float[Array, "B P D"], tuple[Any, Any] | None]:
        """Causal pass over prompts; with `keep` also the keys [layers,B,K,H,P] and values [layers,B,K,P,H], or lists of
        a layer's where layers lie apart.

        Padding may stand on either side; hidden states at padding are finite and mean nothing.
        """

        def attend(layer: TextLayer, x: Array) -> tuple[Array, Any]:
            own = layer.qkv(x, given.angles)
            mixed = attend_prompt(own, given.mask, self.attention)
            return mixed, (own.k.transpose(0, 2, 3, 1), own.v.swapaxes(1, 2)) if keep else None

        x, kv = self.through(given, given.x, attend)
        return self.norm(x), kv

    def complete(
        self, given: Embedded, y: Float[Array, "B G C D"], y_angles: Float[Array, "B G C h"]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B G C D"]]:
        """Prompts and their G completions through the same layers; a completion attends to [prompt | itself].

        Values and gradients are those of G separate sequences; the prompt is computed once. Both are one row of tokens
        but for attention: two products with one weight would add up its gradient over devices twice.
        """
        rows, length = y.shape[1:3]

        def flat(z: Array) -> Array:
            return z.reshape(z.shape[0], rows * length, *z.shape[3:])

        def attend(own: QKV) -> Array:
            return attend_group(own, given.mask, rows, length, self.attention)

        hidden, own = self.joined(given, flat(y), flat(y_angles), attend)
        return hidden, own.reshape(y.shape)

    def complete_tape(
        self, given: Embedded, y: Float[Array, "B S D"], y_angles: Float[Array, "B S h"], tape: Tape, longest: int
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B S D"]]:
        """As `complete`, of completions of at most `longest` tokens that lie on tapes."""

        def attend(own: QKV) -> Array:
            return attend_tape(own, given.mask, tape, longest, self.attention)

        return self.joined(given, y, y_angles, attend)

    def joined(
        self, given: Embedded, y: Float[Array, "B S D"], angles: Float[Array, "B S h"], attend: Callable[[QKV], Array]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B S D"]]:
        """Prompts and what follows them as one row of tokens through all layers; `attend` says who sees whom."""
        prompt, every = given.x.shape[1], jnp.concatenate([given.angles, angles], axis=1)

        def layer_attention(layer: TextLayer, z: Array) -> tuple[Array, None]:
            return attend(layer.qkv(z, every)), None

        z, _ = self.through(given, jnp.concatenate([given.x, y], axis=1), layer_attention)
        z = self.norm(z)
        return z[:, :prompt], z[:, prompt:]

    def through(
        self, given: Embedded, x: Array, attend: Callable[[TextLayer, Array], tuple[Array, Any]]
    ) -> tuple[Array, Any]:
        """All layers over x [B,T,D], which begins with the prompts' tokens; `attend(layer, x)` gives a layer's
        attention, and what is kept of each."""

        def body(layer: TextLayer, x: Array, _: None) -> tuple[Array, Any]:
            mixed, kept = attend(layer, x)
            return layer.finish(x, mixed), kept

        return scan_layers(self.layers, body, constrain_batch(x), remat=self.remat)

    def step(
        self,
        y: Float[Array, "B R D"],
        angles: Float[Array, "B R h"],
        prefix: Sequence[KV],
        prefix_mask: Bool[Array, "B S P"],
        cache: KV,
        index: Int[Array, ""],
        length: Int[Array, "B R"],
        rows: Sequence[int],
        read: int | None = None,
    ) -> tuple[Float[Array, "B R D"], KV]:
        """One token a row: written at `index` of the cache, a ring, of which the last `length` entries are the row's
        own; attends to these and to the prefix of its stream, a KV of one. read: only so many of the ring are used."""
        *_, b, r, heads, size, head = (cache.v[0] if isinstance(cache.v, list) else cache.v).shape
        read = read or size
        age = (index - jnp.arange(read)) % size
        own_mask = age[None, None] < length[:, :, None]

        def token(layer: TextLayer, y: Array, prefix: Any, cache: Any, *number: Array) -> tuple[Array, KV]:
            """A layer, with the cache of all layers and its number there, or with its own cache."""
            q, k, v = layer.qkv(y, angles)
            k, v = (x[(None,) * len(number)] for x in (k[..., None], v[..., None, :]))
            cache = KV(
                jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), (*number, 0, 0, 0, 0, index)),
                jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), (*number, 0, 0, 0, index, 0)),
            )
            shapes = (b, r, heads, head, read), (b, r, heads, read, head)
            own_k, own_v = (
                jax.lax.dynamic_slice(x, (*number, 0, 0, 0, 0, 0), (*(1 for _ in number), *shape)).reshape(shape)
                for x, shape in zip(cache, shapes, strict=True)
            )
            of_streams = [(one.k[:, 0], one.v[:, 0]) for one in prefix]
            mixed = attend_shared(q, of_streams, prefix_mask, (own_k, own_v), own_mask, rows, self.attention)
            return layer.finish(y, mixed), cache

        if isinstance(cache.v, list):
            apart = scan_layers(self.layers, lambda layer, y, x: token(layer, y, *x), y, (prefix, cache), remat="none")
            return self.norm(apart[0]), apart[1]

        def body(layer: TextLayer, carry: tuple[Array, KV], item: tuple[Any, Array]) -> tuple[tuple[Array, KV], None]:
            prefix, number = item
            return token(layer, carry[0], prefix, carry[1], number), None

        numbers = jnp.arange(self.config.layers)
        (y, cache), _ = scan_layers(self.layers, body, (y, cache), (prefix, numbers), remat="none")
        return self.norm(y), cache
