"""A tiny model's folder in HF form, a Qwen2.5-VL or one of another family (`TINY_FORMS`): byte-level BPE trained on the
demo's words, the real template, random weights.

Special tokens have their real names and order; their ids follow the small vocabulary, and config.json names them.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jvr1.demo import tiny_qwen3_vl
from jvr1.demo.dataset import questions
from jvr1.demo.questions import HARD, LETTERS, TASKS, WARMUP, DemoQuestion
from jvr1.demo.scenes import GLYPHS
from jvr1.model import hf
from jvr1.model.families import TOKEN_PIXELS, from_hf
from jvr1.model.qwen2_5_vl import QWEN2_5_VL
from jvr1.model.qwen2_5_vl.config import MERGE, PATCH
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD
from jvr1.model.qwen3_vl import QWEN3_VL
from jvr1.model.vision_language import init

WORDS = 490
"""Size of the vocabulary before the 22 added tokens; 256 of them are the bytes."""
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen2.5-VL's special tokens in the order of their ids, 151643 and on in the published models."""
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Added tokens that are not special: decoding keeps them."""
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before byte-level BPE (HF `tokenization_qwen2.PRETOKENIZE_REGEX`)."""
BEFORE = r"""
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- if messages and messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
""".strip()
TURNS = r"""
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set seen.pictures = seen.pictures + 1 -%}
                {{- 'Picture ' ~ seen.pictures ~ ': ' if add_vision_id else '' -}}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'video' or 'video' in part -%}
                {%- set seen.videos = seen.videos + 1 -%}
                {{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id else '' -}}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()
CHAT_TEMPLATE = f"{BEFORE}\n{TURNS}"
"""Renders what Qwen2.5-VL's published template renders; written out for reading."""


SENTENCES = (
    "You are a helpful assistant.",
    "Please think about this question first. Provide your reasoning between the <think> </think> tags, and then give "
    "your final answer between the <answer> </answer> tags.",
    "Please provide only the single option letter (e.g., A, B, C, D, etc.) within the <answer> </answer> tags.",
    "Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags.",
    "Please transcribe text from the image/video clearly and provide your text answer within the tags.",
)
"""What prompts hold besides the questions."""
SYMBOLS = ("<think>", "</think>\n", "<answer>", "</answer>", "Options:\n", *LETTERS, *GLYPHS, *"0123456789")


def corpus(questions: Iterable[DemoQuestion]) -> Iterator[str]:
    """What the vocabulary is trained on.

    Tags stand apart from what they enclose, so that `>B` stays two tokens and its letter is that of the options.
    Written glyphs are left out: pieces of chance words would take the place of words.
    """
    for question in questions:
        written = [] if question.answer.isupper() else [question.thought, question.answer]
        options = (f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.options, strict=False))
        yield from (question.problem, *options, *written, *SYMBOLS)
    for sentence in SENTENCES:
        yield from re.split(r"(</?\w+>)", sentence)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE of `WORDS` tokens and Qwen2.5-VL's special tokens after them."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    raw.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return raw


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Of config.json."""
    names = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_token_id": "<|vision_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {field: tokenizer.token_to_id(name) for field, name in names.items()}


def raw_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json: 0.9M parameters; a 56x56 frame is one window, two frames are four tokens."""
    return {
        "model_type": QWEN2_5_VL.model_type,
        **token_ids(tokenizer),
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 352,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 128,
            "out_hidden_size": 128,
            "window_size": 2 * MERGE * PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    }


def processor_config() -> dict[str, Any]:
    """preprocessor_config.json: the published fields, pictures of 2x2 to 8x8 merged tokens."""
    least, most = 4 * TOKEN_PIXELS, 64 * TOKEN_PIXELS
    return {
        "min_pixels": least,
        "max_pixels": most,
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "image_processor_type": QWEN2_5_VL.processor.image_type,
        "processor_class": "Qwen2_5_VLProcessor",
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: both end tokens, as in the published models; plain sampling."""
    end, text_end = (tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>"))
    return {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "eos_token_id": [end, text_end],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def tokenizer_files(tokenizer: Tokenizer, template: str = CHAT_TEMPLATE) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and the template, as `AutoTokenizer` reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        chat_template=template,
        model_max_length=4096,
    )
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    settings = json.loads(files["tokenizer_config.json"])
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "chat_template": template}
    return files | {"tokenizer_config.json": json_bytes(settings)}


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


@dataclass(frozen=True)
class TinyForm:
    """What a family's tiny model has of its own. raw(tokenizer): its config.json; processor(): its
    preprocessor_config.json; sentences: what its prompts hold besides, as often as it counts for the vocabulary."""

    raw: Callable[[Tokenizer], dict[str, Any]]
    processor: Callable[[], dict[str, Any]]
    template: str = CHAT_TEMPLATE
    sentences: tuple[str, ...] = ()


TINY_FORMS: Mapping[str, TinyForm] = {
    QWEN2_5_VL.model_type: TinyForm(raw_config, processor_config),
    QWEN3_VL.model_type: TinyForm(
        lambda tokenizer: tiny_qwen3_vl.deep_config(token_ids(tokenizer), tokenizer.get_vocab_size()),
        tiny_qwen3_vl.deep_processor,
        "{%- set seen = namespace(pictures=0, videos=0) -%}\n" + TURNS,  # without a system prompt of its own
        tiny_qwen3_vl.STEP_TIMES,
    ),
}
"""By the family's `model_type`, the demo's own first."""


def write_tiny_model(folder: Path, seed: int, family: str = QWEN2_5_VL.model_type) -> None:
    """Writes the whole folder. Its vocabulary is the same whatever the seed and the size of the data set."""
    form = TINY_FORMS[family]
    texts = corpus(questions((*TASKS, *HARD, *WARMUP), each=48, seed=0))
    tokenizer = train_tokenizer(itertools.chain(texts, form.sentences))
    config = from_hf(form.raw(tokenizer))
    carried = tokenizer_files(tokenizer, form.template) | {
        "preprocessor_config.json": json_bytes(form.processor()),
        "generation_config.json": json_bytes(generation_config(tokenizer)),
    }
    hf.save(init(config, seed)[1], config, folder, carried=carried, dtype="float32")
