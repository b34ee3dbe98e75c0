"""The demo's temporal grounding is learned from its reward: judge, advantages and loss on a policy that is a table.

`tests/train/test_grounding_run.py` has the model for it, nightly.
"""

from __future__ import annotations

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

from jvr1.data.batch import Arrays, Microbatch, Row, make_buckets
from jvr1.data.records import parse_record
from jvr1.demo.dataset import Split, items, record
from jvr1.demo.questions import GROUNDING
from jvr1.rl import tgrpo
from jvr1.rl.judge import Judge
from jvr1.rl.objectives import policy_loss
from jvr1.rollout.tasks import Sampled

BUCKET = make_buckets((("video", 4, 1, 66, 6),))[0]
SPANS = [f"{start} to {end}" for start, end in combinations(range(5), 2)]
CONFIG = tgrpo.TGRPOConfig(alpha=0.0, gate="none", length_reward=0.0, beta=0.0)
GROUP = 8


@jax.jit
def gradient(logits, chosen, scores):
    result = tgrpo.advantages(scores, CONFIG)

    def loss(logits):
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=1)[..., None]
        return policy_loss(logp, None, None, result.advantage, jnp.ones(logp.shape, bool), jnp.float32(80), CONFIG)[0]

    return jax.grad(loss)(logits)


def test_mean_iou_rises():
    """A question of each span, a table of answers for each: from chance to nearly all of each span."""
    asked, rng = {}, np.random.default_rng(0)
    for number, item in enumerate(items(Split("grounding_rl", GROUNDING, 40), 7, 0)):
        question = item.question()
        asked.setdefault(
            question.answer, parse_record(record(Split("x", GROUNDING, 1), item, question, number, "./a.mp4"))
        )
    assert len(asked) == 10
    arrays = Arrays(*[None] * 5, np.ones(10, bool), np.full(10, 8), None)
    micro = Microbatch(BUCKET, arrays, tuple(Row(0, i, one) for i, one in enumerate(asked.values())))
    shape = (10, GROUP)
    sampled = Sampled(np.zeros((*shape, 6), np.int32), np.full(shape, 5), np.ones(shape, bool), np.zeros((*shape, 6)))
    judge, logits, ious = Judge("robust"), jnp.zeros((10, 10)), []
    for _ in range(60):
        noise = rng.gumbel(size=(10, GROUP, 10))
        chosen = (np.asarray(logits)[:, None] + noise).argmax(-1)
        texts = [[f"<think>.</think><answer>{SPANS[i]}</answer>" for i in row] for row in chosen]
        judged = judge(micro, texts, sampled, (GROUP,))
        ious.append(float(judged.rollout.accuracy.mean()))
        logits = logits - 8.0 * gradient(logits, chosen, jax.tree.map(jnp.asarray, judged.rollout))
    assert np.mean(ious[:2]) < 0.4
    assert np.mean(ious[-5:]) > 0.85
