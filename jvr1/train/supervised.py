"""The update of the mains that learn answers as they stand: from the data (train_sft), or drawn (train_bestofn)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from jvr1.data.batch import Microbatch
from jvr1.sharding import put_batch
from jvr1.train.flops import sft_flops, trained_of
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally
from jvr1.train.steps import make_answer_count, make_answer_gradients
from jvr1.train.trees import zeros_like


def make_learn(
    loop: Loop, *, on_prompt: bool = False
) -> Callable[[Sequence[Microbatch]], tuple[Tally, Float[Array, ""]]]:
    """learn(microbatches) -> statistics, and tokens in the targets, of one optimizer step on the mean negative
    log-probability of those tokens; without any the parameters stay. on_prompt: prompts are learned too."""
    run = loop.run_
    count = make_answer_count(on_prompt=on_prompt)
    chunk, trained = run.settings.model.logit_chunk, trained_of(run.params, run.trainable)
    gradients = make_answer_gradients(run.graphdef, run.shardings, chunk=chunk, on_prompt=on_prompt)

    def learn(microbatches: Sequence[Microbatch]) -> tuple[Tally, Float[Array, ""]]:
        put = [put_batch(micro.arrays, run.mesh) for micro in microbatches]
        counts = [count(arrays) for arrays in put]
        denominator = sum(c for c, _ in counts)
        total, tally = zeros_like(loop.state.params), Tally()
        for micro, arrays in zip(microbatches, put, strict=True):
            total, loss, statistics = gradients(loop.state.params, run.frozen, total, arrays, denominator)
            tally = tally.add({"loss": (loss, 1.0 / len(put)), **statistics})
            answer = float(micro.arrays.target_mask.sum(axis=1).mean())
            size = len(micro.rows)
            flops = sft_flops(run.config, micro.bucket, size, answer, on_prompt=on_prompt, trained=trained)
            tally = tally.add({"flops": (flops, 1.0)})
        tally = tally.add(loop.update(total, has_rows=bool(denominator > 0)))
        return tally, sum(tokens for _, tokens in counts)

    return learn
