"""Questions that the processes of a run share out among them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from jvr1.data.pipeline import Pipeline
from jvr1.data.share import Share
from jvr1.processes.peers import gather
from jvr1.questions.asking import VALIDATION, answer_questions
from jvr1.questions.replies import Question, from_line, to_line
from jvr1.rollout.tasks import Decode


def answer_all(
    pipeline: Pipeline, count: int, decode: Decode, tokenizer: PreTrainedTokenizerBase, share: Share
) -> list[Question]:
    """Greedy answers to questions, videos on ordered and on shuffled frames: on every process those of all."""
    batches = answer_questions(pipeline.microbatches(0, count, {}), decode, tokenizer, VALIDATION)
    own = [to_line(question) for batch in batches for question in batch]
    every = gather(own if share.owner else [])
    found = [from_line(line, pipeline.store) for lines in every for line in lines]
    return sorted(found, key=lambda question: question.number)
