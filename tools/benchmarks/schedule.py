"""Decode steps of an optimizer step on the published mixture of buckets, simulated: the run's own schedule and queue,
with programs that only count.

Apart: a queue for each bucket, with slots for a microbatch. Together: one for all, with slots for all prompts of the
step, in the shapes that `slot_shapes` gives the config. Lengths of completions are drawn as in queue.py; what a step
takes is given as a multiple of its longest completion.

And what of the completions' places in the update is padding: each completion padded to C tokens; on tapes as long as
the microbatch's longest row needs, one of a few lengths (`rl.packing`); and on such tapes if a step's prompts of a
bucket were sorted by their tokens into microbatches, which the run does not do. Lengths are independent of each other,
or alike in a prompt.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.data.schedule import Pool, Schedule
from jvr1.data.share import ALONE
from jvr1.model.families import published
from jvr1.plan.planning import abstract_mesh, changed
from jvr1.plan.programs import generation_mesh
from jvr1.rollout.decoder import shape_of
from jvr1.rollout.generate import Room
from jvr1.rollout.queue import Programs, answer_queue
from jvr1.rollout.sampling import Sampling
from jvr1.rollout.tasks import Sampled, SlotShape, Task
from jvr1.train.packing import tape_size
from jvr1.train.rollouts import rows_of, slot_shapes

from .data import CONFIGS, in_buckets, mixture_needs
from .queue import draw_lengths

ROWS, STEPS = 20_000, 200
MESH = {"mesh.fsdp": 8, "mesh.decode_tensor": 4}


class _Prompts(NamedTuple):
    """In the place of a microbatch's arrays: of each prompt, its longest completion."""

    valid: np.ndarray
    longest: np.ndarray


class _Micro(NamedTuple):
    bucket: Bucket


class _Count:
    """Programs of a queue that decode nothing: how many steps they would take."""

    def __init__(self) -> None:
        self.steps = 0

    def begin(self, weights: dict, slots: int, **how: Any) -> _Count:
        self.left = np.zeros(slots, int)
        return self

    def refill(self, weights: dict, bits: Any, slots: Any, inputs: Any, into: np.ndarray, **how: Any) -> _Count:
        real = into[0] < len(self.left)
        self.left[into[0][real]] = inputs[0].longest[real]
        return self

    def advance(self, weights: dict, bits: Any, slots: Any, enough: int, more: int, **how: Any) -> tuple[Any, ...]:
        taken = int(np.partition(self.left, enough - 1)[enough - 1]) if enough else 0
        self.steps, self.left = self.steps + taken, np.maximum(self.left - taken, 0)
        return self, self.left == 0, np.bool_(False)

    def results(self, slots: Any) -> Sampled:
        nothing = np.zeros((len(self.left), 0))
        return Sampled(nothing[..., None].astype(int), nothing.astype(int), nothing > 0, nothing[..., None])

    def programs(self) -> Programs:
        def nothing(*_: Any, **__: Any) -> tuple[()]:
            return ()

        return Programs(ALONE, 1, self.begin, self.refill, self.advance, lambda slots: slots, self.results, nothing)


def run() -> dict[str, Any]:
    config = changed(settings.from_file(str(CONFIGS / "tgrpo_7b.py")), MESH)
    model = published("7b")
    rows: dict[Bucket, list[int]] = defaultdict(list)
    for number, filled in enumerate(in_buckets(mixture_needs(ROWS, config), settings.buckets(config), model)):
        if filled is not None:
            rows[filled.bucket].append(number)
    pools = [Pool(bucket, np.asarray(numbers), 1.0) for bucket, numbers in rows.items()]
    schedule = Schedule(pools, config.batch.micro, config.seed)
    generation = generation_mesh(abstract_mesh(config), config.mesh.decode_tensor)
    shapes = slot_shapes(config, model, generation, config.rl.shuffled)
    group, shuffled, per_step = config.rl.group, config.rl.shuffled, config.batch.per_step
    prompts = config.batch.micro * per_step
    lengths = draw_lengths(STEPS * prompts * (group + shuffled), max(shape.completion for shape in shapes))
    drawn = lengths.reshape(STEPS, per_step, config.batch.micro, group + shuffled)
    apart, together, buckets, of_steps = [], [], [], []
    for step, of_step in enumerate(drawn):
        tasks, most = [], 0
        for at, of_micro in enumerate(of_step):
            bucket = schedule.micro(step * per_step + at).bucket
            counts = rows_of(bucket, group, shuffled)
            longest = of_micro[:, : sum(counts)].max(axis=1)
            most = max(most, int(longest.max()))
            given: Any = _Prompts(np.ones(len(longest), bool), longest)
            micro: Any = _Micro(bucket)
            tasks.append(Task(micro, given, None, counts))
        of_steps.append([task.micro.bucket for task in tasks])
        buckets.append(len(set(of_steps[-1])))
        apart.append(decode_steps(tasks, (), config.batch.micro) / most)
        together.append(decode_steps(tasks, shapes, prompts) / most)
    return {
        "prompts_a_step": prompts,
        "buckets_a_step": statistics.mean(buckets),
        "shapes": len(shapes),
        "steps_of_the_longest": {"apart": statistics.mean(apart), "together": statistics.mean(together)},
        "padding_in_the_update": {
            "independent": padding(config, of_steps, drawn[..., :group]),
            "alike_in_a_prompt": padding(config, of_steps, alike(drawn[..., :group])),
        },
    }


def alike(lengths: np.ndarray) -> np.ndarray:
    """The same lengths [steps, microbatches, rows, G] in another order: half of the variance of what they are sorted by
    is the prompt's."""
    rng = np.random.default_rng(1)
    order = rng.normal(size=lengths.shape) + rng.normal(size=(*lengths.shape[:-1], 1))
    out = np.empty(lengths.size, lengths.dtype)
    out[order.reshape(-1).argsort()] = np.sort(lengths, axis=None)
    return out.reshape(lengths.shape)


def padding(config: Any, buckets: Sequence[Sequence[Bucket]], lengths: np.ndarray) -> dict[str, float]:
    """Share of the places of completions [steps, microbatches, rows, G] that is padding, by how they are laid."""
    group, micro = config.rl.group, config.batch.micro
    tokens, places = 0, dict.fromkeys(("padded", "packed", "packed_and_sorted"), 0)

    def tapes(rows: np.ndarray, bucket: Bucket) -> int:
        size = tape_size(int(rows.max()), group, bucket.completion, config.rl.packing)
        return len(rows) * (size or group * bucket.completion)

    for of_step, drawn in zip(buckets, lengths.sum(axis=-1), strict=True):
        tokens += int(drawn.sum())
        for bucket in set(of_step):
            own = drawn[[b == bucket for b in of_step]]
            places["padded"] += own.size * group * bucket.completion
            places["packed"] += sum(tapes(rows, bucket) for rows in own)
            places["packed_and_sorted"] += sum(tapes(rows, bucket) for rows in np.sort(own, None).reshape(-1, micro))
    return {name: 1 - tokens / n for name, n in places.items()}


def decode_steps(tasks: Sequence[Task], shapes: Sequence[SlotShape], slots: int) -> int:
    """Of all tasks: those of a shape as one queue."""
    counted, sampling = _Count(), Sampling(max(task.micro.bucket.completion for task in tasks), ())
    for shape in dict.fromkeys(map(partial(shape_of, shapes), tasks)):
        own = [task for task in tasks if shape_of(shapes, task) == shape]
        room = Room(shape.prompt, shape.rows, shape.rows)
        list(answer_queue(counted.programs(), {}, own, jax.random.key(0), sampling, room, slots))
    return counted.steps
