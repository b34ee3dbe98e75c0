"""An error about a setting names it, and any other that it speaks of, as the command line does."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.config import default
from jvr1.data.frame_cache import FrameCache
from jvr1.errors import UserError
from jvr1.model.families import published
from jvr1.model.lora import LoRAConfig
from jvr1.opening.data import check_batch, check_prompt
from jvr1.setting import About
from jvr1.sharding import check_mesh, decode_mesh, make_mesh
from jvr1.train.setup import check_schedule

PACKAGE = Path(settings.__file__).parent
HELD = {
    "config_checks.py": ("check_together",),
    "config.py": ("check",),
    "setting.py": ("check_settings", "written_as"),
    "data/batch.py": ("make_buckets",),
    "data/prompts.py": ("placeholders_of",),
    "opening/data.py": ("check_prompt",),
    "model/media.py": ("__post_init__",),
    "data/frame_cache.py": ("__post_init__", "open"),
    "model/lora.py": ("__post_init__",),
    "problems/kinds.py": ("_load",),
    "rl/tgrpo.py": ("__post_init__",),
    "sharding.py": ("make_mesh", "decode_mesh", "check_mesh"),
    "optimizers/config.py": ("__post_init__",),
    "train/setup.py": ("check_schedule", "check_batch"),
}
"""Functions that refuse settings; all that they say is in the tables below."""
NOT_OF_A_SETTING = {("sharding.py", "unknown"), ("config.py", "left_out")}
"""Of an axis that the schema does not have: its config refuses that first; of a config not made of the default one."""

SETTINGS: list[tuple[str, object, dict[str, object]]] = [
    *((name, "other", {}) for name in ("model.remat", "model.attention", "model.dtype", "model.param_dtype")),
    ("model.rollout_dtype", "other", {}),
    ("model.rollout_dtype", "int8", {}),
    *((name, "other", {}) for name in ("model.reference", "reward.mode", "rl.gate", "rl.kl", "rl.aggregation")),
    *((name, "other", {}) for name in ("rl.ratio", "optimizer.schedule", "optimizer.name", "optimizer.moment_dtype")),
    *((name, 0, {}) for name in ("batch.micro", "batch.per_step", "train.steps", "train.save_every", "train.keep")),
    *((name, 0, {}) for name in ("rl.updates", "rl.max_length", "data.media_cache_gb", "data.frame_cache_gb")),
    ("data.max_decoded_mb", 0, {}),
    *((name, 0, {}) for name in ("model.logit_chunk", "data.index_workers", "optimizer.max_bad_steps")),
    *((name, -1, {}) for name in ("train.validate_every", "seed", "train.pictures_every", "mesh.decode_tensor")),
    ("train.samples_every", -1, {}),
    *((name, -1, {}) for name in ("rl.shuffled", "rl.slots", "rl.lanes", "lora.rank", "rl.packing")),
    *((name, -1, {}) for name in ("sampling.top_k", "rl.length_min", "optimizer.warmup_steps", "data.workers")),
    *((name, -1.0, {}) for name in ("rl.alpha", "rl.temporal_reward", "rl.beta", "rl.std_eps", "rl.clip_high")),
    *((name, -1.0, {}) for name in ("rl.factor", "rl.clip_low", "rl.kl_clip", "optimizer.weight_decay")),
    *((name, -1.0, {}) for name in ("optimizer.clip_norm", "data.video.start", "train.step_limit")),
    ("train.save_minutes", -1.0, {}),
    *((f"data.modality.{kind}", -1.0, {}) for kind in ("text", "image", "video")),
    *((name, 0.0, {}) for name in ("sampling.temperature", "sampling.top_p", "data.timeout", "reward.user_timeout")),
    *((name, 0.0, {}) for name in ("rl.std_eps", "optimizer.learning_rate", "optimizer.eps", "data.video.fps")),
    *((name, 1.0, {}) for name in ("rl.clip_low", "optimizer.b1", "optimizer.b2", "optimizer.momentum")),
    *((name, float("nan"), {}) for name in ("rl.beta", "data.timeout", "data.video.fps", "data.modality.image")),
    *((name, "other", {}) for name in ("rl.kl_in", "rl.rollout_correction", "rl.overlong", "rl.std_of", "rl.combine")),
    *((name, "other", {}) for name in ("rl.credit", "rl.credit_twin", "rl.objective")),
    ("rl.objective", "nowhere:gain", {}),
    ("rl.objective", "math:pi", {}),
    *((name, 0.0, {}) for name in ("rl.sapo_positive", "rl.sapo_negative", "rl.rollout_cap", "rl.entropy_target")),
    *((name, 0.0, {}) for name in ("rl.entropy_step", "rl.entropy_share", "rl.credit_share", "rl.credit_clip")),
    *((name, -1.0, {}) for name in ("rl.entropy_weight", "rl.overlong_penalty", "rl.credit_alpha", "rl.std_decay")),
    *((name, 0, {}) for name in ("rl.overlong_tokens", "rl.minibatches")),
    *((name, -1, {}) for name in ("rl.reference_every", "rl.refill")),
    ("rl.refill_share", 1.5, {}),
    ("rl.clip_dual", 1.0, {}),
    ("rl.clip_dual", 3.0, {"rl.objective": "cispo"}),
    ("rl.clip_low", 0.2, {"rl.objective": "sapo"}),
    ("rl.minibatches", 3, {"batch.per_step": 4}),
    ("rl.reference_every", 5, {"rl.beta": 0.0}),
    ("rl.group", 1, {}),
    ("rl.lanes", 9, {}),
    ("rl.shuffled", 0, {}),
    ("rl.length_min", 9, {"rl.length_max": 8}),
    ("sampling.top_p", 1.5, {}),
    *((name, 2.0, {}) for name in ("data.max_failed", "data.max_dropped", "data.max_doubtful")),
    *((name, 0, {}) for name in ("data.auto.completion", "data.auto.prompt", "data.auto.shapes")),
    ("data.auto.padding", 1.0, {}),
    *(("data.fields", (pair,), {}) for pair in ("video", "path=", "film=path", 3)),
    ("reward.user_failure", float("inf"), {}),
    ("reward.user_weight", float("inf"), {}),
    ("reward.user_concurrency", 0, {}),
    ("reward.max_failed", 2.0, {}),
    *(("reward.user_weights", (one,), {}) for one in ("style", "style=much", "=1", "style=1", "style=inf")),
    *(("reward.user_accuracy", (one,), {}) for one in ("iou", "=iou", "numerical=", "numerical=iou")),
    ("data.template", "Answer!", {}),
    ("data.train", (), {}),
    ("model.source", "", {}),
    *(
        ("data.kinds", (spec,), {})
        for spec in ("shade", "none:SHADE", "train.own_kind:NOTHING", "train.own_kind:BUILT_IN")
    ),
    ("data.weights", ("x",), {}),
    ("data.weights", (1.0, 2.0), {}),
    ("data.weights", (-1.0,), {}),
    ("data.weights", (float("inf"),), {}),
    ("data.buckets", (), {}),
    ("data.buckets", (("video", "many"),), {}),
    ("data.buckets", (("video", 4, 1, 66, 0),), {}),
    ("data.buckets", (("text", 0, 0, 9, 5), ("text", 0, 0, 9, 5)), {}),
    ("data.video.frames", 0, {}),
    ("data.video.max_frames", 1, {}),
    ("data.video.min_frames", 5, {"data.video.max_frames": 5}),
    ("data.video.end", 2.0, {"data.video.start": 3.0}),
    *((f"data.{kind}_pixels.max_pixels", 1, {}) for kind in ("video", "image")),
    *((f"data.{kind}_pixels.min_pixels", 0, {}) for kind in ("video", "image")),
    ("data.video_pixels.total_pixels", 0, {}),
    ("optimizer.freeze", ("[(",), {}),
    ("optimizer.eps", 1e-6, {"optimizer.name": "adafactor"}),
    ("optimizer.warmup_steps", 10**6, {"optimizer.schedule": "cosine"}),
    ("lora.patterns", ("(",), {}),
    ("lora.patterns", ("nothing",), {"lora.rank": 4}),
    ("lora.patterns", (), {"lora.rank": 4}),
    ("lora.alpha", 0.0, {"lora.rank": 4}),
    ("model.reference", "host", {"lora.rank": 4}),
    ("train.validate_every", 5, {}),
    ("train.stop_metric", "loss", {}),
]
"""A setting, a value it cannot have, what else is set."""


def possible() -> ConfigDict:
    config = default()
    config.model.source, config.data.train = "m", ("a.json",)
    config.data.buckets = (("text", 0, 0, 9, 5),)
    return settings.check(config)


def put(config: ConfigDict, name: str, value: object) -> None:
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[last] = value


def possible_with(name: str, value: object) -> ConfigDict:
    config = possible()
    put(config, name, value)
    return config


def refusal(name: str, value: object, others: dict[str, object]) -> UserError:
    config = possible()
    for each, its in [*others.items(), (name, value)]:
        put(config, each, its)
    with pytest.raises(UserError) as error:
        settings.check(config)
    return error.value


def late(name: str, value: object) -> Callable[[], object]:
    """What a run finds out of a setting once it knows its devices."""
    config = possible_with(name, value)
    put(config, "optimizer.schedule", "cosine")
    if name.startswith("optimizer"):
        return lambda: check_schedule(config, 1)
    return lambda: check_batch(config, make_mesh({"fsdp": 8}))


LATER: list[tuple[str, Callable[[], object]]] = [
    ("lora.rank", lambda: LoRAConfig(rank=0, alpha=1.0)),
    ("lora.patterns", lambda: LoRAConfig(rank=1, alpha=1.0, patterns=("(",))),
    ("data.frame_cache", lambda: FrameCache("gs://bucket/frames", 1)),
    ("data.frame_cache", lambda: FrameCache(__file__, 1).open()),
    ("data.frame_cache_gb", lambda: FrameCache("folder", 0)),
    ("mesh.fsdp", lambda: make_mesh({"fsdp": 0})),
    ("mesh.data", lambda: make_mesh({"data": 3})),
    ("mesh.decode_tensor", lambda: decode_mesh(make_mesh({"data": 8}), 3)),
    ("mesh.tensor", lambda: check_mesh(make_mesh({"tensor": 8}), published("7b"))),
    ("data.prompt_form", lambda: check_prompt(possible_with("data.prompt_form", "other"), published("qwen3-vl-8b"))),
    ("data.prompt_form", lambda: check_prompt(possible_with("data.prompt_form", "nested"), published("7b"))),
    ("data.real_seconds", lambda: check_prompt(possible_with("data.real_seconds", False), published("qwen3-vl-8b"))),
    ("optimizer.steps", late("optimizer.steps", 10)),
    ("batch.micro", late("batch.micro", 3)),
]


def flat(config: ConfigDict, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for key, value in config.items():
        names |= {prefix + key} | (flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else set())
    return names


NAMES = flat(default())
LAST = {name.rpartition(".")[2] for name in NAMES if "_" in name}


def misnamed(message: str, about: str) -> list[str]:
    """What a message about a setting calls other than the schema does: dotted names it lacks, last parts alone."""
    spoken = re.findall(r"(?<![\w./'])[a-z]\w*(?:\.[a-z]\w*)*", message.replace("--config.", ""))
    assert about in spoken, message
    unknown = [word for word in spoken if "." in word and word not in NAMES]
    return unknown + [word for word in spoken if word in LAST and word not in NAMES]


@pytest.mark.parametrize(("name", "value", "others"), SETTINGS, ids=str)
def test_a_setting_that_cannot_be_is_named(name, value, others):
    message = str(refusal(name, value, others))
    assert misnamed(message, name) == []
    assert all(other in message for other in others if other not in ("lora.rank", "optimizer.schedule"))


@pytest.mark.parametrize(("name", "refused"), LATER, ids=[name for name, _ in LATER])
def test_a_setting_that_cannot_be_here_is_named(name, refused):
    with pytest.raises(UserError) as error:
        refused()
    assert misnamed(str(error.value), name) == []


def test_each_setting_with_a_range_is_refused_above():
    plain = About("")
    ranged = {
        name
        for name, one in settings.SETTINGS.items()
        if replace(one.about, help="", resume=None, of_machine=False) != plain
    }
    assert ranged - {name for name, *_ in SETTINGS} == set()


def test_no_refusal_is_left_out():
    """Each `raise UserError` of the functions held was met by the tables above."""
    met: set[tuple[str, int]] = set()
    errors: list[BaseException] = [refusal(*row) for row in SETTINGS]
    for _, refused in LATER:
        with pytest.raises(UserError) as error:
            refused()
        errors.append(error.value)
    for one in errors:
        at: BaseException | None = one
        while at is not None:
            met |= {(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(at.__traceback__)}
            at = at.__context__
    for file, functions in HELD.items():
        path = PACKAGE / file
        lines = path.read_text().splitlines()
        held = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", "") in functions]
        raises = [
            node
            for function in held
            for node in ast.walk(function)
            if isinstance(node, ast.Raise) and node.exc and ast.unparse(node.exc).startswith("UserError(")
        ]
        assert {getattr(node, "name", "") for node in held} == set(functions)
        for node in raises:
            if any(file == at and word in lines[node.lineno - 1] for at, word in NOT_OF_A_SETTING):
                continue
            assert any((str(path), n) in met for n in range(node.lineno, node.end_lineno + 1)), lines[node.lineno - 1]


def test_no_message_of_the_package_names_a_setting_that_is_not():
    """Read from the source: what follows a section's name and a dot, in any text but docstrings."""
    sections = {name for name in NAMES if "." not in name and isinstance(default()[name], ConfigDict)}
    dotted = re.compile(rf"(?<![\w./*'-])(?:{'|'.join(sections)})(?:\.[a-z_]\w+)+")
    spoken = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise | ast.Call) and "Error(" in ast.unparse(node)[:40]:
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                spoken |= {name for text in texts if isinstance(text, str) for name in dotted.findall(text)}
    assert len(spoken) > 30
    assert spoken - NAMES == set()
