"""The parts of a T-GRPO step as `jvr1.train_rl` runs them, timed one by one, and how their time grows with sizes."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jvr1.chips import chip_of
from jvr1.data.batch import Microbatch
from jvr1.model.attention import choose
from jvr1.model.lora import ADAPTERS, LoRAConfig
from jvr1.model.vision_language import init, merge
from jvr1.optimizers.config import OptimizerConfig
from jvr1.rl import tgrpo
from jvr1.rollout.decoder import make_decoder
from jvr1.rollout.generate import Room, Slots
from jvr1.rollout.queue import FOREVER
from jvr1.rollout.tasks import Task
from jvr1.sharding import make_mesh, param_shardings, put_batch
from jvr1.train import flops
from jvr1.train.optimizer import combine, make_optimizer, partition
from jvr1.train.reference import open_reference
from jvr1.train.state import abstract_state, init_state, make_update
from jvr1.train.steps import PolicyBatch, make_policy_gradients, make_reference_scores
from jvr1.train.trees import zeros_like

from .shapes import Shape, make_inputs, named, resized

CHUNK = 128
"""Tokens whose logits exist at a time, as `model.logit_chunk`."""


class Phase(NamedTuple):
    """A part of the step. run(prepare()) is what is timed; flops: useful ones; bytes: it must at least read, where
    that and not arithmetic is its limit."""

    run: Callable[[Any], Any]
    flops: float
    prepare: Callable[[], Any] = lambda: None
    bytes: float | None = None


def build(shape: Shape) -> tuple[nnx.GraphDef, dict]:
    """A model of random weights with the attention of this machine, all activations recomputed."""
    dtype = jnp.dtype(shape.dtype)
    backend = choose("auto", jax.default_backend(), dtype, shape.model.text.head_size)
    lora = LoRAConfig(shape.lora, 32.0) if shape.lora else None
    kept = dtype if lora else jnp.float32
    return init(shape.model, 0, lora=lora, dtype=dtype, param_dtype=kept, remat="full", attention=backend)


def open_phases(graphdef: nnx.GraphDef, params: dict, shape: Shape) -> dict[str, Phase]:
    """Of one microbatch on one device: trained parameters and moments in fp32, generation and the reference in the
    dtype of activations. generate: prefill and decode as a run has them; update: gradients and AdamW."""
    mesh, bucket, model = make_mesh({"data": 1}, jax.devices()[:1]), shape.bucket, shape.model
    params = jax.device_put(params, param_shardings(params, mesh))
    trained, frozen = partition(params, (), ADAPTERS if shape.lora else ".*")
    given, completions, _, advantages = make_inputs(shape)
    arrays, ids, advantage = put_batch((given, completions, advantages), mesh)
    written = jnp.ones(ids.shape, bool)
    decoder = make_decoder(graphdef, mesh, model, (model.image_token,), dtype=shape.dtype)  # an end never drawn
    kept = open_reference(graphdef, params, shape.dtype, adapters=bool(shape.lora))
    base, reference = kept.graphdef, kept.params
    rows = (shape.group, shape.shuffled) if shape.shuffled else (shape.group,)
    pairs = np.stack([given.visual.pair, given.shuffled][: len(rows)], axis=1)
    task = Task(Microbatch(bucket, given, ()), given, pairs, rows)
    how = {
        "room": Room(bucket.prompt, rows, rows),
        "sampling": decoder.sampling(bucket.completion, temperature=1.0),
    }
    key = jax.random.key(0)
    bits = np.asarray(jax.random.key_data(key))
    scores = make_reference_scores(base, mesh, temperature=1.0, chunk=CHUNK)
    tx = make_optimizer(OptimizerConfig(), trained)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(tx, trained, mesh))
    state = jax.jit(lambda p: init_state(tx, p), out_shardings=shardings)(trained)
    update = make_update(tx, shardings)
    algorithm = tgrpo.TGRPOConfig(beta=0.04)
    gradients = make_policy_gradients(graphdef, algorithm, shardings.params, temperature=1.0, chunk=CHUNK)
    anchor = put_batch(np.zeros(ids.shape, np.float32), mesh)
    encode = jax.jit(lambda weights, visual: merge(base, weights).visual(visual))
    prefill = jax.jit(lambda weights, x, pairs: merge(base, weights).prefill(x.prompt, x.visual, pairs))
    own_pairs = put_batch(pairs, mesh)

    def weights() -> dict:
        return decoder.weights(combine(state.params, frozen))

    def generate(_: Any = None) -> None:
        (sampled,) = decoder.answers(weights(), [task], key, temperature=1.0)
        assert (sampled.length == bucket.completion).all()

    def filled() -> tuple[dict, Slots]:
        laid_out = weights()
        return laid_out, jax.block_until_ready(decoder.programs.of(laid_out, bits, (given, pairs, task.limits), **how))

    def decode(ready: tuple[dict, Slots]) -> Any:
        slots, *_ = decoder.programs.advance(ready[0], bits, ready[1], shape.prompts, FOREVER, **how)
        return slots.lanes

    def score(_: Any = None) -> jax.Array:
        nonlocal anchor
        anchor = scores(reference, arrays, ids)
        return anchor

    def step_update(_: Any = None) -> Any:
        nonlocal state
        batch = PolicyBatch(
            arrays, ids, anchor, anchor, anchor, np.bool_(True), advantage, written, np.float32(ids.size)
        )
        total, *_ = gradients(state.params, frozen, zeros_like(state.params), batch)
        state, _ = update(state, total, np.bool_(True))
        return state

    def step(_: Any = None) -> Any:
        generate()
        score()
        return step_update()

    n, tokens = shape.prompts, bucket.completion
    counted = flops.trained_of(params, trained)
    update_flops = flops.scoring(model, bucket, shape.group, tokens, counted).both
    anchored = flops.scoring(model, bucket, shape.group, tokens).forward
    sampled = flops.completion_flops(model, bucket, sum(rows), tokens, counted)
    encoded = flops.prompt_flops(model, bucket, len(rows), counted)
    base_encoded = flops.prompt_flops(model, bucket, len(rows))
    seen = flops.vision_flops(model, bucket.steps, bucket.windows)
    return {
        "vision": Phase(lambda _: encode(reference, arrays.visual), n * seen),
        "prefill": Phase(lambda _: prefill(reference, arrays, own_pairs), n * base_encoded),
        "decode": Phase(
            decode,
            n * sampled,
            filled,
            read_bytes(weights(), shape, len(rows), sum(rows)),
        ),
        "generate": Phase(generate, n * (encoded + sampled)),
        "score": Phase(score, n * anchored),
        "update": Phase(step_update, n * update_flops),
        "step": Phase(step, n * (encoded + sampled + anchored + update_flops)),
    }  # fmt: skip


def read_bytes(weights: dict, shape: Shape, streams: int, rows: int) -> float:
    """Bytes that drawing a bucket's tokens reads: for each token the decoder's weights and all keys and values."""
    text, size = shape.model.text, jnp.dtype(shape.dtype).itemsize
    read = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights["text"]))
    if not shape.model.tied:
        read -= weights["text"]["embedding"].size * size  # looked up
    kv = 2 * text.layers * text.kv_heads * text.head_size * size
    tokens = streams * shape.bucket.prompt + rows * shape.bucket.completion / 2
    return shape.bucket.completion * (read + shape.prompts * kv * tokens)


def measure(phase: Phase, rounds: int) -> tuple[float, float]:
    """Seconds of the first run, which compiles, and the median of the others."""
    first, *others = (timed(phase) for _ in range(rounds + 1))
    return first, statistics.median(others)


def timed(phase: Phase) -> float:
    """Seconds of one run, all that it needs made before."""
    given = jax.block_until_ready(phase.prepare())
    start = time.perf_counter()
    jax.block_until_ready(phase.run(given))
    return time.perf_counter() - start


def run(part: str, name: str, rounds: int = 3) -> dict[str, Any]:
    """A part's time, the share of this device it makes use of, and its count. Raises UserError for an unknown shape."""
    shape = named(name)
    phases = open_phases(*build(shape), shape)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    phase = phases[part]
    first, seconds = measure(phase, rounds)
    device = jax.devices()[0]
    chip, stats = chip_of(device.device_kind), device.memory_stats() or {}
    figures: dict[str, Any] = {
        "shape": name,
        "device": device.device_kind,
        "seconds": seconds,
        "first_seconds": first,
        "programs": len(compiled),
        "flops": phase.flops,
        "flops_per_second": phase.flops / seconds,
        "peak_gib": stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30,
    }
    if chip is not None:
        figures["flops_share_of_peak"] = phase.flops / seconds / chip.flops
    if phase.bytes is not None:
        figures |= {"bytes": phase.bytes, "bytes_per_second": phase.bytes / seconds}
        if chip is not None:
            figures["bytes_share_of_bandwidth"] = phase.bytes / seconds / chip.bandwidth
    return figures


GROWTH = {
    "frames": (8, 16, 32, 64, 128),
    "group": (2, 4, 8, 16, 32),
    "completion": (32, 64, 128, 256, 512),
    "prompts": (1, 2, 4, 8),
    "layers": (2, 4, 8, 16),
}
GROWING = ("prefill", "decode", "score", "update")


class Cell(NamedTuple):
    """Of a part at a size. bytes: 0 where they are no limit."""

    seconds: float
    flops: float
    bytes: float

    def grew_more(self, than: Cell) -> float:
        """Time's growth over the count's: of FLOPs, or of bytes where they grew more."""
        counted = max(self.flops / than.flops, self.bytes / than.bytes if than.bytes else 0.0)
        return self.seconds / than.seconds / counted

    def __str__(self) -> str:
        read = f" {self.bytes / 1e9:.2f} GB" if self.bytes else ""
        return f"{self.seconds:.4f} s {self.flops / 1e9:.1f} GFLOP{read}"


def growth(name: str, rounds: int = 9) -> dict[str, Any]:
    """Parts of the step over each size, the others as they are: seconds, what is counted, and by how much time grew
    more than the count from a value to any larger one (1.3: 30% more). The values take turns, so that what else the
    machine does falls on all of them. Raises UserError for an unknown shape."""
    shape = named(name)
    tables: dict[str, dict[str, dict[int, Cell]]] = {}
    worst: dict[str, dict[str, float]] = {}
    for axis, values in GROWTH.items():
        sizes = {value: resized(shape, **{axis: value}) for value in values}
        phases = {value: open_phases(*build(size), size) for value, size in sizes.items()}
        for part in GROWING:
            seconds = [[timed(phases[value][part]) for value in values] for _ in range(rounds + 1)][1:]
            tables.setdefault(axis, {})[part] = {
                value: Cell(statistics.median(of_value), phases[value][part].flops, phases[value][part].bytes or 0.0)
                for value, *of_value in zip(values, *seconds, strict=True)
            }
        jax.clear_caches()
        for part, cells in tables[axis].items():
            pairs = [(a, b) for a in values for b in values if a < b]
            worst.setdefault(axis, {})[part] = max(cells[b].grew_more(cells[a]) for a, b in pairs)
    return {
        "shape": name,
        "device": jax.devices()[0].device_kind,
        "table": {
            axis: {part: {value: str(cell) for value, cell in cells.items()} for part, cells in of.items()}
            for axis, of in tables.items()
        },
        "grows_more_than_counted": worst,
    }
