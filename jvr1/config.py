"""What a run is told: every setting with its default, read from a config file and the command line, checked at once."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jvr1.data.batch import Bucket, make_buckets
from jvr1.data.media import PixelLimits, VideoSampling
from jvr1.data.prompts import TEMPLATES, PromptStyle
from jvr1.errors import UserError
from jvr1.model.layers import REMAT_POLICIES
from jvr1.rl.rewards import MODES
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.train.optimizer import OptimizerConfig


def section(default: Any) -> ConfigDict:
    """A section with the fields of a frozen dataclass; a field that is None keeps its type for the command line."""
    hints = typing.get_type_hints(type(default))
    return ConfigDict({f.name: _slot(getattr(default, f.name), hints[f.name]) for f in dataclasses.fields(default)})


def _slot(value: Any, hint: Any) -> Any:
    if value is not None:
        return value
    kinds = [k for k in typing.get_args(hint) if k is not types.NoneType]
    return config_dict.placeholder(kinds[0])


def default() -> ConfigDict:
    """All settings. docs/config.md explains each; configs/*.py set what differs."""
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict(
        {"source": "", "dtype": "bfloat16", "param_dtype": "float32", "remat": "full", "logit_chunk": 128}
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.data = ConfigDict(
        {
            "root": "",
            "train": (),
            "weights": (),
            "valid": (),
            "modality": {"text": 1.0, "image": 1.0, "video": 1.0},
            "buckets": (),
            "video": section(VideoSampling()),
            "video_pixels": section(PixelLimits(128 * 28 * 28, 128 * 28 * 28, None)),
            "image_pixels": section(PixelLimits(4 * 28 * 28, 256 * 28 * 28, None)),
            "real_seconds": True,
            "template": "reference",
            "suffixes": True,
            "system": config_dict.placeholder(str),
            "index": "",
            "media_cache": "",
            "media_cache_gb": 100,
            "workers": 2,
            "index_workers": 2,
            "timeout": 60.0,
            "max_failed": 0.05,
        }
    )
    config.batch = ConfigDict({"micro": 1, "per_step": 8})
    config.sampling = ConfigDict({"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    config.sft = ConfigDict({"loss_on_prompt": False})
    config.rl = section(TGRPOConfig())
    config.rl.update({"group": 8, "shuffled": 4, "updates": 1, "format_weight": 1.0})
    config.reward = ConfigDict(
        {"mode": "robust", "user": "", "user_weight": 1.0, "user_timeout": 2.0, "user_failure": 0.0}
    )
    config.optimizer = section(OptimizerConfig())
    config.train = ConfigDict(
        {
            "steps": 1000,
            "save_every": 100,
            "keep": 2,
            "validate_every": 0,
            "validate_tokens": 0,
            "stop_metric": "",
            "stop_value": 0.0,
            "pictures_every": 50,
            "wandb": "",
        }
    )
    return config


def parse(argv: Sequence[str]) -> tuple[ConfigDict, str]:
    """The locked, checked config and the workdir of a training command line.

    Raises UserError for an unknown key, a wrong type, a config file that cannot be read, or settings that do not go
    together.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run; started again, the run goes on.", flag_values=values)
    config = _read(values, argv)
    if config is None or not values["workdir"].value:
        raise UserError("both --config FILE and --workdir DIR are needed")
    return check(config), values["workdir"].value


def from_file(name: str) -> ConfigDict:
    """The config of FILE or FILE:ARG. Raises UserError."""
    return _read(flags.FlagValues(), ["jvr1", f"--config={name}"])


def _read(values: flags.FlagValues, argv: Sequence[str]) -> ConfigDict | None:
    """The config of a command line whose flags `values` defines. A config file may import its neighbours."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file FILE or FILE:ARG.", lock_config=True, flag_values=values
    )
    folders = [str(Path(a.split("=", 1)[-1].rsplit(".py", 1)[0]).resolve().parent) for a in argv[1:] if ".py" in a]
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        rest = values(list(argv))
        config = values["config"].value
    except UserError:
        raise
    except Exception as error:  # a config file is code: anything may go wrong in it
        raise UserError(_one_line(error)) from None
    finally:
        sys.path[:] = before
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; settings are given as --config.section.name=value")
    return config


def from_json(text: str, name: str) -> ConfigDict:
    """The config kept in a workdir's config.json. Raises UserError."""
    config = default()
    try:
        config.update(json.loads(text))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: its config.json is not of this version: {_one_line(error)}") from None
    return config


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def check(config: ConfigDict) -> ConfigDict:
    """Returns the config; raises UserError with the reason when its settings cannot work together."""
    for name, value, choices in (
        ("model.remat", config.model.remat, REMAT_POLICIES),
        ("model.dtype", config.model.dtype, ("bfloat16", "float32")),
        ("model.param_dtype", config.model.param_dtype, ("bfloat16", "float32")),
        ("reward.mode", config.reward.mode, MODES),
    ):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; use one of {', '.join(choices)}")
    for name, value, least in (
        ("batch.micro", config.batch.micro, 1),
        ("batch.per_step", config.batch.per_step, 1),
        ("train.steps", config.train.steps, 1),
        ("train.save_every", config.train.save_every, 1),
        ("train.keep", config.train.keep, 1),
        ("train.validate_every", config.train.validate_every, 0),
        ("rl.group", config.rl.group, 2),
        ("rl.shuffled", config.rl.shuffled, 0),
        ("rl.updates", config.rl.updates, 1),
        ("data.workers", config.data.workers, 0),
        ("model.logit_chunk", config.model.logit_chunk, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    for name, value in (("model.source", config.model.source), ("data.train", config.data.train)):
        if not value:
            raise UserError(f"{name} is not set; give it in the config file or as --config.{name}=...")
    if config.data.weights and len(config.data.weights) != len(config.data.train):
        raise UserError(
            f"data.weights has {len(config.data.weights)} numbers for {len(config.data.train)} files of data.train"
        )
    if config.sampling.temperature <= 0 or not 0 < config.sampling.top_p <= 1 or config.sampling.top_k < 0:
        raise UserError("sampling needs temperature > 0, 0 < top_p <= 1 and top_k >= 0")
    if config.rl.shuffled == 0 and config.rl.gate != "none":
        raise UserError(
            f"rl.gate={config.rl.gate!r} compares with shuffled completions; set rl.shuffled > 0 or rl.gate='none'"
        )
    if config.train.validate_every and not config.data.valid:
        raise UserError("train.validate_every is set and data.valid is empty; name the held-out questions")
    if config.train.stop_metric and not config.train.validate_every:
        raise UserError("train.stop_metric is set and train.validate_every is 0; nothing would measure it")
    if "{Question}" not in style(config).template:
        raise UserError("data.template must name a template or hold {Question}; names: " + ", ".join(TEMPLATES))
    buckets(config)
    tgrpo(config)
    return config


def buckets(config: ConfigDict) -> tuple[Bucket, ...]:
    return make_buckets(config.data.buckets)


def style(config: ConfigDict) -> PromptStyle:
    template = TEMPLATES.get(config.data.template, config.data.template)
    return PromptStyle(template, config.data.suffixes, config.data.system)


def tgrpo(config: ConfigDict) -> TGRPOConfig:
    names = [f.name for f in dataclasses.fields(TGRPOConfig)]
    return TGRPOConfig(**{name: config.rl[name] for name in names})


def optimizer(config: ConfigDict) -> OptimizerConfig:
    """The optimizer's settings; its schedule spans the run's updates."""
    settings = dict(config.optimizer)
    settings["freeze"] = tuple(settings["freeze"])
    return OptimizerConfig(**settings)


def video_sampling(config: ConfigDict) -> VideoSampling:
    return VideoSampling(**config.data.video)


def pixel_limits(config: ConfigDict) -> tuple[PixelLimits, PixelLimits]:
    """Limits of a video's frame and of an image."""
    return PixelLimits(**config.data.video_pixels), PixelLimits(**config.data.image_pixels)


def to_json(config: ConfigDict) -> str:
    """The resolved config, as kept in the workdir."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"
