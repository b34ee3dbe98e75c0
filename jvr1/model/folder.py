"""What a folder or its tensors are that were named as a model and are none that jvr1 reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from etils import epath

RESAVE = "open it with what wrote it, and write it with save_pretrained of transformers"
MERGE_ADAPTERS = "merge them into their model (merge_and_unload of peft, then save_pretrained) and name that"
_FORMS = (
    (r"adapter_config\.json|adapter_model\..*", f"adapters of peft ({{}}): {MERGE_ADAPTERS}"),
    (r".*\.gguf", "weights of llama.cpp ({}): name the model they were made of"),
    (r".*\.(bin|pt|pth|ckpt|pkl)", f"weights as a pickle ({{}}), which jvr1 never opens: {RESAVE}"),
    (r".*\.(h5|msgpack|onnx|distcp|npz)", f"weights in a form that jvr1 does not read ({{}}): {RESAVE}"),
)
_NAMES = (
    (r"base_model\..*|.*\.lora_[AB]\..*", f"have names of peft ({{}}), adapters among them: {MERGE_ADAPTERS}"),
    (
        r".*\.(qweight|qzeros|scales|g_idx|SCB|weight_scale(_inv)?|absmax|quant_map|quant_state\..*)",
        "are quantised ({}); name the model they were made of",
    ),
    (
        r"(language_model\.model|module|_orig_mod|transformer|thinker)\..*",
        f"have names of another program ({{}}): {RESAVE}",
    ),
)


def form_of(folder: epath.Path) -> str | None:
    """What a folder without config.json or without safetensors holds instead, as a clause; None where nothing known."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return None
    return _first(_FORMS, names)


def foreign(names: Iterable[str]) -> str | None:
    """What tensors are by their names, as a clause; None where nothing known."""
    return _first(_NAMES, sorted(names))


def _first(kinds: Iterable[tuple[str, str]], names: list[str]) -> str | None:
    for pattern, clause in kinds:
        for name in names:
            if re.fullmatch(pattern, name):
                return clause.format(name[:80])
    return None
