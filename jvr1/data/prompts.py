"""From a record to token ids: question template, its kind's suffix, chat template, visual placeholders, SFT targets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from jvr1.data.plain import Marked, marked, text_ids
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid
from jvr1.problems.kinds import kind_of

_THINKING = (
    "{Question}\nPlease think about this question as if you were a human pondering deeply. Engage in an internal "
    "dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', 'let's break it down', etc, or "
    "other natural language thought expressions It's encouraged to include self-reflection or verification in the "
    "reasoning process. Provide your detailed reasoning between the <think> {and}</think> tags, and then give your "
    "final answer between the <answer> {and}</answer> tags."
)
TEMPLATES = MappingProxyType(
    {
        "reference": _THINKING.replace("{and}", ""),
        "reference-eval": _THINKING.replace("{and}", "and "),
        "plain": "{Question}",
    }
)
"""Question templates by name. The reference ones are word for word those of Video-R1, whose checkpoints expect them."""


THINK = "<think>"


class PlaceholderError(ValueError):
    """Text that spells out <|image_pad|> or <|video_pad|>: the model would look there for pixels."""


@dataclass(frozen=True)
class PromptStyle:
    """How a question is put. `system` None leaves the system prompt to the chat template ("... assistant.").
    special_tokens: whether <|im_end|> and the like in a record's text are tokens, as they are to the reference; else
    they are the characters they are. form: one of the family's `forms`; empty: its own `placeholders`."""

    template: str = TEMPLATES["reference"]
    suffixes: bool = True
    system: str | None = None
    special_tokens: bool = False
    form: str = ""


def question_text(record: Record) -> str:
    """The question, and for kinds that list them its options, one a line."""
    if not kind_of(record.problem_type).lists_options:
        return record.problem
    return record.problem + "Options:\n" + "".join(f"{option}\n" for option in record.options)


def messages(record: Record, style: PromptStyle, media: int) -> list[dict]:
    """The conversation up to the answer, in the form chat templates take: media first, then the question."""
    text = style.template.replace("{Question}", question_text(record))
    if style.suffixes:
        text += kind_of(record.problem_type).ending(record.further)
    content = [{"type": record.data_type} for _ in range(media)] + [{"type": "text", "text": text}]
    system = [] if style.system is None else [{"role": "system", "content": style.system}]
    return [*system, {"role": "user", "content": content}]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    style: PromptStyle,
    grids: Sequence[Grid],
    config: ModelConfig,
) -> Int32[np.ndarray, " T"]:
    """Ids of the prompt; what stands for medium i is what the model's family writes for grids[i].

    Raises PlaceholderError when the question's own text holds a visual placeholder that counts as one.
    """
    texts = (record.problem, *record.options)
    own = Marked(texts, "") if style.special_tokens else marked(tokenizer, texts)
    asked = dataclasses.replace(record, problem=own.texts[0], options=own.texts[1:])
    chat = tokenizer.apply_chat_template(messages(asked, style, len(grids)), tokenize=False, add_generation_prompt=True)
    ids = np.asarray(own.ids(tokenizer, str(chat)), np.int32)
    found = int(np.isin(ids, config.visual_tokens).sum())
    if found != len(grids):
        raise PlaceholderError(f"the prompt holds {found} visual placeholders for {len(grids)} media")
    return placeholders_of(style, config)(ids, grids, config, tokenizer)


def placeholders_of(style: PromptStyle, config: ModelConfig) -> Callable[..., Int32[np.ndarray, " T"]]:
    """How the family writes media in the prompts of this style. Raises UserError for a form that it has not."""
    family = config.family
    if style.form and style.form not in family.forms:
        known = f"those of {family.title} are {', '.join(family.forms)}" if family.forms else f"{family.title} has one"
        raise UserError(f"data.prompt_form is {style.form!r}; {known}: leave it empty for the first")
    return family.forms[style.form] if style.form else family.placeholders


def target_ids(
    tokenizer: PreTrainedTokenizerBase, record: Record, style: PromptStyle, end_id: int, config: ModelConfig
) -> Int32[np.ndarray, " t"]:
    """Ids of the answer SFT learns: the chain of thought, a newline, the solution, the end token. Without the tag that
    the prompt has opened (`opened`), or where there is no chain of thought, with one that closes it at once.

    Raises PlaceholderError when it holds a visual placeholder, which no answer may.
    """
    text = record.solution if record.process is None else f"{record.process}\n{record.solution}"
    if opened(tokenizer):
        text = text.removeprefix(THINK).removeprefix("\n") if text.startswith(THINK) else f"</think>\n{text}"
    own = Marked((), "").ids(tokenizer, text) if style.special_tokens else text_ids(tokenizer, text)
    ids = np.asarray([*own, end_id], np.int32)
    if np.isin(ids, config.visual_tokens).any():
        raise PlaceholderError("the answer to learn holds a visual placeholder")
    return ids


@functools.lru_cache(maxsize=4)
def opened(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes of the answer itself, at the end of the prompt: '<think>' and a newline with models
    that always think, nothing with others. It belongs to what is scored and shown."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    chat: list[Any] = [{"role": "user", "content": [{"type": "text", "text": ""}]}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    _, tag, after = text.rpartition(THINK)
    return tag + after if tag and not after.strip() else ""


def end_ids(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> tuple[int, ...]:
    """Ids that end an answer, the chat template's first. Raises UserError where the tokenizer knows none."""
    names = config.family.ends
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    # what the tokenizer does not know becomes its unknown token, which for Qwen2 is <|endoftext|> itself
    known = [
        i
        for i, name in zip(ids, names, strict=True)
        if isinstance(i, int) and tokenizer.convert_ids_to_tokens(i) == name
    ]
    if not known:
        missing = " nor ".join(names)
        raise UserError(f"the tokenizer knows neither {missing}; it is not one of {config.family.title}")
    return tuple(known)
