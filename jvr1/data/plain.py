"""Text of records as text: what spells a special token of the tokenizer is tokenised as the characters it is."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_MARKS = [chr(code) for code in range(0xE000, 0xF8FF)]


class _Reading(NamedTuple):
    """ids: of the special tokens; special: matches what spells one; plain: a tokenizer that knows none."""

    ids: dict[str, int]
    special: re.Pattern[str]
    plain: Tokenizer


@functools.lru_cache(maxsize=4)
def _reading(tokenizer: PreTrainedTokenizerBase) -> _Reading:
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = sorted(ids, key=len, reverse=True)
    # one of its own: the setting is the tokenizer's, and other threads tokenise with that
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return _Reading(ids, re.compile("|".join(map(re.escape, names)) or r"(?!)"), plain)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that holds no special token, whatever it spells."""
    reading = _reading(tokenizer)
    if not reading.special.search(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return reading.plain.encode(text, add_special_tokens=False).ids


class Marked(NamedTuple):
    """Texts in which `mark` stands within whatever spells a special token ('' where nothing does)."""

    texts: tuple[str, ...]
    mark: str

    def ids(self, tokenizer: PreTrainedTokenizerBase, chat: str) -> list[int]:
        """Ids of a chat made with the texts: its own special tokens are tokens, those the texts spell are text.

        Special tokens cut a text before it is tokenised, so what lies between two is tokenised by itself, as ever.
        """
        if not self.mark:
            return tokenizer(chat, add_special_tokens=False)["input_ids"]
        known, special, plain = _reading(tokenizer)
        ids: list[int] = []
        for run in re.split(f"({special.pattern})", chat):
            if run in known:
                ids.append(known[run])
            elif run:
                ids += plain.encode(run.replace(self.mark, ""), add_special_tokens=False).ids
        return ids


def marked(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Marked:
    """Texts to make a chat with. The mark is a character for private use that none of them holds."""
    special = _reading(tokenizer).special
    if not any(special.search(text) for text in texts):
        return Marked(tuple(texts), "")
    mark = next(mark for mark in _MARKS if not any(mark in text for text in texts))
    return Marked(tuple(special.sub(lambda m: m[0][0] + mark + m[0][1:], text) for text in texts), mark)
