"""What a run is told: its settings (jvr1.config_sections), read from a config file and the command line, checked."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from jvr1.config_checks import check_together
from jvr1.config_files import config_place, split_config
from jvr1.config_page import usage
from jvr1.config_sections import RunSettings
from jvr1.data.batch import Bucket, make_buckets
from jvr1.data.prompts import TEMPLATES, PromptStyle
from jvr1.data.rows import FieldMap, field_map
from jvr1.errors import UserError
from jvr1.model.lora import LoRAConfig
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.optimizers.config import OptimizerConfig
from jvr1.problems import kinds
from jvr1.processes.peers import Peers, define_flags
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.setting import check_settings, settings_of, written_as
from jvr1.sharding import AXES

Typed = TypeVar("Typed")

SETTINGS = {one.name: one for one in settings_of(RunSettings())}
"""Every setting, by its name as the user writes it."""
AUTO = ("auto",)
"""`data.buckets` of a run that fits its own."""
HELP = {f"{dashes}{flag}" for dashes in ("-", "--") for flag in ("h", "help", "helpfull", "helpshort")}

CONFIG_HELP = "Config file FILE or FILE:ARG, or by its name one that comes with jvr1."


def default() -> ConfigDict:
    """All settings. --help explains each; configs/*.py set what differs."""
    tree: dict[str, Any] = {}
    for one in SETTINGS.values():
        *sections, last = one.name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = config_dict.placeholder(one.type) if one.value is None else one.value
    return ConfigDict(tree).lock()


class Command(NamedTuple):
    """A training command line: locked, checked config; workdir; the run's processes; optimizer steps to profile."""

    config: ConfigDict
    workdir: str
    peers: Peers
    profile: range

    @property
    def told(self) -> dict[str, Any]:
        """What all processes of a run must have alike: the command line but for folders of this machine."""
        every = flat(json.loads(self.config.to_json()))
        alike = {name: value for name, value in every.items() if not SETTINGS[name].about.of_machine}
        return alike | {"--workdir": self.workdir}


def parse(argv: Sequence[str], about: str | None = None) -> Command:
    """Reads a training command line. about: what --help says first.

    Raises UserError for an unknown key, a wrong type, a config file that cannot be read, or settings that do not go
    together; SystemExit after --help.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run; started again, the run goes on.", flag_values=values)
    flags.DEFINE_string("profile", None, "Steps FIRST:LAST to trace into WORKDIR/profile.", flag_values=values)
    define_flags(values)
    if HELP & set(argv[1:]):
        told = {"config": CONFIG_HELP} | {name: str(values[name].help) for name in values}
        print(usage(RunSettings(), about or "", told))
        sys.exit(0)
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
    argv, file = _with_file(argv)
    config_flags.DEFINE_config_file(
        "config",
        None,
        CONFIG_HELP,
        lock_config=True,
        flag_values=values,
        sys_argv=list(argv),
    )
    for argument in argv[1:]:
        given = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if given and not any(name == given[1] or name.startswith(f"{given[1]}.") for name in SETTINGS):
            raise UserError(_unknown(given[1]))
    before = list(sys.path)
    sys.path[:0] = [] if file is None else [str(file.resolve().parent)]
    try:
        rest = values(list(argv))
        config = values["config"].value
    except UserError:
        raise
    except Exception as error:  # a config file is code: anything may go wrong in it
        raise UserError(_one_line(error, file)) from None
    finally:
        sys.path[:] = before
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; settings are given as --config.section.name=value")
    if file is not None and not isinstance(config, ConfigDict):
        raise UserError(f"config file {file}: its get_config() returns no ConfigDict; start from jvr1.config.default()")
    return config


def _with_file(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """The command line with the file that --config names, in FILE[:ARG], and the file. Raises UserError."""
    argv, file = list(argv), None
    for i, flag in enumerate(argv):
        before = "--config=" if flag.startswith("--config=") else ""
        if before or (i and argv[i - 1] == "--config"):
            place = config_place(flag.removeprefix(before))
            argv[i], file = before + place, Path(split_config(place)[0])
    return argv, file


def from_json(text: str, name: str) -> ConfigDict:
    """The config kept in a workdir's config.json. Raises UserError."""
    config = default()
    try:
        kept = json.loads(text)
        kept.get("data", {}).get("image_pixels", {}).pop("total_pixels", None)  # had no effect, and is gone
        check_names(flat(kept))
        config.update(kept)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: its config.json is not of this version: {_one_line(error)}") from None
    return config


def check_names(names: Iterable[str]) -> None:
    """Raises UserError for the first that no setting has."""
    for name in names:
        if name not in SETTINGS:
            raise UserError(_unknown(name))


def _unknown(name: str) -> str:
    """Names near it: those of other sections that end alike, else those of its section, else of any."""
    section, _, last = name.rpartition(".")
    ends: dict[str, list[str]] = {}
    for one in SETTINGS:
        ends.setdefault(one.rpartition(".")[2], []).append(one)
    beside = [end for end, names in ends.items() if any(one.rpartition(".")[0] == section for one in names)]
    near = ends.get(last, [])
    near = near or [f"{section}.{end}" for end in get_close_matches(last, beside, 1, 0.7)]
    near = near or [one for end in get_close_matches(last, ends, 1, 0.75) for one in ends[end]]
    told = f"did you mean {' or '.join(map(repr, near))}?" if near else "--help lists them"
    return f"there is no setting {name!r}; {told}"


def changes(kept: str, config: ConfigDict, name: str) -> dict[str, str]:
    """Setting -> 'setting: before -> now' of those that differ from a workdir's config.json. Raises UserError."""
    before, now = (flat(json.loads(to_json(c))) for c in (from_json(kept, name), config))
    return {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their whole names."""
    named: dict[str, Any] = {}
    for key, value in tree.items():
        named |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return named


def _one_line(error: BaseException, file: Path | None = None) -> str:
    """What an error says, and where in a config file or beside it it was raised."""
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
    elif unknown := re.search(r'instead of "(\w+)"|Key "(\w+)" does not exist', text):
        text = _unknown(unknown[1] or unknown[2])
    elif lone := re.fullmatch(r"[\"'\\]*(\w+)[\"'\\]*", text):
        text = _unknown(lone[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file and Path(frame.filename).resolve().parent == file.resolve().parent]
    return " ".join([*(f"{frame.filename}, line {frame.lineno}:" for frame in own[-1:]), *text.split()])


def check(config: ConfigDict) -> ConfigDict:
    """Returns the config, its problem kinds loaded; raises UserError with the reason when its settings cannot work
    together."""
    values = flat(config.to_dict())
    check_names(values)
    if left_out := [name for name in SETTINGS if name not in values]:
        raise UserError(f"{left_out[0]} is not in the config; start from jvr1.config.default()")
    check_settings(SETTINGS.values(), values)
    check_together(config)
    kinds.load_kinds(config.data.kinds)
    if not fits_buckets(config):
        buckets(config)
    for section in (tgrpo, lora, optimizer, video_sampling, pixel_limits):
        section(config)  # their own checks
    return config


def _typed(kind: type[Typed], config: ConfigDict, section: str) -> Typed:
    """The dataclass of a section."""
    values = config
    for name in section.split("."):
        values = values[name]
    own = {f.name: values[f.name] for f in fields(kind) if f.name in values}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def _in_full(kind: type[Typed], config: ConfigDict, section: str) -> Typed:
    """The same, of a dataclass that others than runs use too; its errors name settings as a run's config does."""
    with written_as({f.name: f"{section}.{f.name}" for f in fields(kind)}):  # type: ignore[arg-type]
        return _typed(kind, config, section)


def fits_buckets(config: ConfigDict) -> bool:
    """Whether buckets are to be fitted to the questions."""
    return tuple(config.data.buckets) == AUTO


def buckets(config: ConfigDict) -> tuple[Bucket, ...]:
    """Raises UserError where there are none yet."""
    if fits_buckets(config):
        raise UserError(
            "data.buckets is auto: shapes are fitted when a run opens its data, which prints them and keeps them in "
            "its config.json; name them here"
        )
    return make_buckets(config.data.buckets)


def question_fields(config: ConfigDict) -> FieldMap:
    """What question files call a record's fields."""
    return field_map(config.data.fields)


def mesh_shape(config: ConfigDict) -> dict[str, int]:
    """The training mesh; `decode_tensor` is of generation."""
    return {axis: config.mesh[axis] for axis in AXES}


def style(config: ConfigDict) -> PromptStyle:
    template = TEMPLATES.get(config.data.template, config.data.template)
    data = config.data
    return PromptStyle(template, data.suffixes, data.system, data.special_tokens_in_text, data.prompt_form)


def tgrpo(config: ConfigDict) -> TGRPOConfig:
    return _typed(TGRPOConfig, config, "rl")


def lora(config: ConfigDict) -> LoRAConfig | None:
    """The adapters to train, kept as trained parameters are; None where lora.rank is 0."""
    if not config.lora.rank:
        return None
    return replace(_typed(LoRAConfig, config, "lora"), dtype=config.model.param_dtype)


def base_dtype(config: ConfigDict) -> str:
    """Of the parameters as kept. A base under adapters stays in the dtype of its products: nothing is added to it."""
    return config.model.dtype if config.lora.rank else config.model.param_dtype


def optimizer(config: ConfigDict) -> OptimizerConfig:
    """The optimizer's settings; its schedule spans the run's updates."""
    return _typed(OptimizerConfig, config, "optimizer")


def video_sampling(config: ConfigDict) -> VideoSampling:
    return _in_full(VideoSampling, config, "data.video")


def pixel_limits(config: ConfigDict) -> tuple[PixelLimits, PixelLimits]:
    """Limits of a video's frame and of an image."""
    return _in_full(PixelLimits, config, "data.video_pixels"), _in_full(PixelLimits, config, "data.image_pixels")


def to_json(config: ConfigDict) -> str:
    """The resolved config, as kept in the workdir."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"
