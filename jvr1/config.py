"""What a run is told: every setting with its default, read from a config file and the command line, checked at once."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jvr1.config_checks import check_together, check_values
from jvr1.data.batch import Bucket, make_buckets
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.prompts import TEMPLATES, PromptStyle
from jvr1.errors import UserError
from jvr1.model.families import TOKEN_PIXELS
from jvr1.model.lora import LANGUAGE, LoRAConfig
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.problems import kinds
from jvr1.processes.peers import Peers, define_flags
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.sharding import AXES
from jvr1.train.optimizer import OptimizerConfig

Built = TypeVar("Built", VideoSampling, PixelLimits)


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
        {
            "source": "",
            "dtype": "bfloat16",
            "param_dtype": "float32",
            "remat": "full",
            "attention": "auto",
            "logit_chunk": 128,
            "reference": "device",
        }
    )
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0, "patterns": LANGUAGE})
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "decode_tensor": 0})
    config.data = _data()
    config.batch = ConfigDict({"micro": 1, "per_step": 8})
    config.sampling = ConfigDict({"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    config.sft = ConfigDict({"loss_on_prompt": False})
    config.bestofn = ConfigDict({"threshold": 1.5})
    config.rl = section(TGRPOConfig())
    config.rl.update({"group": 8, "shuffled": 4, "updates": 1, "format_weight": 1.0, "slots": 0, "lanes": 0})
    config.reward = ConfigDict(
        {"mode": "robust", "user": "", "user_weight": 1.0, "user_timeout": 2.0, "user_failure": 0.0}
    )
    config.optimizer = section(OptimizerConfig())
    config.train = _train()
    return config.lock()


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "root": "",
            "train": (),
            "weights": (),
            "valid": (),
            "kinds": (),
            "modality": {"text": 1.0, "image": 1.0, "video": 1.0},
            "buckets": (),
            "video": section(VideoSampling()),
            "video_pixels": section(PixelLimits(128 * TOKEN_PIXELS, 128 * TOKEN_PIXELS, None)),
            "image_pixels": ConfigDict({"min_pixels": 4 * TOKEN_PIXELS, "max_pixels": 256 * TOKEN_PIXELS}),
            "real_seconds": True,
            "template": "reference",
            "suffixes": True,
            "system": config_dict.placeholder(str),
            "special_tokens_in_text": False,
            "index": "",
            "media_cache": "",
            "media_cache_gb": 100,
            "frame_cache": "",
            "frame_cache_gb": 100,
            "workers": 2,
            "index_workers": 2,
            "timeout": 60.0,
            "max_decoded_mb": MAX_DECODED_MB,
            "max_failed": 0.05,
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "steps": 1000,
            "save_every": 100,
            "save_minutes": 0.0,
            "keep": 2,
            "validate_every": 0,
            "stop_metric": "",
            "stop_value": 0.0,
            "pictures_every": 50,
            "step_limit": 3600.0,
            "wandb": "",
        }
    )


class Command(NamedTuple):
    """A training command line: locked, checked config; workdir; the run's processes; optimizer steps to profile."""

    config: ConfigDict
    workdir: str
    peers: Peers
    profile: range

    @property
    def told(self) -> dict[str, Any]:
        """What all processes of a run must have alike: the command line but for folders of this machine."""
        flat = _flat(json.loads(self.config.to_json()))
        return {name: value for name, value in flat.items() if name not in OF_MACHINE} | {"--workdir": self.workdir}


def parse(argv: Sequence[str]) -> Command:
    """Reads a training command line.

    Raises UserError for an unknown key, a wrong type, a config file that cannot be read, or settings that do not go
    together.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run; started again, the run goes on.", flag_values=values)
    flags.DEFINE_string("profile", None, "Steps FIRST:LAST to trace into WORKDIR/profile.", flag_values=values)
    define_flags(values)
    config = _read(values, argv)
    if config is None or not values["workdir"].value:
        raise UserError("both --config FILE and --workdir DIR are needed")
    peers = Peers(
        values["coordinator"].value,
        values["processes"].value,
        values["process"].value,
        float(values["peer_limit"].value or 0),
    )
    return Command(check(config), values["workdir"].value, peers, _steps(values["profile"].value))


def _steps(text: str | None) -> range:
    """'10:12' -> steps 10, 11 and 12, as they are counted in the log. Raises UserError."""
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--profile {text!r} is no range of steps; write FIRST:LAST, such as 10:12")
    return range(int(found[1]), int(found[2]) + 1)


def from_file(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of FILE or FILE:ARG, with overrides '--config.section.name=value'. Raises UserError."""
    config = _read(flags.FlagValues(), ["jvr1", f"--config={name}", *overrides])
    assert config is not None  # --config is given
    return config


def _read(values: flags.FlagValues, argv: Sequence[str]) -> ConfigDict | None:
    """The config of a command line whose flags `values` defines. A config file may import its neighbours."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file FILE or FILE:ARG.", lock_config=True, flag_values=values, sys_argv=list(argv)
    )
    file = _config_file(argv)
    if file is not None and not file.is_file():
        raise UserError(f"config file {file} {'is a folder' if file.is_dir() else 'does not exist'}")
    if file is not None and file.suffix != ".py":
        raise UserError(
            f"config file {file} is no Python file; name one with a get_config(), such as those of configs/"
        )
    before = list(sys.path)
    sys.path[:0] = [] if file is None else [str(file.resolve().parent)]
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
    if file is not None and not isinstance(config, ConfigDict):
        raise UserError(f"config file {file}: its get_config() returns no ConfigDict; start from jvr1.config.default()")
    return config


def _config_file(argv: Sequence[str]) -> Path | None:
    """The file that --config names."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name = following if flag == "--config" else flag.removeprefix("--config=")
        if name and name != flag:
            return Path(name.partition(".py:")[0] + ".py" if ".py:" in name else name)
    return None


def from_json(text: str, name: str) -> ConfigDict:
    """The config kept in a workdir's config.json. Raises UserError."""
    config = default()
    try:
        kept = json.loads(text)
        kept.get("data", {}).get("image_pixels", {}).pop("total_pixels", None)  # had no effect, and is gone
        config.update(kept)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: its config.json is not of this version: {_one_line(error)}") from None
    return config


OF_MACHINE = ("data.root", "data.media_cache", "data.frame_cache", "data.workers")
"""Settings that the processes of a run may have otherwise: folders and processes of one machine."""
FREE = (
    "mesh.", "train.", "model.remat", "model.attention", "model.logit_chunk", "model.reference", "data.root",
    "data.valid", "data.index", "data.media_cache", "data.frame_cache", "data.workers", "data.timeout",
    "data.max_decoded_mb", "data.max_failed",
)  # fmt: skip
"""Settings (prefixes of names) that a run may be resumed with otherwise without a word."""
TUNABLE = ("rl.", "reward.", "sampling.", "optimizer.", "sft.", "bestofn.")
"""Those that change what a run learns from there on: a resumed run says so. Any other keeps its workdir."""


FIXED = ("optimizer.name",)
"""Those among them that may not change: another optimizer has another state."""


def may_change(name: str) -> bool:
    """Whether a run may be resumed with another value of the setting."""
    return name not in FIXED and name.startswith(FREE + TUNABLE)


def changes(kept: str, config: ConfigDict, name: str) -> dict[str, str]:
    """Setting -> 'setting: before -> now' of those that differ from a workdir's config.json. Raises UserError."""
    before, now = (_flat(json.loads(to_json(c))) for c in (from_json(kept, name), config))
    return {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback" in text:  # of a config file, as the flag reports it: where, and what was raised
        places = re.findall(r'File "((?!.*site-packages).+?)", line (\d+)', text)
        what = text.strip().splitlines()[-1].strip()
        kind, _, message = what.partition(": ")
        text = message if kind.endswith("UserError") else f"{places[-1][0]}, line {places[-1][1]}: {what}"
    if wrong := re.match(
        r"flag --(\S+?)=(.*?): (?:invalid literal for (int)|could not convert string to (float))", text
    ):
        kind = "a whole number" if wrong[3] else "a number"
        text = f"--{wrong[1]} is {wrong[2]!r}; it must be {kind}, such as {'8' if wrong[3] else '0.5'}"
    elif wrong := re.match(r"flag --(\S+?)=(.*?): .*Non-boolean argument", text):
        text = f"--{wrong[1]} is {wrong[2]!r}; it must be true or false"
    elif wrong := re.match(r"flag --(\S+?)=(.*): Error while parsing string: .* as tuple", text):
        text = f"--{wrong[1]} is {wrong[2]!r}; it must be one value or a tuple, such as \"('a','b')\""
    elif near := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
        text = f"there is no setting {near[2]!r}; did you mean {near[1]!r}?"
    elif unknown := re.search(r'Key "(\w+)" does not exist', text):
        text = f"there is no setting {unknown[1]!r}; docs/config.md lists them"
    elif lone := re.fullmatch(r"[\"'\\]*(\w+)[\"'\\]*", text):
        text = f"there is no setting {lone[1]!r}; docs/config.md lists them"
    return " ".join(text.split())


def check(config: ConfigDict) -> ConfigDict:
    """Returns the config, its problem kinds loaded; raises UserError with the reason when its settings cannot work
    together."""
    check_values(config, _flat(json.loads(to_json(config))))
    check_together(config)
    kinds.load(config.data.kinds)
    for section in (buckets, tgrpo, lora, optimizer, video_sampling, pixel_limits):
        section(config)  # their own checks
    return config


def _built(kind: type[Built], name: str, fields: ConfigDict) -> Built:
    """The dataclass of a section that others than runs use too; its errors name the settings as a run's config does."""
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(re.sub(rf"\b({'|'.join(fields)})\b", rf"{name}.\1", str(error))) from None


def buckets(config: ConfigDict) -> tuple[Bucket, ...]:
    return make_buckets(config.data.buckets)


def mesh_shape(config: ConfigDict) -> dict[str, int]:
    """The training mesh; `decode_tensor` is of generation."""
    return {axis: config.mesh[axis] for axis in AXES}


def style(config: ConfigDict) -> PromptStyle:
    template = TEMPLATES.get(config.data.template, config.data.template)
    return PromptStyle(template, config.data.suffixes, config.data.system, config.data.special_tokens_in_text)


def tgrpo(config: ConfigDict) -> TGRPOConfig:
    names = [f.name for f in dataclasses.fields(TGRPOConfig)]
    return TGRPOConfig(**{name: config.rl[name] for name in names})


def lora(config: ConfigDict) -> LoRAConfig | None:
    """The adapters to train, kept as trained parameters are; None where lora.rank is 0."""
    if not config.lora.rank:
        return None
    patterns = tuple(config.lora.patterns)
    return LoRAConfig(config.lora.rank, config.lora.alpha, patterns, config.model.param_dtype)


def base_dtype(config: ConfigDict) -> str:
    """Of the parameters as kept. A base under adapters stays in the dtype of its products: nothing is added to it."""
    return config.model.dtype if config.lora.rank else config.model.param_dtype


def optimizer(config: ConfigDict) -> OptimizerConfig:
    """The optimizer's settings; its schedule spans the run's updates."""
    settings = dict(config.optimizer)
    settings["freeze"] = tuple(settings["freeze"])
    return OptimizerConfig(**settings)


def video_sampling(config: ConfigDict) -> VideoSampling:
    return _built(VideoSampling, "data.video", config.data.video)


def pixel_limits(config: ConfigDict) -> tuple[PixelLimits, PixelLimits]:
    """Limits of a video's frame and of an image."""
    return (
        _built(PixelLimits, "data.video_pixels", config.data.video_pixels),
        _built(PixelLimits, "data.image_pixels", config.data.image_pixels),
    )


def to_json(config: ConfigDict) -> str:
    """The resolved config, as kept in the workdir."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"
