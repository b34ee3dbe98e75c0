"""Text as it is generated: no character cut, the whole as it is decoded at once."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from jvr1.demo.tiny_model import SPECIAL, train_tokenizer
from jvr1.rollout.stream import TextStream

TEXT = "<think>día 7: 世界, שלום, 🎬👩‍🚀 e\u0301</think>\n<answer>½ → 5,000 °C\ufffd!</answer>"


@pytest.fixture(scope="module")
def tokenizer():
    raw = train_tokenizer(["<think>reds then blues</think>", "<answer>B</answer>", "世界 世界 世界", "día día"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", extra_special_tokens=list(SPECIAL))


@pytest.mark.parametrize("step", [1, 2, 3, 8, 1000])
def test_every_piece_ends_with_the_last_whole_character(tokenizer, step):
    ids = tokenizer(TEXT)["input_ids"]
    whole = tokenizer.decode(ids).encode()  # normalised: e and its accent are one
    sizes = np.cumsum([len(token) for token in tokenizer.convert_ids_to_tokens(ids)])  # one letter a byte
    assert sizes[-1] == len(whole)
    cut = sum(whole[:n].decode(errors="ignore").encode() != whole[:n] for n in sizes)
    assert cut > 20  # tokens after which a character is not whole
    stream, text = TextStream(tokenizer), ""
    for start in range(0, len(ids), step):
        text += stream.add(ids[start : start + step])
        until = whole[: sizes[min(start + step, len(ids)) - 1]].decode(errors="ignore")
        assert text == until.rstrip("\ufffd")  # what the text itself has of these waits too
    assert text + stream.end() == whole.decode()


def test_what_is_no_text_comes_out_as_it_is_decoded_at_once(tokenizer):
    """Bytes at random, special tokens among them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(tokenizer), rng.integers(0, 40)).tolist()
        stream, pieces = TextStream(tokenizer), []
        for start in range(0, len(ids), 3):
            pieces.append(stream.add(np.asarray(ids[start : start + 3])))
        assert "".join(pieces) + stream.end() == tokenizer.decode(ids, skip_special_tokens=True)
        assert stream.end() == ""
