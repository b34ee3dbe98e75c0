"""Useful FLOPs beside XLA's count of the compiled passes, the products of the TPU programs, and counts by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvr1 import config as settings
from jvr1.data.batch import Arrays, Bucket, empty_example
from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.families import published
from jvr1.model.lora import ADAPTERS, LoRAConfig
from jvr1.model.qwen2_5_vl.config import MODEL_TYPE, VisionConfig
from jvr1.model.vision_language import abstract, merge
from jvr1.plan.planning import changed, counted_shapes, named_model
from jvr1.train.flops import completion_flops, prompt_flops, scoring, sft_flops, step_flops, trained_of
from jvr1.train.optimizer import combine, partition

pytestmark = pytest.mark.optimised
ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    MODEL_TYPE,
    TextConfig(256, 2, 4, 2, 704, 512, mrope_section=(8, 12, 12)),
    VisionConfig(depth=2, hidden=192, heads=4, intermediate=352, out_hidden=256, window=56, full_blocks=(1,)),
    tied=False,
    image_token=508,
    video_token=509,
    vision_start_token=510,
    vision_end_token=511,
)
VIDEO, GROUP = Bucket("video", 2, 2, 32, 16), 2
DECODER = r"text/.*"
"""Matches all of the decoder; `visual/.*` all of the tower."""

CASES = {
    "all": (None, ()),
    "tower frozen": (None, (r"visual/.*",)),
    "tower alone": (None, (DECODER,)),
    "merger alone": (None, (DECODER, r"visual/(patch_embed|blocks)/.*")),
    "head alone": (None, (r"visual/.*", r"text/(layers|embedding|norm).*")),
    "last maps alone": (None, (r"visual/.*", r"text/(?!layers/mlp/down).*")),
    "adapters": (LoRAConfig(8, 8.0), ()),
    "adapters in both": (LoRAConfig(8, 8.0, (".*",)), ()),
    "adapters of values": (LoRAConfig(8, 8.0, ("text/layers/v",)), ()),
    "half of the adapters": (LoRAConfig(8, 8.0), (r"text/layers/mlp/.*", r".*/lora_a")),
}  # fmt: skip
"""Name -> adapters, patterns of optimizer.freeze."""
OFTEN = ("all", "tower frozen", "adapters")
UNPOLISHED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Of XLA for CPUs: the same products, in half the time to compile."""


def parts(lora: LoRAConfig | None, freeze: tuple[str, ...], model: ModelConfig = MODEL):
    graphdef, params = abstract(model, lora=lora)
    return graphdef, params, *partition(params, freeze, ".*" if lora is None else ADAPTERS)


def compiled(lora: LoRAConfig | None, freeze: tuple[str, ...]) -> tuple[float, float]:
    """XLA's FLOPs of a forward pass, and of one with its gradient; nothing is computed again for memory's sake."""
    graphdef, _, trainable, frozen = parts(lora, freeze)
    shapes: Arrays = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *np.shape(x)), np.asarray(x).dtype), empty_example(VIDEO, MODEL)
    )
    ids = jax.ShapeDtypeStruct((1, GROUP, VIDEO.completion), jnp.int32)

    def loss(trainable: dict, frozen: dict, arrays: Arrays, ids: jax.Array) -> jax.Array:
        model = merge(graphdef, combine(trainable, frozen))
        hidden = model.complete(arrays.prompt, arrays.visual, ids)
        return jnp.sum(jax.nn.logsumexp(model.logits(hidden), axis=-1))

    def flops(f) -> float:
        return jax.jit(f).lower(trainable, frozen, shapes, ids).compile(UNPOLISHED).cost_analysis()["flops"]

    return flops(loss), flops(jax.value_and_grad(loss))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.nightly) for name in CASES]
)
def test_the_count_is_that_of_the_compiled_program(monkeypatch, name):
    """Layers stand one after the other, so that XLA counts each and leaves out what nobody asks for."""
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    _, params, trainable, _ = parts(*CASES[name])
    forward, both = compiled(*CASES[name])
    passed = scoring(MODEL, VIDEO, GROUP, VIDEO.completion, trained_of(params, trainable))
    assert passed.forward == pytest.approx(forward, rel=0.03)
    assert passed.backward == pytest.approx(both - forward, rel=0.04)


def by_hand(width: int) -> tuple[float, float]:
    """FLOPs of one forward pass over a prompt of 10 tokens and 3 completions of 4, one layer and a vocabulary of 50:
    products with weights, and of attention."""
    tokens, own = 10 + 3 * 4, 3 * 4
    weights = 2 * tokens * (4 * width * width + 3 * width * 5 * width) + 2 * own * width * 50
    seen = 10 * 5 + own * (10 + 2)  # half of what is causal
    return weights, 4 * seen * width


def test_counts_by_hand():
    """As many key heads as query heads, an MLP five times as wide."""
    model, bucket = plain(64), Bucket("text", 0, 0, 10, 4)
    weights, attention = by_hand(64)
    full = scoring(model, bucket, 3, 4)
    assert full.forward == weights + attention
    # one layer, whose input is the token table: gradients go all the way, through each product twice
    assert (full.activations, full.weights) == (weights + 2 * attention, weights)
    assert full.both == 3 * (weights + attention)
    once = weights + attention
    sampled = prompt_flops(model, bucket, 1) + completion_flops(model, bucket, 3, 4)
    assert sampled == once
    assert step_flops(model, bucket, 2, 3, 0, 4, reference=True, updates=2) == 2 * (once + once + 2 * 3 * once)
    assert step_flops(model, bucket, 2, 3, 2, 4, reference=False) == 2 * (once + 3 * once)  # text has no shuffled twin
    prompt_logits = 2 * 10 * 64 * 50
    supervised = [sft_flops(model, bucket, 5, 4, on_prompt=on) for on in (False, True)]
    assert supervised[1] - supervised[0] == 5 * 3 * prompt_logits


def plain(width: int) -> ModelConfig:
    text = TextConfig(width, 1, 2, 2, 5 * width, 50, mrope_section=(4, 6, 6))
    return ModelConfig(MODEL_TYPE, text, VisionConfig(depth=1, hidden=32, heads=2, out_hidden=width), tied=False)


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_layer_below_nothing_trained_has_no_backward_pass(tied):
    """Of the norm before the head: gradients come through the head alone, to a scale that costs no product."""
    model, bucket = replace(plain(64), tied=tied), Bucket("text", 0, 0, 10, 4)
    _, params = abstract(model)
    alone = trained_of(params, partition(params, (r"visual/.*", r"text/(?!norm/).*"))[0])
    assert scoring(model, bucket, 3, 4, alone).backward == 2 * 12 * 64 * 50
    head = trained_of(params, partition(params, (r"visual/.*", r"text/(layers|norm)/.*"))[0])
    passed = scoring(model, bucket, 3, 4, head)
    assert passed.weights == 2 * 12 * 64 * 50
    assert passed.activations > passed.weights  # the token table is trained: down to the tokens


def test_adapters_by_hand():
    """Rank 3 on one map, of the only layer: two small products, their gradients, and what lies above them."""
    model, bucket, lora = plain(64), Bucket("text", 0, 0, 10, 4), LoRAConfig(3, 3.0, ("text/layers/mlp/down",))
    _, params = abstract(model, lora=lora)
    trained = trained_of(params, partition(params, (), ADAPTERS)[0])
    passed = scoring(model, bucket, 3, 4, trained)
    a, b = 2 * 22 * 320 * 3, 2 * 22 * 3 * 64
    assert passed.forward == scoring(model, bucket, 3, 4).forward + a + b
    assert passed.weights == a + b
    assert passed.activations == b + 2 * 12 * 64 * 50  # of the low values, and of what the head reads
    inflated = step_flops(model, bucket, 1, 3, 0, 4, reference=True)
    assert step_flops(model, bucket, 1, 3, 0, 4, reference=True, trained=trained) < inflated


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "compiled").glob("*.json")), ids=lambda file: file.stem)
def test_what_is_computed_again_is_in_the_products_of_compiled_programs(file):
    """Of published sizes, as the compilers for TPUs and GPUs made them with remat full: all products but those of
    attention's kernel, which runs forward twice and backward."""
    said = json.loads(file.read_text())
    model, mesh = named_model(said["model"]), said["mesh"]
    steps, windows, prompt, completion = (int(part[1:]) for part in said["bucket"].split("-")[1:])
    config = settings.from_file(str(ROOT / said["config"]), said["settings"])
    bucket = Bucket("video", steps, windows, prompt, completion)
    step = counted_shapes(changed(config, {f"mesh.{axis}": size for axis, size in mesh.items()}), model)
    trained = trained_of(step.params, step.state.params)
    passed = scoring(model, bucket, config.rl.group, completion, trained)
    scored = scoring(model, bucket, config.rl.group, completion)  # without adapters
    pairs = prompt**2 / 2 + config.rl.group * completion * (prompt + completion / 2)
    kernel = 4 * pairs * model.text.heads * model.text.head_size * model.text.layers
    rows = config.batch.micro / (mesh["data"] * mesh["fsdp"] * mesh["tensor"])
    forward, gradients = (said["phases"][phase]["products"] / rows for phase in ("reference", "gradients"))
    assert scored.forward - kernel == pytest.approx(forward, rel=0.02)
    assert passed.both + passed.layers + passed.head - 4 * kernel == pytest.approx(gradients, rel=0.02)


def test_the_page_shows_the_shares():
    """The 7B's largest bucket of configs/tgrpo_7b.py."""
    model, bucket = published("7b"), Bucket("video", 8, 14, 1536, 768)
    cases = {
        "all": (None, ()),
        "all but the tower": (None, (r"visual/.*",)),
        "the tower": (None, (r"text/.*",)),
        "adapters of rank 32 in the decoder": (LoRAConfig(32, 32.0), ()),
        "adapters of rank 32 in both": (LoRAConfig(32, 32.0, (".*",)), ()),
    }
    page = (ROOT / "docs" / "pods.md").read_text()
    for name, case in cases.items():
        _, params, trainable, _ = parts(*case, model)
        passed = scoring(model, bucket, 8, bucket.completion, trained_of(params, trainable))
        shares = [f"{part / passed.forward:.2f}" for part in (passed.activations, passed.weights, passed.backward)]
        row = f"| {name} | {' | '.join(shares)} |"
        assert row in page, row
