"""The tiny model's folder: tokenizer, template, configuration, weights; judged by transformers and torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jvr1.demo.dataset import questions
from jvr1.demo.questions import COLOURS, DIRECTIONS, HARD, TASKS, WARMUP
from jvr1.demo.tiny_model import SPECIAL, write_tiny_model

PUBLISHED = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
"""Ids 151643 to 151664 of the published models."""


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


def test_the_tokenizer_loads_without_torch(tiny, tokenizer):
    text = "<think>red</think>\n<answer>B</answer><|im_end|>"
    code = (
        "import importlib.util as u, sys; find = u.find_spec; sys.modules['torch'] = None\n"
        "u.find_spec = lambda name, *a: None if name.split('.')[0] == 'torch' else find(name, *a)\n"
        "from transformers import AutoTokenizer\n"
        f"print(AutoTokenizer.from_pretrained({str(tiny)!r})({text!r}).input_ids)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tokenizer(text).input_ids


def test_special_tokens_have_their_names_order_and_use(tiny, tokenizer):
    ids = tokenizer.convert_tokens_to_ids(PUBLISHED)
    assert ids == list(range(490, 512))
    assert len(tokenizer) == 512
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.bos_token is None
    config = json.loads((tiny / "config.json").read_text())
    named = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "eos_token_id": "<|im_end|>",
        "bos_token_id": "<|endoftext|>",
    }
    assert {f: config[f] for f in named} == {f: tokenizer.convert_tokens_to_ids(t) for f, t in named.items()}
    assert config["vocab_size"] == 512
    generation = GenerationConfig.from_pretrained(tiny)
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    text = "a" + "".join(PUBLISHED) + "b"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == "a" + "".join(PUBLISHED[14:]) + "b"
    assert tuple(PUBLISHED[:14]) == SPECIAL


def test_text_survives_the_round_trip(tokenizer):
    texts = [q.thought + q.problem + "".join(q.options) for q in questions((*TASKS, *HARD, *WARMUP), 6, seed=8)]
    for text in [*texts, "  two  spaces\n\n\ttab ", "ünïcode 视频 🎬 é", "a\r\nb", "<|im_start|>user\n</think>", ""]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_demos_words_are_few_tokens(tokenizer):
    words = [f" {w}" for w in (*COLOURS, *DIRECTIONS, "first", "second", "third", "fourth", "then", "so", "is")]
    for word in [*words, *COLOURS, *DIRECTIONS, *"ABCD", *"0123456789", "which", " colour", " came"]:
        assert len(tokenizer.tokenize(word)) == 1, word
    reply = "<think>red then green then blue then yellow so third is blue=B</think>\n<answer>B</answer><|im_end|>"
    assert tokenizer.tokenize(reply) == [
        "<think", ">", "red", "Ġthen", "Ġgreen", "Ġthen", "Ġblue", "Ġthen", "Ġyellow", "Ġso", "Ġthird", "Ġis", "Ġblue",
        "=B", "</", "think", ">Ċ", "<answer", ">", "B", "</", "answer", ">", "<|im_end|>",
    ]  # fmt: skip
    letter = tokenizer.convert_tokens_to_ids("B")
    assert letter in tokenizer("Options:\nA. red\nB. blue\n").input_ids
    for q in questions((*TASKS, *HARD, *WARMUP), 24, seed=9):
        text = f"<think>{q.thought}</think>\n<answer>{q.letter}</answer><|im_end|>"
        assert len(tokenizer(text).input_ids) <= 28, text
        assert len(tokenizer(q.problem).input_ids) <= 20, q.problem


# --- the chat template against a rendering by hand ------------------------------------------------------------


def rendered(messages: list[dict], generation: bool, numbered: bool = False) -> str:
    """Qwen2.5-VL's chat format, put together without jinja."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    text, count = "", {"Picture": 0, "Video": 0}
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        body = ""
        for part in parts:
            kind = "Picture" if part.keys() & {"image", "image_url"} or part["type"] == "image" else None
            kind = kind or ("Video" if "video" in part or part["type"] == "video" else None)
            if kind is None:
                body += part.get("text", "")
                continue
            count[kind] += 1
            pad = {"Picture": "image", "Video": "video"}[kind]
            body += f"{kind} {count[kind]}: " if numbered else ""
            body += f"<|vision_start|><|{pad}_pad|><|vision_end|>"
        text += f"<|im_start|>{message['role']}\n{body}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if generation else "")


TEXT = {"type": "text", "text": " which\n colour? {{ x }} {% if %}"}
IMAGE, VIDEO, LINK = ({"type": t, t: "x"} for t in ("image", "video", "image_url"))
CHATS = [
    [{"role": "user", "content": "hello "}],
    [{"role": "user", "content": [TEXT]}],
    [{"role": "user", "content": [IMAGE, TEXT]}],
    [{"role": "user", "content": [{"type": "video"}, TEXT]}],
    [{"role": "system", "content": "Be brief"}, {"role": "user", "content": [VIDEO, TEXT, IMAGE]}],
    [{"role": "system", "content": [TEXT]}, {"role": "user", "content": [{"type": "unknown"}, LINK]}],
    [
        {"role": "user", "content": [IMAGE, VIDEO, IMAGE, TEXT]},
        {"role": "assistant", "content": "<think>a</think>\n<answer>B</answer>"},
        {"role": "user", "content": [VIDEO, LINK, TEXT, TEXT]},
        {"role": "system", "content": ""},
    ],
]


@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
def test_the_template_renders_the_published_format(tokenizer, messages, generation, numbered):
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation, add_vision_id=numbered
    )
    assert text == rendered(messages, generation, numbered)


def test_the_template_word_for_word(tokenizer):
    messages = [{"role": "user", "content": [VIDEO, {"type": "text", "text": "which colour came third?"}]}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>which colour came third?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


# --- weights and processor ------------------------------------------------------------------------------------


def test_the_folder_loads_in_transformers(tiny):
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1e6
    frames = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(tiny)(frames, return_tensors="np")
    assert pixels["image_grid_thw"].tolist() == [[1, 4, 4]]
    config = model.config
    ids = torch.tensor([[config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id, 5]])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=torch.tensor(pixels["pixel_values"]),
            image_grid_thw=torch.tensor(pixels["image_grid_thw"]),
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
        ).logits
    assert logits.shape == (1, 7, 512)
    assert bool(logits.isfinite().all())


def test_weights_follow_the_seed_and_the_vocabulary_does_not(tiny, tmp_path):
    def files(folder, *names: str) -> list[bytes]:
        return [(folder / name).read_bytes() for name in names]

    texts = [p.name for p in tiny.iterdir() if p.suffix != ".safetensors"]
    write_tiny_model(tmp_path / "same", seed=3)
    write_tiny_model(tmp_path / "other", seed=4)
    assert files(tiny, "model.safetensors", *texts) == files(tmp_path / "same", "model.safetensors", *texts)
    assert files(tiny, *texts) == files(tmp_path / "other", *texts)
    first, other = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path / "other"))
    embedding = "model.embed_tokens.weight"
    assert not np.array_equal(first[embedding], other[embedding])
    assert first[embedding].std() == pytest.approx(0.05, rel=0.02)
