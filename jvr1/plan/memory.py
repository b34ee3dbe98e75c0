"""Bytes that a step takes on one chip, counted from shapes: phase by phase, part by part.

What lies in memory between programs (parameters, moments, reference, gradients, weights for generation, rollouts) is
exact: the shapes and shardings are those of the run. What a program needs while it runs (layer inputs kept for the
backward pass, attention scores, logits, gathered weights) is counted as the buffers that the algorithm cannot do
without, times how many of them XLA holds at once: the constants below, read off programs compiled for TPUs.
docs/pods.md holds the count beside the compiler's figure. Rows are those of one chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from jvr1.data.batch import Bucket
from jvr1.model.blockwise import score_counts, spans, tape_spans
from jvr1.model.config import ModelConfig
from jvr1.model.layers import batch_ways
from jvr1.model.parameters import is_stacked
from jvr1.plan.programs import Shapes, batch_shapes, chip_bytes, entering_of, row_counts, slot_shape, slots_of, tape_of
from jvr1.rollout.decoder import at_a_time
from jvr1.sharding import path_name

FLOAT = 4
SCORES = {"forward": 1.75, "backward": 5.5}
"""Copies of the fp32 scores of a block of queries (`blockwise`) alive at once, where XLA computes attention."""
VALUES = {"forward": 2.0, "backward": 6.0}
"""Copies of a text layer's queries, keys, values and outputs alive at once."""
VISION_SCORES = {"forward": 1.5, "backward": 4.0}
"""Copies of the fp32 scores of a layer of the tower alive at once."""
MLP = {"forward": 3.0, "backward": 6.0}
"""Copies of what a gated MLP holds between its products, in the compute dtype."""
LOGITS = {"forward": 1.75, "backward": 4.0}
"""Copies of a chunk's fp32 logits alive at once."""
GATHERED = {"forward": 3.0, "backward": 5.8}
"""Whole layers of weights alive at once: the one in use, the one on its way and parts that go around; in the backward
pass also their gradients before they are added up over chips."""
NEW_GRADIENTS = 1.75
"""Copies of a microbatch's gradients: in fp32, and in the compute dtype those that were just made."""


class Local(NamedTuple):
    """A microbatch on one chip: rows (prompts), and ways the heads and the MLP are split."""

    rows: int
    tensor: int


def local(step: Shapes) -> Local:
    """As it is trained on."""
    return Local(step.config.batch.micro // batch_ways(step.mesh), step.mesh.shape["tensor"])


def local_generation(step: Shapes, prompts: int) -> Local:
    """So many prompts as they are sampled from."""
    return Local(prompts // batch_ways(step.generation_mesh), step.generation_mesh.shape["tensor"])


def phase_memory(step: Shapes, bucket: Bucket) -> dict[str, dict[str, int]]:
    """Phase -> part -> bytes on a chip at the phase's peak; the sum of the parts is the peak.

    Phases are those of the stage; without a reference there is none to score.
    """
    if step.stage == "sft":
        return answers_memory(step, bucket)
    host = step.config.model.reference == "host"
    params, moments, reference = map(chip_bytes, (step.params, step.state.optimizer, step.reference_copy()))
    kept = {"parameters": params, "moments": moments, "reference": 0 if host else reference}
    rollouts = {"rollouts": chip_bytes(batch_shapes(step, bucket)) * step.config.batch.per_step}
    copies = [place.shape(x) for x, place in step.copied()]
    weights = {"generation weights": chip_bytes(copies)}
    total = {"gradients": chip_bytes(step.total)}
    phases = {
        "weights": kept | weights | {"moving": max(map(chip_bytes, copies), default=0)},
        "generation": kept | rollouts | weights | generation_memory(step, bucket),
        "reference": kept | rollouts | {"reference": reference} | scoring_memory(step, bucket),
        "gradients": kept | rollouts | total | gradient_memory(step, bucket),
        "update": kept | rollouts | total,
    }
    return {name: phases[name] for name in step.phases}


def answers_memory(step: Shapes, bucket: Bucket) -> dict[str, dict[str, int]]:
    """`phase_memory` of supervised learning: all microbatches of a step wait on the chip while it learns."""
    kept = {
        "parameters": chip_bytes(step.params),
        "moments": chip_bytes(step.state.optimizer),
        "microbatches": chip_bytes(batch_shapes(step, bucket)) * step.config.batch.per_step,
        "gradients": chip_bytes(step.total),
    }
    return {"gradients": kept | gradient_memory(step, bucket), "update": kept}


def generation_memory(step: Shapes, bucket: Bucket) -> dict[str, int]:
    """Keys and values of prefixes and of completions, in slots of the shape that takes the bucket, and the larger of
    what prefill and sampling need besides."""
    model, here, size = step.model, local_generation(step, slots_of(step)), value_bytes(step)
    shape, entering = slot_shape(step, bucket), local_generation(step, entering_of(step))
    streams, drawn = len(row_counts(step.config, bucket)), sum(at_a_time(shape.rows, step.config.rl.lanes))
    encoded = Bucket(bucket.kind, bucket.steps * streams, bucket.windows, bucket.prompt, bucket.completion)
    prefill = kv_bytes(model, entering, len(shape.rows) * shape.prompt, size) + max(
        VISION_SCORES["forward"] * vision_scores(model, encoded, entering),
        attention_bytes(step, entering, bucket, 0, "forward") * streams,
    )
    sampled = LOGITS["forward"] * here.rows * drawn * model.text.vocab * FLOAT
    return {
        "prefix": kv_bytes(model, here, len(shape.rows) * shape.prompt, size),
        "cache": kv_bytes(model, here, shape.completion * drawn, size),
        "working": int(max(prefill, sampled)),
    }


def scoring_memory(step: Shapes, bucket: Bucket) -> dict[str, int]:
    """A forward pass over prompts and completions, and the chunks of logits after it."""
    return {
        "hidden": 2 * hidden_bytes(step, bucket),
        "working": working(step, bucket, "forward"),
    }


def gradient_memory(step: Shapes, bucket: Bucket) -> dict[str, int]:
    """Forward and backward pass: this microbatch's gradients before they are added, what the remat policy keeps, and
    what the layer or the chunk at hand needs."""
    return {
        "new gradients": int(NEW_GRADIENTS * chip_bytes(step.state.params)),
        "kept": kept_bytes(step, bucket),
        "working": working(step, bucket, "backward"),
    }


def working(step: Shapes, bucket: Bucket, direction: str) -> int:
    """The larger of what a layer takes (its weights, and its attention, the tower's or its MLP) and what a chunk of
    logits takes with the head."""
    model, here = step.model, local(step)
    group = step.config.rl.group
    tokens = bucket.prompt + group * bucket.completion
    mlp = here.rows * tokens * model.text.intermediate / here.tensor
    layer = GATHERED[direction] * layer_bytes(step) + max(
        attention_bytes(step, here, bucket, group, direction),
        VISION_SCORES[direction if trains_vision(step) else "forward"] * vision_scores(model, bucket, here),
        MLP[direction] * mlp * value_bytes(step),
    )
    gradient = FLOAT / value_bytes(step) if direction == "backward" and trains_head(step) else 0.0  # added up in fp32
    head = head_bytes(step) * (1 + gradient)
    return int(max(layer, LOGITS[direction] * chunk_logits(step, here) + head))


def attention_bytes(step: Shapes, here: Local, bucket: Bucket, group: int, direction: str) -> float:
    """What attention of a text layer holds at once, of prompts with so many completions."""
    text, tokens = step.model.text, bucket.prompt + group * bucket.completion
    heads = text.heads // here.tensor + kv_heads(step.model, here)
    values = here.rows * tokens * 2 * heads * text.head_size
    largest, _ = text_scores(step, bucket, here, group)
    return VALUES[direction] * values * value_bytes(step) + SCORES[direction] * largest


def value_bytes(step: Shapes) -> int:
    """Bytes of a value in the compute dtype."""
    return 2 if step.config.model.dtype == "bfloat16" else FLOAT


def kv_bytes(model: ModelConfig, here: Local, tokens: int, size: int) -> int:
    """Keys and values of `tokens` tokens a prompt in all layers."""
    return 2 * model.text.layers * here.rows * tokens * kv_heads(model, here) * model.text.head_size * size


def kv_heads(model: ModelConfig, here: Local) -> int:
    """On a chip; heads that tensor does not divide are replicated."""
    heads = model.text.kv_heads
    return heads // here.tensor if heads % here.tensor == 0 else heads


def text_scores(
    step: Shapes, bucket: Bucket, here: Local, group: int, tokens: float | int | None = None
) -> tuple[int, int]:
    """Bytes of attention scores in fp32, in a text layer, of prompts with so many completions, of a mean length as
    `programs.tape_of` has it: of the largest block of queries, and of all blocks; nothing where a kernel computes
    attention."""
    if step.attention != "xla":
        return 0, 0
    prompt, longest, tape = bucket.prompt, bucket.completion, tape_of(step, bucket, tokens) if group else None
    blocks = spans(prompt, group, longest) if tape is None else tape_spans(prompt, tape, longest)
    largest, total = score_counts(prompt, blocks)
    one = here.rows * step.model.text.heads // here.tensor * FLOAT
    return largest * one, total * one


def vision_scores(model: ModelConfig, bucket: Bucket, here: Local) -> int:
    """Attention scores of the tower in the layer that has most, in fp32."""
    scores = model.family.tower_scores(model.vision, bucket.windows).largest
    return here.rows * bucket.steps * scores // here.tensor * FLOAT


def chunk_logits(step: Shapes, here: Local) -> int:
    """Logits of a chunk, [rows, G, chunk, V] in fp32."""
    return (
        here.rows * step.config.rl.group * step.config.model.logit_chunk * step.model.text.vocab // here.tensor * FLOAT
    )


def hidden_bytes(step: Shapes, bucket: Bucket) -> int:
    """Hidden states of prompts and completions, [rows, P + G*C, D]."""
    tokens = bucket.prompt + step.config.rl.group * bucket.completion
    return local(step).rows * tokens * step.model.text.hidden * value_bytes(step)


def kept_bytes(step: Shapes, bucket: Bucket) -> int:
    """What the forward pass keeps for the backward pass, by model.remat; jax.vjp's residuals but for the weights.

    full: each layer's input. dots: and the outputs of its weight products that the backward pass reads. none: and what
    lies between them: norms, gates, and the tower's attention scores.
    """
    model, here, size, remat = step.model, local(step), value_bytes(step), step.config.model.remat
    text, group = model.text, step.config.rl.group
    tokens = here.rows * (bucket.prompt + group * bucket.completion)
    slots = here.rows * bucket.steps * bucket.windows * model.vision.slots
    hidden, gates = {"full": (1, 0), "dots": (2, 2), "none": (10, 6)}[remat]  # in units of D and of the MLP's width
    heads = (text.heads + 2 * text.kv_heads) * text.head_size if gates else 0
    if remat == "none" and "q_norm" in step.params["text"]["layers"]:  # before, within and after norms of q and k
        heads += (6 * text.heads + 4 * text.kv_heads) * text.head_size
    text_layer = tokens * (hidden * text.hidden + (heads + gates * text.intermediate) // here.tensor) * size
    tower = model.family.tower_kept(model.vision, remat, here.tensor, bucket.windows)
    vision = slots * tower.values * size + int(tower.scores * vision_scores(model, bucket, here))
    kept = text.layers * text_layer + 2 * tokens * text.hidden * size  # and the final norms
    return kept + trains_vision(step) * vision


def trains_vision(step: Shapes) -> bool:
    """Whether there is a backward pass through the tower."""
    return "visual" in step.state.params


def trains_head(step: Shapes) -> bool:
    """Whether there is a gradient of what makes logits."""
    return ("embedding" if step.model.tied else "head") in step.state.params.get("text", {})


def head_bytes(step: Shapes) -> int:
    """The head as logits need it: whole but for tensor, in the compute dtype."""
    text = step.model.text
    return text.vocab * text.hidden // local(step).tensor * value_bytes(step)


def layer_bytes(step: Shapes) -> int:
    """One text layer's weights, whole but for tensor, in the compute dtype."""
    tensor = local(step).tensor
    leaves = _leaves(step.params)
    values = sum(math.prod(x.shape[1:]) for name, x in leaves if name.startswith("text/") and is_stacked(name))
    return values // tensor * value_bytes(step)


def _leaves(tree: Any) -> Iterable[tuple[str, Any]]:
    return [(path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
