"""Token ids to text while they are being made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from jvr1.data.prompts import opened


class TextStream:
    """Text in pieces that never cut a character: a byte-level token may hold only some of one's bytes.

    The pieces joined are the decoded whole, without special tokens, after what the prompt has opened of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self._begun = tokenizer, opened(tokenizer)
        self._ids: list[int] = []
        self._shown = 0

    def add(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> str:
        """What these tokens make certain: bytes that another token may complete decode to U+FFFD and wait."""
        self._ids += [int(i) for i in ids]
        return self._since(self._text().rstrip("\ufffd"))

    def end(self) -> str:
        """What was still waiting."""
        return self._since(self._text())

    def _text(self) -> str:
        return self._begun + str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _since(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece
