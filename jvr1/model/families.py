"""The families there are, and what is asked of all of them or of the one that a config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jvr1.errors import UserError, shown
from jvr1.model.config import ModelConfig
from jvr1.model.family import Family
from jvr1.model.fields import Fields
from jvr1.model.parameters import DECODER_PARAMETERS, Parameter, is_stacked
from jvr1.model.qwen2_5_vl import QWEN2_5_VL
from jvr1.model.qwen2_5_vl.config import MERGE, PATCH
from jvr1.model.qwen3_vl import QWEN3_VL

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}
"""By the `model_type` of config.json."""
FACTOR = PATCH * MERGE
TOKEN_PIXELS = FACTOR**2
"""Pixels on a side of a visual token, and its area, where no model is known yet: settings and their defaults, which are
Video-R1's and so for Qwen2.5-VL, and a survey of media."""
RULES = QWEN2_5_VL.frames(FACTOR)
"""Which frames are read and to what size, where no model is known."""


def family_of(model_type: str) -> Family:
    return FAMILIES[model_type]


def from_hf(raw: Mapping[str, Any], name: str = "config.json") -> ModelConfig:
    """Reads a parsed config.json. Raises `UserError`, naming `name` and the field, for another architecture and what
    the family's reader refuses."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(f"{family.model_type!r} ({family.title})" for family in FAMILIES.values())
        raise UserError(f"{name}: model_type is {shown(model_type)}; jvr1 reads {known}")
    return FAMILIES[model_type].read(Fields(raw, name))


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The published config.json of a model whose tensors have `dtype` ('bfloat16' or 'float32')."""
    return config.family.write(config, dtype)


def published_sizes() -> tuple[str, ...]:
    """Names of published models."""
    return tuple(size for family in FAMILIES.values() for size in family.published)


def published(size: str) -> ModelConfig:
    """The published model of a size, one of `published_sizes()`."""
    for family in FAMILIES.values():
        if size in family.published:
            return family.published[size]
    raise UserError(f"no published size {size!r}; there are {', '.join(published_sizes())}")


def known(path: str) -> Parameter:
    """What is known of a parameter, by its path, which means the same in all families. Of one that no table has nothing
    is known: no axis has a name, and it does not decay."""
    for table in (DECODER_PARAMETERS, *(family.parameters for family in FAMILIES.values())):
        if path in table:
            return table[path]
    return Parameter(("layers",) if is_stacked(path) else ())


def adaptable() -> tuple[str, ...]:
    """Linear maps that can have an adapter: all but patch embeddings and heads."""
    tables = (DECODER_PARAMETERS, *(family.parameters for family in FAMILIES.values()))
    names = {path: None for table in tables for path, one in table.items() if one.hidden}
    return tuple(path.removesuffix("/kernel") for path in names if path.endswith("/kernel"))
