"""What a plan is made for: the model a config names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from etils import epath

from jvr1.data.batch import Bucket
from jvr1.errors import UserError
from jvr1.model import hf
from jvr1.model.config import ModelConfig, published
from jvr1.train.models import locate

SIZES = ("3b", "7b", "32b", "72b")


def named_model(name: str) -> ModelConfig:
    """The shape of a published size, of a folder, or of a hub id whose name holds a size. Raises UserError."""
    if name.lower() in SIZES:
        return published(name.lower())
    if epath.Path(name).is_dir():
        return hf.read_config(locate(name)[0])
    found = re.search(r"(?<![0-9.])(3|7|32|72)b(?![a-z])", name.lower())
    if not found:
        raise UserError(f"model {name!r} is no folder and names no size; give --model {', '.join(SIZES)} or a folder")
    return published(found[0])


def largest_bucket(buckets: Sequence[Bucket]) -> Bucket:
    """The one whose rows hold most tokens."""
    return max(buckets, key=lambda b: (b.prompt + b.completion, b.steps * b.windows))
