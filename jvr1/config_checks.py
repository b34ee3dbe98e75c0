"""Settings of a run's config that cannot be, each refused by its name and before anything is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jvr1.data.prompts import TEMPLATES
from jvr1.errors import UserError
from jvr1.model.attention import CHOICES
from jvr1.model.layers import REMAT_POLICIES
from jvr1.rl.rewards import MODES

_ONE_OF = {
    "model.remat": tuple(REMAT_POLICIES),
    "model.attention": CHOICES,
    "model.dtype": ("bfloat16", "float32"),
    "model.param_dtype": ("bfloat16", "float32"),
    "model.reference": ("device", "host"),
    "reward.mode": MODES,
}
_AT_LEAST = {
    "batch.micro": 1,
    "batch.per_step": 1,
    "train.steps": 1,
    "train.save_every": 1,
    "train.save_minutes": 0,
    "train.keep": 1,
    "train.validate_every": 0,
    "seed": 0,
    "train.pictures_every": 0,
    "data.index_workers": 1,
    "mesh.decode_tensor": 0,
    "train.step_limit": 0,
    "rl.group": 2,
    "rl.shuffled": 0,
    "rl.updates": 1,
    "rl.slots": 0,
    "rl.lanes": 0,
    "lora.rank": 0,
    "data.workers": 0,
    "data.media_cache_gb": 1,
    "data.frame_cache_gb": 1,
    "data.max_decoded_mb": 64,
    "model.logit_chunk": 1,
    "sampling.top_k": 0,
    "data.modality.text": 0,
    "data.modality.image": 0,
    "data.modality.video": 0,
}
_ABOVE_0 = ("sampling.temperature", "data.timeout", "reward.user_timeout")


def check_values(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Raises UserError for a setting that cannot be by itself. `values`: section.name -> value, of all settings."""
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{name} is nan; it must be a number")
    for name, choices in _ONE_OF.items():
        if values[name] not in choices:
            raise UserError(f"{name} is {values[name]!r}; use one of {', '.join(choices)}")
    for name, least in _AT_LEAST.items():
        if values[name] < least:
            raise UserError(f"{name} is {values[name]}; it must be at least {least}")
    for name in _ABOVE_0:
        if not values[name] > 0:
            raise UserError(f"{name} is {values[name]}; it must be positive")
    for name in ("model.source", "data.train"):
        if not values[name]:
            raise UserError(f"{name} is not set; give it in the config file or as --config.{name}=...")
    if not 0 < config.sampling.top_p <= 1:
        raise UserError(f"sampling.top_p is {config.sampling.top_p}; it must be above 0 and at most 1")
    if not 0 <= config.data.max_failed <= 1:
        raise UserError(f"data.max_failed is {config.data.max_failed}; it is a share from 0 to 1")
    if not math.isfinite(config.reward.user_failure):
        raise UserError(f"reward.user_failure is {config.reward.user_failure}; it must be a finite reward")
    template = config.data.template
    if "{Question}" not in TEMPLATES.get(template, template):
        raise UserError("data.template must name a template or hold {Question}; names: " + ", ".join(TEMPLATES))
    for name, patterns in (("optimizer.freeze", config.optimizer.freeze), ("lora.patterns", config.lora.patterns)):
        _check_patterns(name, patterns)
    _check_weights(tuple(config.data.weights), len(config.data.train))


def check_together(config: ConfigDict) -> None:
    """Raises UserError for settings that do not go together."""
    if config.rl.shuffled == 0 and config.rl.gate != "none":
        raise UserError(
            f"rl.gate={config.rl.gate!r} compares with shuffled completions; set rl.shuffled > 0 or rl.gate='none'"
        )
    if config.rl.lanes > config.rl.group:
        raise UserError(f"rl.lanes is {config.rl.lanes}; it must be at most rl.group, {config.rl.group}, or 0 for all")
    if config.lora.rank and config.model.reference == "host":
        raise UserError(
            "model.reference is 'host' and lora.rank is set: frozen weights are the reference; use 'device'"
        )
    if config.train.validate_every and not config.data.valid:
        raise UserError("train.validate_every is set and data.valid is empty; name the held-out questions")
    if config.train.stop_metric and not config.train.validate_every:
        raise UserError("train.stop_metric is set and train.validate_every is 0; nothing would measure it")


def _check_weights(weights: Sequence[Any], files: int) -> None:
    if not all(isinstance(weight, int | float) for weight in weights):
        raise UserError(f"data.weights is {weights}; it must be a number for each file of data.train")
    if weights and len(weights) != files:
        raise UserError(f"data.weights has {len(weights)} numbers for {files} files of data.train")
    if not all(0 <= weight < math.inf for weight in weights):
        raise UserError(f"data.weights is {weights}; none may be negative or infinite, and 0 leaves a file out")


def _check_patterns(name: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(f"{name} holds {pattern!r}, which is no regular expression: {error}") from None
