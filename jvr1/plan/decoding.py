"""The decode loops of a compiled program read: bytes of a chip's memory for each token, beside the least possible."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from jvr1.data.batch import Bucket
from jvr1.model.attention import Backend
from jvr1.plan.hlo import CompiledProgram
from jvr1.plan.memory import kv_bytes, local_generation, value_bytes
from jvr1.plan.programs import Shapes, chip_bytes, lower_phase, row_counts, slots_of
from jvr1.plan.traffic import CalledComputation, Traffic, frames, traffic
from jvr1.plan.work import mean_read
from jvr1.rollout.decoder import at_a_time
from jvr1.rollout.generate import reads

LOOP = "decode/while"
"""What the loops over tokens are traced under: `jvr1.rollout.generate.advance`."""


KERNEL = "__gpu$xla.gpu.triton"
"""What Pallas calls `flash_decoding` by on GPUs."""


@dataclass(frozen=True)
class TokenBytes:
    """Of one token of all rows that a chip decodes at a time, on that chip, the mean over completions of full length.

    weights, caches: read, of parameters and of keys and values, as they lie or from copies made within the loop.
    copied: parameter, or 'prefix' and 'ring' of keys and values -> written to make such copies. other: activations,
    logits, what is written for good. kernels: that start.
    """

    weights: float
    caches: float
    copied: dict[str, float]
    other: float
    kernels: float

    @property
    def all(self) -> float:
        return self.weights + self.caches + sum(self.copied.values()) + self.other


def decode_program(step: Shapes, bucket: Bucket) -> Any:
    """The program of the decode loops, lowered."""
    _, program = lower_phase(step, "generation", bucket)
    return program.lowered


def decode_loops(program: CompiledProgram) -> list[tuple[CalledComputation, CalledComputation]]:
    """Body and condition of each loop over tokens, in the order in which they run."""
    found: dict[str, dict[str, CalledComputation]] = {}
    names = {loop.instruction: loop for loop in program.loops(LOOP)}
    for frame in frames(program):
        loop = names.get(frame.by.name) if frame.by is not None else None
        if loop is not None and frame.here.name in (loop.body, loop.condition):
            found.setdefault(loop.instruction, {})[frame.here.name] = frame
    return [(found[name][loop.body], found[name][loop.condition]) for name, loop in names.items()]


def loop_traffic(program: CompiledProgram) -> list[Traffic]:
    """Of one token, in each of the loops."""
    found = []
    for body, condition in decode_loops(program):
        total = traffic(body, 1)
        total.add(traffic(condition, 1))
        found.append(total)
    return found


def token_bytes(program: CompiledProgram, bucket: Bucket, attention: Backend) -> TokenBytes:
    """What the loops of a compiled decode program read and write for a token of a bucket's completions. Of a ring that
    a kernel is given whole, the blocks that it reads count, those in use (`flash_decoding`)."""
    sizes = reads(bucket.completion, attention)
    sums: dict[str, float] = defaultdict(float)
    copied: dict[str, float] = defaultdict(float)
    for before, size, one in zip((0, *sizes), sizes, loop_traffic(program), strict=False):
        share = (size - before) / bucket.completion
        for source, count in one.read.items():
            name = parameter_name(source)
            kind = "caches" if name in ("prefix", "ring") else "weights" if name.startswith(_WEIGHTS) else "other"
            in_use = mean_read(size, size, attention) / size if name == "ring" and KERNEL in one.calls else 1.0
            sums[kind] += share * in_use * count
        for source, count in one.copied.items():
            name = parameter_name(source)
            if name in ("prefix", "ring") or name.startswith(_WEIGHTS):
                copied[name] += share * count
            else:
                sums["other"] += share * count
        sums["other"] += share * one.written
        sums["kernels"] += share * one.kernels
    return TokenBytes(sums["weights"], sums["caches"], dict(copied), sums["other"], sums["kernels"])


_WEIGHTS = ("text/", "visual/")


def parameter_name(source: str) -> str:
    """'text/layers/q/kernel' of "weights['text']['layers']['q']['kernel']"; 'prefix' or 'ring' of keys and values;
    another argument as it is. Arguments are those of `jvr1.rollout.queue`'s program."""
    if source.startswith("weights["):
        return "/".join(re.findall(r"\['(\w+)'\]", source))
    if source.startswith("held.kv"):
        return "prefix"
    return "ring" if source.startswith("cache.") else source


def least_bytes(step: Shapes, bucket: Bucket) -> tuple[int, float]:
    """The least that a chip reads for such a token: its part of the decoder's weights, once, and the keys and values in
    use, once: the prefix of each stream and of each row what it has written, half of its completion in the mean."""
    text, model = step.generation["text"], step.model
    weights = chip_bytes(text) - (0 if model.tied else chip_bytes(text["embedding"]))  # looked up
    counts, here, size = row_counts(step.config, bucket), local_generation(step, slots_of(step)), value_bytes(step)
    drawn = sum(at_a_time(counts, step.config.rl.lanes))
    prefix = kv_bytes(model, here, len(counts) * bucket.prompt, size)
    return weights, prefix + kv_bytes(model, here, drawn, size) * (bucket.completion + 1) / 2
