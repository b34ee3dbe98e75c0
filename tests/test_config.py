"""Settings: documented, checked, refused in one line; files and command lines of every kind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.config_page import page
from jvr1.config_sections import RunSettings
from jvr1.errors import UserError
from jvr1.processes.guard import run_distributed

REPOSITORY = Path(__file__).parents[1]
TINY = f"--config={REPOSITORY}/configs/tiny.py:rl"


def parse(*arguments: str, file: str = TINY) -> ConfigDict:
    return settings.parse(["jvr1", file, "--config.model.source=m", "--workdir=w", *arguments])[0]


def flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    items = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return items


def test_the_page_holds_every_setting_as_the_settings_say_it():
    """`python tools/config_docs.py` writes it."""
    text = (REPOSITORY / "docs" / "config.md").read_text()
    assert page(text, RunSettings()) == text
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| `(.*?)` \| (.+) \| (no|told|yes) \| (.+) \|$", text, re.MULTILINE)
    assert {name: default for name, default, *_ in rows} == {k: repr(v) for k, v in flat(settings.default()).items()}
    assert len(rows) == len(flat(settings.default()))
    assert all(len(what) > 5 for *_, what in rows)
    for file, anchor in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", text):
        there = (REPOSITORY / "docs" / file).read_text()
        assert not anchor or f"\n## {anchor.replace('-', ' ')}\n" in there.lower()


FREE = (
    "mesh.", "train.", "model.remat", "model.attention", "model.logit_chunk", "model.reference", "data.root",
    "data.valid", "data.index", "data.media_cache", "data.frame_cache", "data.workers", "data.timeout",
    "data.max_decoded_mb", "data.max_failed", "data.max_dropped", "data.max_doubtful", "rl.packing",
)  # fmt: skip
FIXED = ("optimizer.name", "rl.reference_every")  # what they keep is in checkpoints
TUNABLE = ("rl.", "reward.", "sampling.", "optimizer.", "sft.", "bestofn.")


def test_what_may_change_when_a_run_goes_on():
    for name, one in settings.SETTINGS.items():
        want = "free" if name.startswith(FREE) else "tunable" if name.startswith(TUNABLE) else "fixed"
        assert one.about.resume == ("fixed" if name in FIXED else want), name


def test_what_processes_may_have_otherwise():
    of_machine = {name for name, one in settings.SETTINGS.items() if one.about.of_machine}
    assert of_machine == {"data.root", "data.media_cache", "data.frame_cache", "data.workers"}
    command = settings.parse(["x", TINY, "--config.model.source=m", "--workdir=w", "--config.data.workers=3"])
    assert command.told.keys() == {*settings.SETTINGS, "--workdir"} - of_machine


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--helpshort", "-help"])
def test_help_is_no_mistake(capsys, flag):
    with pytest.raises(SystemExit) as end:
        run_distributed(lambda command: 1, lambda: settings.parse(["x", flag], "What it does.\n"))
    assert end.value.code == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert out.startswith("What it does.\n\nflags:\n  --config\n")
    assert "\n  --workdir\n      Folder of the run;" in out
    assert "\n  rl.group = 8  (a whole number, at least 2)\n      G: completions a prompt" in out
    assert "\n  optimizer.name = 'adamw'  (adamw, adafactor, muon)\n" in out
    assert "\n  data.video.end = None  (a number, above data.video.start, or none)\n" in out
    assert re.findall(r"^  ([a-z0-9_.]+) = ", out, re.MULTILINE) == list(settings.SETTINGS)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("batch.micr", "did you mean 'batch.micro'?"),
        ("rl.learning_rate", "did you mean 'optimizer.learning_rate'?"),
        ("rol.group", "did you mean 'rl.group'?"),
        ("lerning_rate", "did you mean 'optimizer.learning_rate'?"),
        ("data.min_pixels", "did you mean 'data.video_pixels.min_pixels' or 'data.image_pixels.min_pixels'?"),
        ("batch.qqqq", "--help lists them"),
    ],
)
def test_an_unknown_setting_s_error_says_those_near_it(name, near):
    with pytest.raises(UserError) as error:
        parse(f"--config.{name}=1")
    assert str(error.value) == f"there is no setting {name!r}; {near}"


def test_a_config_that_is_not_made_of_the_default_one():
    for change, message in (
        (lambda c: c.rl.__delattr__("group"), "rl.group is not in the config; start from"),
        (lambda c: c.rl.update({"groups": 3}), "there is no setting 'rl.groups'; did you mean 'rl.group'?"),
        (lambda c: c.__setitem__("rl", 3), "there is no setting 'rl'; "),
        (lambda c: c.batch.update({"micro": "3"}), "batch.micro is '3'; it must be a whole number"),
        (lambda c: c.batch.update({"micro": True}), "batch.micro is True; it must be a whole number"),
        (lambda c: c.batch.update({"micro": None}), "batch.micro is None; it must be a whole number"),
        (lambda c: c.data.update({"suffixes": 1}), "data.suffixes is 1; it must be true or false"),
        (lambda c: c.rl.update({"beta": "x"}), "rl.beta is 'x'; it must be a number"),
        (lambda c: c.data.update({"train": "a.json"}), "data.train is 'a.json'; it must be a tuple"),
    ):
        config = parse().copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            change(config)
        with pytest.raises(UserError) as error:
            settings.check(config)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", [p.name for p in sorted((REPOSITORY / "configs").glob("*.py"))])
def test_every_config_file_is_possible_and_survives_json(name):
    stages = (":warmup", ":sft", ":rl", ":bestofn") if name == "tiny.py" else ("",)
    for stage in stages:
        config = parse(file=f"--config={REPOSITORY}/configs/{name}{stage}")
        again = settings.check(settings.from_json(settings.to_json(config), name))
        assert settings.changes(settings.to_json(config), again, name) == {}
        assert settings.buckets(again) == settings.buckets(config)
        assert settings.optimizer(again) == settings.optimizer(config)
        assert settings.tgrpo(again) == settings.tgrpo(config)
        assert settings.style(again) == settings.style(config)


def test_values_of_the_command_line():
    config = parse(
        "--config.data.train=('a.json','b.json')", "--config.optimizer.learning_rate=1", "--config.rl.clip_low=0.2",
        "--config.data.buckets=(('text',0,0,9,5),)", "--config.data.system=Hello",
        "--config.optimizer.freeze=visual/.*",
    )  # fmt: skip
    assert config.data.train == ("a.json", "b.json")
    assert config.optimizer.learning_rate == 1.0
    assert settings.tgrpo(config).clip_low == 0.2
    assert settings.buckets(config)[0].completion == 5
    assert settings.style(config).system == "Hello"
    assert settings.optimizer(config).freeze == ("visual/.*",)


def test_flag_and_value_may_be_apart():
    argv = ["x", "--config", f"{REPOSITORY}/configs/tiny.py:sft", "--workdir", "w", "--config.model.source", "m"]
    config, workdir, *_ = settings.parse(argv)
    assert (config.model.source, workdir, config.data.train) == ("m", "w", ("sft.json",))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--noconfig.data.suffix", "there is no setting 'data.suffix'; did you mean 'data.suffixes'?"),
        ("--config.batch.micro=abc", "--config.batch.micro is 'abc'; it must be a whole number"),
        ("--config.batch.micro=1.5", "--config.batch.micro is '1.5'; it must be a whole number"),
        ("--config.rl.beta=much", "--config.rl.beta is 'much'; it must be a number"),
        ("--config.rl=3", "is not a dict"),
        ("--confg=3", "Unknown command line flag 'confg'"),
        ("more", "unexpected argument 'more'"),
        ("--config.batch.micro=0", "batch.micro is 0; it must be at least 1"),
        ("--config.seed=-1", "seed is -1; it must be at least 0"),
        ("--config.rl.group=1", "rl.group is 1; it must be at least 2"),
        ("--config.rl.lanes=9", "rl.lanes is 9; it must be between 0 and rl.group, 8"),
        ("--config.rl.slots=-1", "rl.slots is -1; it must be at least 0"),
        ("--config.model.remat=some", "model.remat is 'some'; use one of"),
        ("--config.model.attention=fast", "model.attention is 'fast'; use one of auto, xla, splash, cudnn"),
        ("--config.model.dtype=float16", "model.dtype is 'float16'; use one of"),
        ("--config.reward.mode=kind", "reward.mode is 'kind'; use one of"),
        ("--config.rl.gate=open", "rl.gate is 'open'; use one of"),
        ("--config.rl.shuffled=0", "set rl.shuffled > 0 or rl.gate='none'"),
        ("--config.sampling.temperature=0", "sampling.temperature is 0.0; it must be positive"),
        ("--config.data.weights=(1.0,2.0)", "data.weights has 2 numbers for 1 files of data.train"),
        ("--config.data.valid=()", "train.validate_every is set and data.valid is empty"),
        ("--config.data.modality.image=-1", "data.modality.image is -1.0; it must be at least 0"),
        ("--config.data.template=Answer!", "must name a template or hold {Question}"),
        ("--config.data.buckets=(('video',4,1,66,0),)", "is not (kind, F, W, P, C)"),
        ("--config.data.buckets=()", "holds 0 shapes"),
        ("--config.data.max_failed=2", "data.max_failed is 2.0; it must be between 0 and 1"),
        ("--config.data.video.fps=0", "data.video.fps is 0.0; it must be positive"),
        ("--config.data.video_pixels.max_pixels=1", "must be between 1 and data.video_pixels.max_pixels, 1"),
        ("--config.optimizer.schedule=stairs", "optimizer.schedule is 'stairs'; use one of"),
        ("--config.optimizer.learning_rate=0", "optimizer.learning_rate is 0.0; it must be positive"),
        ("--config.lora.rank=-1", "lora.rank is -1; it must be at least 0"),
        ("--profile=3", "'3' is no range of steps; write FIRST:LAST, such as 10:12"),
        ("--profile=5:4", "'5:4' is no range of steps"),
        ("--profile=0:4", "'0:4' is no range of steps"),
    ],
)
def test_what_cannot_be_is_one_clear_line(argument, message):
    with pytest.raises(UserError) as error:
        parse(argument)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_steps_to_profile_are_counted_as_in_the_log():
    argv = ["x", TINY, "--config.model.source=m", "--workdir=w"]
    assert list(settings.parse([*argv, "--profile=10:12"]).profile) == [10, 11, 12]
    assert list(settings.parse(argv).profile) == []


def test_what_is_needed_is_said():
    for argv, message in (
        (["x"], "both --config FILE and --workdir DIR are needed"),
        (["x", TINY, "--config.model.source=m"], "both --config FILE and --workdir DIR are needed"),
        (["x", TINY, "--workdir=w"], "model.source is not set"),
    ):
        with pytest.raises(UserError, match=message):
            settings.parse(argv)


FROM_DEFAULT = "from jvr1.config import default\ndef get_config():\n    c = default()\n"
FILES = [
    ("def get_config(:\n", "invalid syntax"),
    ("import nosuchmodule\n", "No module named 'nosuchmodule'"),
    ("def get_config():\n    return 3\n", "returns no ConfigDict"),
    (
        FROM_DEFAULT + "    c.batch.micr = 3\n    return c\n",
        "bad.py, line 4: there is no setting 'micr'; did you mean 'batch.micro'?",
    ),
    (
        FROM_DEFAULT + "    c.batch.micro = 'a'\n    return c\n",
        "bad.py, line 4: TypeError: Could not override field 'micro'",
    ),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_config_file_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UserError) as error:
        settings.from_file(f"{tmp_path}/bad.py")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_file_that_is_not_there():
    with pytest.raises(UserError, match=r"config file nosuch\.py does not exist"):
        parse(file="--config=nosuch.py:sft")
    with pytest.raises(UserError, match="has no stage 'x'; use one of warmup, sft, rl"):
        parse(file=f"--config={REPOSITORY}/configs/tiny.py:x")


def test_a_config_file_may_import_its_neighbours_and_leaves_no_trace(tmp_path):
    import sys

    shutil.copy(REPOSITORY / "configs" / "tgrpo_7b.py", tmp_path / "neighbour.py")
    (tmp_path / "mine.py").write_text("from neighbour import get_config\n")
    before = list(sys.path)
    assert parse(file=f"--config={tmp_path}/mine.py").rl.group == 8
    assert sys.path == before


def test_changes_name_what_differs():
    config = parse()
    kept = settings.to_json(config)
    config.seed, config.rl.beta, config.train.steps, config.data.train = 3, 0.0, 7, ("b.json",)
    changes = settings.changes(kept, config, "w")
    assert changes["seed"] == "seed: 0 -> 3"
    assert set(changes) == {"seed", "rl.beta", "train.steps", "data.train"}


def test_settings_of_an_older_version_get_the_new_defaults_and_unknown_ones_are_refused():
    kept = json.loads(settings.to_json(parse()))
    del kept["train"]["wandb"]
    kept["data"]["image_pixels"]["total_pixels"] = None  # which had no effect
    assert settings.from_json(json.dumps(kept), "w").train.wandb == ""
    kept["train"]["gone"] = 1
    with pytest.raises(UserError, match=r"w: its config.json is not of this version: there is no setting 'train.gone'"):
        settings.from_json(json.dumps(kept), "w")
    with pytest.raises(UserError, match=r"w: its config.json is not of this version"):
        settings.from_json("{", "w")
