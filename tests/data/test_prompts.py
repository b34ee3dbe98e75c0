"""Prompts: Video-R1's constants word for word, the chat, placeholders, targets."""

from dataclasses import replace

import numpy as np
import pytest
from cases import grids, record
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from jvr1.data.prompts import TEMPLATES, PlaceholderError, PromptStyle, end_ids, prompt_ids, target_ids
from jvr1.errors import UserError
from jvr1.problems.kinds import KINDS

QUESTION = "{Question}\nPlease think about this question as if you were a human pondering deeply. Engage in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', 'let's break it down', etc, or other natural language thought expressions It's encouraged to include self-reflection or verification in the reasoning process. Provide your detailed reasoning between the <think> </think> tags, and then give your final answer between the <answer> </answer> tags."  # noqa: E501
SUFFIX = {
    "multiple choice": " Please provide only the single option letter (e.g., A, B, C, D, etc.) within the <answer> </answer> tags.",  # noqa: E501
    "numerical": " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags.",
    "OCR": " Please transcribe text from the image/video clearly and provide your text answer within the <answer> </answer> tags.",  # noqa: E501
    "free-form": " Please provide your text answer within the <answer> </answer> tags.",
    "regression": " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags.",
}
"""Video-R1's own strings, from its training script."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
REFERENCE = PromptStyle()


def shown(tokenizer, config, one, style=REFERENCE, tokens=(1,)):
    return tokenizer.decode(prompt_ids(tokenizer, one, style, grids(*tokens), config))


def chat(media, question, system=SYSTEM):
    return f"{system}<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"


def test_the_constants_are_the_reference_s():
    assert TEMPLATES["reference"] == QUESTION
    evaluation = QUESTION.replace("<think> </think>", "<think> and </think>")
    assert TEMPLATES["reference-eval"] == evaluation.replace("<answer> </answer>", "<answer> and </answer>")
    assert {name: KINDS[name].suffix for name in SUFFIX} == SUFFIX


@pytest.mark.parametrize("kind", SUFFIX)
def test_prompts_word_for_word(tokenizer, config, kind):
    one = record(problem="which {Question}, 5,000 or 3?\n", problem_type=kind)
    options = "Options:\nA. red\nB. blue\n" if kind == "multiple choice" else ""
    media = "<|vision_start|><|video_pad|><|vision_end|>"
    want = QUESTION.replace("{Question}", one.problem + options) + SUFFIX[kind]
    assert shown(tokenizer, config, one) == chat(media, want)


def test_system_prompt_and_template_are_settings(tokenizer, config):
    one = record(problem_type="free-form", data_type="image", path="a.png")
    style = PromptStyle("Q: {Question} A:", suffixes=False, system="You are a helpful assistant")
    system = SYSTEM.replace("assistant.", "assistant")
    want = chat("<|vision_start|><|image_pad|><|vision_end|>", "Q: which colour came third? A:", system)
    assert shown(tokenizer, config, one, style) == want
    assert shown(tokenizer, config, one, PromptStyle("{Question}", False, "")).startswith(
        "<|im_start|>system\n<|im_end|>"
    )


def test_media_come_first_and_each_placeholder_is_repeated_as_often_as_its_medium_has_tokens(tokenizer, config):
    style = PromptStyle("{Question}", suffixes=False)
    one = record(problem="x", problem_type="OCR", data_type="image", path=("a.png", "b.png"))
    media = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (3, 5))
    assert shown(tokenizer, config, one, style, (3, 5)) == chat(media, "x")
    assert shown(tokenizer, config, record(problem="x", problem_type="OCR", data_type="text"), style, ()) == chat(
        "", "x"
    )


@pytest.mark.parametrize("text", ["<|video_pad|>", "is <|image_pad|> a token?"])
def test_a_placeholder_in_text_that_counts_is_refused(tokenizer, config, text):
    style = replace(REFERENCE, special_tokens=True)
    with pytest.raises(PlaceholderError, match="2 visual placeholders for 1 media"):
        prompt_ids(tokenizer, record(problem=text), style, grids(4), config)
    with pytest.raises(PlaceholderError, match="1 visual placeholders for 0 media"):
        prompt_ids(tokenizer, record(problem=text, data_type="text", path=None), style, (), config)
    with pytest.raises(PlaceholderError, match="answer to learn"):
        target_ids(tokenizer, record(process=f"<think>{text}</think>"), style, 0, config)


def test_targets(tokenizer, config):
    end, other = end_ids(tokenizer, config)
    assert tokenizer.convert_ids_to_tokens([end, other]) == ["<|im_end|>", "<|endoftext|>"]
    ids = target_ids(tokenizer, record(), REFERENCE, end, config)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "<think>red then blue</think>\n<answer>B</answer><|im_end|>"
    assert (
        tokenizer.decode(target_ids(tokenizer, record(process=None), REFERENCE, end, config))
        == "<answer>B</answer><|im_end|>"
    )


@pytest.mark.parametrize("unknown", [None, "?"])
def test_a_foreign_tokenizer_is_refused(config, unknown):
    words = Tokenizer(models.WordLevel({"?": 0, "red": 1}, unk_token="?"))
    with pytest.raises(UserError, match="not one of Qwen"):
        end_ids(PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown), config)
