"""Questions that the processes of a run share out among them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from jvr1.data.pipeline import Pipeline
from jvr1.data.share import Share
from jvr1.processes.peers import gather
from jvr1.questions.asking import VALIDATION, answer_questions
from jvr1.questions.own_accuracy import with_own_accuracy
from jvr1.questions.replies import Question, from_line, to_line
from jvr1.rl.user_values import UserValues
from jvr1.rollout.tasks import Decode


def answer_all(
    pipeline: Pipeline,
    count: int,
    decode: Decode,
    tokenizer: PreTrainedTokenizerBase,
    share: Share,
    user: UserValues | None = None,
) -> list[Question]:
    """Greedy answers to questions, videos on ordered and on shuffled frames: on every process those of all. user: gives
    the accuracy of some problem types."""
    batches = answer_questions(pipeline.microbatches(0, count, {}), decode, tokenizer, VALIDATION)
    own = [question for batch in batches for question in batch]
    every = gather([to_line(question) for question in with_own_accuracy(own, user)] if share.owner else [])
    found = [from_line(line, pipeline.store) for lines in every for line in lines]
    return sorted(found, key=lambda question: question.number)
