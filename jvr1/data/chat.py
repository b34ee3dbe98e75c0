"""Whether a tokenizer and its chat template fit a model, seen when they are opened; the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from jvr1.data.processor import extra_ends
from jvr1.data.prompts import end_ids
from jvr1.errors import UserError, shown
from jvr1.model.config import ModelConfig

QUESTION = "which colour came third?"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: ModelConfig, name: str) -> None:
    """Raises UserError, naming the model, where ids lie beyond its table of embeddings (the device would take its last
    row for all of them), or the chat template does not put a question after its image or video."""
    rows = model.text.vocab
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"{name}: {len(beyond)} tokens of the tokenizer lie beyond the table of {rows} rows, the first "
            f"{shown(token)} = {number}; take the model's own tokenizer files, or resize its table "
            "(resize_token_embeddings)"
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"{name} has no chat template in chat_template.jinja, chat_template.json or tokenizer_config.json; copy "
            f"that of the model it was made of"
        )
    content: list[dict[str, str]] = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": QUESTION}]
    chat: list[Any] = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # a template is a program
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{name}: the chat template cannot be used: {reason}") from None
    images, videos = map(ids.count, model.visual_tokens)
    if (images, videos) != (1, 1) or QUESTION not in text:
        raise UserError(
            f"{name}: the chat template and tokenizer make of an image, a video and a question {images} image and "
            f"{videos} video placeholders (ids {model.image_token}, {model.video_token} by config.json), where one "
            f"each and the question belong; one of text alone? take those of {model.family.title}"
        )


def ends_of(tokenizer: PreTrainedTokenizerBase, carried: Mapping[str, bytes], model: ModelConfig) -> tuple[int, ...]:
    """Ids that end an answer: those of `end_ids`, and between them those that generation_config.json names besides."""
    first, *others = end_ids(tokenizer, model)
    more = [i for i in extra_ends(carried, model.text.vocab) if i not in (first, *others)]
    return (first, *more, *others)
