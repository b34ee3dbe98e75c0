"""A tower and a decoder as one model, in the forms that training and generation need. Hidden states out; logits only
where asked.

`config.family.model` makes it of the family's modules; a family whose halves touch otherwise has a class of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jvr1.model import lora as adapters
from jvr1.model.attention import Backend
from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Prompt, Visual
from jvr1.model.lora import LoRAConfig
from jvr1.model.rope import text_angles
from jvr1.model.tape import Tape
from jvr1.model.text import KV, Embedded, TextDecoder


class VisionLanguageModel(nnx.Module):
    """Visual tokens of the tower in a decoder's prompt.

    tower: the family's class of it, made by `tower(config.vision, remat=, std=, dtype=, param_dtype=, rngs=)`; of a
    `Visual` it gives merged tokens [B,F,W,U,D]. decoder: `TextDecoder`, or the family's own. dtype: of activations and
    products. param_dtype: of the parameters as kept. remat: what the backward pass keeps of a layer, a key of
    `layers.REMAT_POLICIES`. attention: what computes the text layers', see `attention.choose`.
    """

    def __init__(
        self,
        config: ModelConfig,
        tower: Callable[..., Callable[[Visual], Array]],
        decoder: Callable[..., TextDecoder] = TextDecoder,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        attention: Backend = "xla",
    ):
        kw: dict[str, Any] = {
            "remat": remat,
            "std": config.initializer_range,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.config = config
        self.visual = tower(config.vision, **kw)
        self.text = decoder(config.text, tied=config.tied, attention=attention, **kw)

    def __call__(self, prompt: Prompt, visual: Visual | None) -> Float[Array, "B P D"]:
        """Hidden states after the final norm. `visual` is None for prompts of text only."""
        return self.text.prompt(self.embed(prompt, visual), keep=False)[0]

    def complete(
        self, prompt: Prompt, visual: Visual | None, completions: Int[Array, "B G C"]
    ) -> Float[Array, "B G C D"]:
        """Hidden states that PREDICT each completion token, the prompt (and its video) computed once.

        The first token is predicted from the prompt's last real position, token i from completion token i-1.
        """
        return self.prompt_and_completions(prompt, visual, completions)[1]

    def prompt_and_completions(
        self, prompt: Prompt, visual: Visual | None, completions: Int[Array, "B G C"]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B G C D"]]:
        """The prompt's hidden states, each predicting the token after it, and what `complete` gives."""
        b, _, length = completions.shape
        positions = prompt.next_position[:, None, None] + jnp.arange(length)[None, None, :]
        positions = jnp.broadcast_to(positions, completions.shape)
        given, own = self._embed_with(prompt, visual, completions.reshape(b, -1))
        hidden, own = self.text.complete(given, own.reshape(*completions.shape, -1), self._flat_angles(positions))
        first = jnp.broadcast_to(last_real(hidden, prompt.mask)[:, None, None, :], (*own.shape[:2], 1, own.shape[3]))
        return hidden, jnp.concatenate([first, own[:, :, :-1]], axis=2)

    def complete_tape(
        self, prompt: Prompt, visual: Visual | None, ids: Int[Array, "B S"], tape: Tape, longest: int
    ) -> Float[Array, "B S D"]:
        """As `complete`, of completions of at most `longest` tokens that lie on tapes."""
        positions = prompt.next_position[:, None] + tape.place
        given, own = self._embed_with(prompt, visual, ids)
        hidden, own = self.text.complete_tape(given, own, self._flat_angles(positions[:, None])[:, 0], tape, longest)
        before = jnp.pad(own[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return jnp.where(tape.place[:, :, None] == 0, last_real(hidden, prompt.mask)[:, None], before)

    def _embed_with(
        self, prompt: Prompt, visual: Visual | None, ids: Int[Array, "B S"]
    ) -> tuple[Embedded, Float[Array, "B S D"]]:
        """Prompts and the tokens that follow them. Together: two lookups in one table would add up its gradient over
        devices twice."""
        p = prompt.ids.shape[1]
        tokens = self.text.embed(jnp.concatenate([prompt.ids, ids], axis=1))
        return self.embed(prompt, visual, tokens=tokens[:, :p]), tokens[:, p:]

    def prefill(
        self, prompt: Prompt, visual: Visual | None, pairs: Int[Array, "B S F 2"] | None
    ) -> tuple[Float[Array, "B S D"], tuple[KV, ...]]:
        """The hidden state of the last real token, and keys and values, of S streams a prompt: of each a `KV` of one.

        Streams differ in nothing but the frames that `pairs` names: ordered, and shuffled where asked for.
        Without `pairs`, or without visual input, there is one stream, the prompt as it is.
        """
        b = prompt.ids.shape[0]
        if visual is None or pairs is None:
            streams, given = 1, self.embed(prompt, visual)
        else:
            streams, steps = pairs.shape[1:3]
            every = Visual(
                visual.frames, pairs.reshape(b, streams * steps, 2), jnp.tile(visual.hw, (1, streams, 1, 1, 1))
            )
            given = self.embed(Prompt(*(repeat(x, streams) for x in prompt)), every, streams)
        hidden, kv = self.text.prompt(given, keep=True)
        assert kv is not None  # keep=True
        last = last_real(hidden, given.mask).reshape(b, streams, -1)
        apart = jax.tree.map(lambda y: y.reshape(*y.shape[:-4], b, streams, 1, *y.shape[-3:]), kv)
        return last, tuple(KV(*jax.tree.map(partial(_of_stream, s), apart)) for s in range(streams))

    def decode(
        self,
        ids: Int[Array, "B R"],
        positions: Int[Array, "B R"],
        prefix: Sequence[KV],
        prefix_mask: Bool[Array, "B S P"],
        cache: KV,
        index: Int[Array, ""],
        length: Int[Array, "B R"],
        rows: Sequence[int],
        read: int | None = None,
    ) -> tuple[Float[Array, "B R D"], KV]:
        """Hidden state after each row's newest token, and the cache with it: a ring in which it stands at `index`, the
        last of the row's `length` tokens. read: how many of its entries are in use; None: all."""
        angles = self._flat_angles(positions[:, :, None])[:, :, 0]
        return self.text.step(self.text.embed(ids), angles, prefix, prefix_mask, cache, index, length, rows, read)

    def logits(self, hidden: Float[Array, "*X D"]) -> Float[Array, "*X V"]:
        return self.text.logits(hidden)

    def head_kernel(self) -> Float[Array, "D V"]:
        """What hidden states are multiplied with to give logits."""
        return self.text.head_kernel()

    def embed(
        self,
        prompt: Prompt,
        visual: Visual | None,
        streams: int = 1,
        tokens: Float[Array, "B P D"] | None = None,
    ) -> Embedded:
        """What the decoder gets of prompts: token embeddings (`tokens`, where they are there already) with merged
        visual tokens in the places that `visual_index` names. streams: a row of `visual` holds the steps of so many of
        the prompts, one after the other.
        """
        x = self.text.embed(prompt.ids) if tokens is None else tokens
        if visual is not None:
            x = at_places(self.visual(visual), prompt.visual_index, streams, x)
        return Embedded(x, self._angles(prompt.positions), prompt.mask)

    def _angles(self, positions: Int[Array, "B 3 T"]) -> Float[Array, "B T h"]:
        text = self.config.text
        return text_angles(positions, self.config.family.rope_axes(text), text.head_size, text.rope_theta)

    def _flat_angles(self, positions: Int[Array, "B R C"]) -> Float[Array, "B R C h"]:
        b, r, c = positions.shape
        same = jnp.broadcast_to(positions.reshape(b, 1, r * c), (b, 3, r * c))
        return self._angles(same).reshape(b, r, c, -1)


def _of_stream(number: int, kv: Array) -> Array:
    return kv[..., number, :, :, :, :]


def at_places(
    merged: Float[Array, "b F W U D"], index: Int[Array, "B P"], streams: int, others: Float[Array, "B P D"]
) -> Float[Array, "B P D"]:
    """Merged tokens where `index` (`Prompt.visual_index`) names them, `others` elsewhere. streams: as of `embed`."""
    flat = merged.reshape(merged.shape[0] * streams, -1, merged.shape[-1])
    gathered = jnp.take_along_axis(flat, jnp.maximum(index, 0)[:, :, None], axis=1)
    return jnp.where(index[:, :, None] >= 0, gathered, others)


def last_real(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Hidden state of each sequence's last real position."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def repeat(x: Array, times: int) -> Array:
    """Repeats each row of the leading axis `times` times, neighbours together."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], times, *x.shape[1:])).reshape(-1, *x.shape[1:])


def abstract(config: ModelConfig, *, lora: LoRAConfig | None = None, **kw: Any) -> tuple[nnx.GraphDef, dict]:
    """The model's graph and its parameters as shapes: nothing is allocated. lora: with these adapters."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: config.family.model(config, rngs=nnx.Rngs(0), **kw)))
    shapes = nnx.to_pure_dict(params)
    return (graphdef, shapes) if lora is None else adapters.with_adapters(graphdef, shapes, lora)


def init(config: ModelConfig, seed: int, *, lora: LoRAConfig | None = None, **kw: Any) -> tuple[nnx.GraphDef, dict]:
    """The model's graph and random parameters (normal, std `config.initializer_range`). lora: with these adapters."""
    graphdef, state = nnx.split(config.family.model(config, rngs=nnx.Rngs(seed), **kw))
    params = nnx.to_pure_dict(state)
    if lora is None:
        return graphdef, params
    graphdef, params = adapters.with_adapters(graphdef, params, lora)
    return graphdef, adapters.draw(params, seed)


def merge(graphdef: nnx.GraphDef, params: dict) -> VisionLanguageModel:
    """The module to call, from its graph and (traced) parameters."""
    return nnx.merge(graphdef, params)
