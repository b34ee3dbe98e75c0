"""What the phases of an optimizer step do on one chip: operations, bytes of memory, bytes of the link, counted."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from jvr1.chips import Chip
from jvr1.data.batch import Bucket
from jvr1.model.attention import Backend
from jvr1.model.config import ModelConfig
from jvr1.model.flash_decoding import block_of
from jvr1.plan import memory
from jvr1.plan.programs import STAGES, Shapes, chip_bytes, row_counts, slot_shape, slots_of, tape_of
from jvr1.rollout.decoder import at_a_time
from jvr1.rollout.generate import reads
from jvr1.train import flops

TOUCHED = {"forward": 4.0, "backward": 10.0}
"""How often a layer's attention scores are written or read where XLA computes it; a kernel does not write them."""


class Work(NamedTuple):
    """A phase of an optimizer step on one chip: floating-point operations, bytes of its memory, bytes of the link."""

    flops: float
    memory: float
    link: float

    def times(self, n: float | int) -> Work:
        return Work(*(n * part for part in self))

    def seconds(self, chip: Chip, of_peak: float = 1.0, of_bandwidth: float = 1.0) -> float:
        """What takes longest, all else hidden behind it: at best, or at shares of the peaks."""
        memory, link = (n / of_bandwidth for n in (self.memory / chip.bandwidth, self.link / chip.link))
        return max(self.flops / chip.flops / of_peak, memory, link)

    def bound(self, chip: Chip) -> str:
        """Which of the three that is."""
        times = {
            "compute": self.flops / chip.flops,
            "memory": self.memory / chip.bandwidth,
            "link": self.link / chip.link,
        }
        return max(times, key=lambda name: times[name])


def step_work(step: Shapes, bucket: Bucket, tokens: int | None = None) -> dict[str, Work]:
    """Phase -> its work on one chip in an optimizer step of batch.per_step microbatches of the bucket. tokens: mean
    length of a completion; the reference and the update read tapes that take it, or all that the bucket holds."""
    if step.stage == "sft":
        return _learning(step, bucket, bucket.completion)
    config, chips, times = step.config, step.mesh.size, step.config.batch.per_step
    written = float(min(tokens or bucket.completion, bucket.completion))
    sampling = _sampling(step, bucket, mean_read(bucket.completion, bucket.completion, step.attention))
    drawn = decode_steps(step, bucket.completion, written)
    read = (tape_of(step, bucket, written) or config.rl.group * bucket.completion) / config.rl.group
    _, scores = _scoring(step, bucket, read)
    copied, (layer_reads, received) = step.copied(), _reads(step, bucket)
    weights = chip_bytes([place.shape(x) for x, place in copied])
    rows = times * config.batch.micro / chips
    trained, counts = flops.trained_of(step.params, step.state.params), row_counts(config, bucket)
    completions = flops.completion_flops(step.model, bucket, sum(counts), written, trained)
    anchor = flops.scoring(step.model, bucket, config.rl.group, read)  # without adapters
    work = {
        "weights": Work(0.0, chip_bytes([x for x, _ in copied]) + weights, max(weights - weights / chips, 0.0)),
        "prefill": sampling.prefill.times(times),
        "decode": sampling.step.times(drawn)._replace(flops=rows * completions),
        "reference": Work(rows * anchor.forward, times * (layer_reads + TOUCHED["forward"] * scores), times * received),
        **_learning(step, bucket, read),
    }
    return {name: one for name, one in work.items() if name != "reference" or step.reference}


def _learning(step: Shapes, bucket: Bucket, read: float | int) -> dict[str, Work]:
    """Gradients and update of a step; read: tokens of a completion that go through the model."""
    config, times = step.config, step.config.batch.per_step
    passed, scores = _scoring(step, bucket, read)
    again = passed.head + (passed.layers if config.model.remat == "full" else 0.0)
    layer_reads, received = _reads(step, bucket)
    rows = times * config.batch.micro / step.mesh.size
    updates, applied = 1, 1
    if step.stage == "rl":
        updates, applied = config.rl.updates, config.rl.updates * config.rl.minibatches
    return {
        "gradients": Work(
            updates * rows * (passed.both + again),
            updates * times * (3 * layer_reads + TOUCHED["backward"] * scores),
            updates * times * 3 * received,
        ),
        "update": Work(0.0, applied * (2 * chip_bytes(step.state) + chip_bytes(step.total)), 0.0),
    }


def _reads(step: Shapes, bucket: Bucket) -> tuple[float | int, float]:
    """Bytes of weights that a pass over a microbatch reads of a chip's memory, and those it receives of others."""
    gathered, fsdp = memory.value_bytes(step) * _values(step), step.mesh.shape["fsdp"]
    chunks = math.ceil(bucket.completion / step.config.model.logit_chunk)
    return gathered + (chunks - 1) * memory.head_bytes(step), gathered * (fsdp - 1) / fsdp


def useful_flops(step: Shapes, bucket: Bucket) -> dict[str, float]:
    """Phase -> useful FLOPs of one microbatch on one chip, all completions of full length; nothing computed again."""
    rows = step.config.batch.micro / step.mesh.size
    anchor = flops.scoring(step.model, bucket, step.config.rl.group, bucket.completion)  # without adapters
    passed, _ = _scoring(step, bucket, bucket.completion)
    trained, counts = flops.trained_of(step.params, step.state.params), row_counts(step.config, bucket)
    encoded = flops.prompt_flops(step.model, bucket, len(counts), trained)
    sampled = flops.completion_flops(step.model, bucket, sum(counts), bucket.completion, trained)
    work = {
        "weights": 0.0,
        "generation": rows * (encoded + sampled),
        "reference": rows * anchor.forward,
        "gradients": rows * passed.both,
        "update": 0.0,
    }
    return {name: work[name] for name in STAGES[step.stage]}


class _Sampling(NamedTuple):
    """FLOPs, bytes and link bytes on one chip: of encoding a microbatch's prompts, of a step of decoding."""

    prefill: Work
    step: Work


def _sampling(step: Shapes, bucket: Bucket, tokens: float | int) -> _Sampling:
    """tokens: of the ring, as many as a step reads of it at the mean."""
    model, size = step.model, memory.value_bytes(step)
    entering, here = (memory.local_generation(step, n) for n in (step.config.batch.micro, slots_of(step)))
    shape, counts = slot_shape(step, bucket), row_counts(step.config, bucket)
    trained = flops.trained_of(step.params, step.state.params)
    streams, drawn = len(counts), sum(at_a_time(shape.rows, step.config.rl.lanes))
    weights = chip_bytes(step.generation)
    text = chip_bytes(step.generation["text"])
    if not model.tied:
        text -= chip_bytes(step.generation["text"]["embedding"])  # looked up, not read
    prefix = memory.kv_bytes(model, here, len(shape.rows) * shape.prompt, size)
    ring = memory.kv_bytes(model, here, drawn * shape.completion, size) / shape.completion
    scores = model.text.layers * streams * memory.text_scores(step, bucket, entering, 0)[1]
    scores += _full_layers(model, bucket) * streams * memory.vision_scores(model, bucket, entering)
    exchanged = 4 * model.text.layers * model.text.hidden * size * (here.tensor > 1)  # two all-reduces
    one_token = flops.completion_flops(model, bucket, drawn, tokens, trained) / tokens
    return _Sampling(
        Work(
            step.config.batch.micro * flops.prompt_flops(model, bucket, streams, trained) / step.mesh.size,
            weights + TOUCHED["forward"] * scores,
            exchanged * entering.rows * streams * bucket.prompt,
        ),
        Work(
            here.rows * one_token / here.tensor,
            text + prefix + tokens * ring,
            here.rows * drawn * (exchanged + model.text.vocab * memory.FLOAT * (here.tensor > 1)),
        ),
    )


def mean_read(completion: int, tokens: float | int, attention: Backend) -> float:
    """Entries of the ring that a step reads at the mean, while `tokens` tokens are drawn into one of `completion`."""
    if attention == "cudnn":  # blocks that hold what is in use
        block = block_of(completion)
        return sum(-(-t // block) * block for t in range(1, math.ceil(tokens) + 1)) / math.ceil(tokens)
    read, done = 0.0, 0.0
    for size in reads(completion, attention):
        here = max(min(tokens, size) - done, 0.0)
        read, done = read + here * size, done + here
    return read / tokens


def decode_steps(step: Shapes, longest: int, tokens: float | int) -> float:
    """Steps of decoding in an optimizer step: to the end of the longest completion, and before that, where prompts wait
    for slots, as many as the others take at the mean."""
    rounds = step.config.batch.micro * step.config.batch.per_step / slots_of(step)
    return longest + max(rounds - 1.0, 0.0) * tokens


def _scoring(step: Shapes, bucket: Bucket, tokens: float | int) -> tuple[flops.Pass, int]:
    """FLOPs of a prompt and its completions of a mean length, and bytes of a chip's attention scores over a microbatch,
    as they are written."""
    model, group, here = step.model, step.config.rl.group, memory.local(step)
    trained, on_prompt = flops.trained_of(step.params, step.state.params), step.config.sft.loss_on_prompt
    once = flops.scoring(model, bucket, group, tokens, trained, on_prompt=on_prompt and step.stage == "sft")
    scores = model.text.layers * memory.text_scores(step, bucket, here, group, tokens)[1]
    return once, scores + _full_layers(model, bucket) * memory.vision_scores(model, bucket, here)


def _full_layers(model: ModelConfig, bucket: Bucket) -> int:
    """Layers of the tower whose attention scores are counted."""
    return model.family.tower_scores(model.vision, bucket.windows).layers


def _values(step: Shapes) -> float:
    """Values of the weights as a pass reads them, once: whole but for tensor."""
    return sum(x.size for x in jax.tree.leaves(step.params)) / step.mesh.shape["tensor"]
