"""Folders given as a model that are none, or damaged: one line that names what is wrong; nothing is read elsewhere."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jvr1.data.chat import check_tokenizer
from jvr1.demo.dataset import questions
from jvr1.demo.questions import TASKS
from jvr1.demo.tiny_model import (
    corpus,
    generation_config,
    json_bytes,
    processor_config,
    raw_config,
    tokenizer_files,
    train_tokenizer,
)
from jvr1.errors import UserError
from jvr1.model import hf
from jvr1.model.families import from_hf
from jvr1.model.safetensors import SAFETENSORS_INDEX
from jvr1.opening.models import make_tokenizer, open_model
from jvr1.sharding import make_mesh

WEIGHTS = "model.safetensors"
RAW = oracle.raw_config(num_hidden_layers=1, vision_depth=1, vision_fullatt_block_indexes=[0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder as published: flat config, tokenizer with its template, one file of weights."""
    folder = tmp_path_factory.mktemp("folders") / "tiny"
    tokenizer = train_tokenizer(corpus(questions(TASKS, each=4, seed=0)))
    config = from_hf(raw_config(tokenizer))
    files = tokenizer_files(tokenizer) | {
        "preprocessor_config.json": json_bytes(processor_config()),
        "generation_config.json": json_bytes(generation_config(tokenizer)),
    }
    hf.save(oracle.random_model(config)[1], config, folder, carried=files, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The least model, in several shards."""
    folder = tmp_path_factory.mktemp("folders") / "small"
    config = from_hf(RAW)
    hf.save(oracle.random_model(config)[1], config, folder, carried={}, dtype="float32", shard_bytes=80_000)
    assert (folder / SAFETENSORS_INDEX).exists()
    return folder


def opened(folder: Path) -> None:
    """What every command does first."""
    model = open_model(folder, make_mesh({}, jax.devices()[:1]), dtype="float32", param_dtype="float32")
    if model.carried:
        check_tokenizer(make_tokenizer(model.carried, model.config, str(folder)), model.config, str(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.fixture
def copy(small, tmp_path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


@pytest.fixture
def talking(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "talking"))


def test_the_undamaged_open(tiny, small):
    opened(tiny)
    opened(small)


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; it must be at most 1024"),
        ({"num_hidden_layers": "3"}, 'num_hidden_layers is "3"; a whole number belongs there'),
        ({"num_hidden_layers": 3.5}, "num_hidden_layers is 3.5; a whole number belongs there"),
        ({"num_hidden_layers": [3]}, "num_hidden_layers is [3]; a whole number belongs there"),
        ({"hidden_size": None}, "hidden_size is null; a whole number belongs there"),
        ({"hidden_size": True}, "hidden_size is true; a whole number belongs there"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000; it must be at most"),
        ({"rope_theta": 0}, "rope_theta is 0; it must be above 1"),
        ({"rope_theta": "1e4"}, 'rope_theta is "1e4"; a number belongs there'),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be above 0"),
        ({"rms_norm_eps": 1e999}, "config.json is not valid JSON: Infinity is no number of JSON"),
        ({"rope_theta": float("nan")}, "config.json is not valid JSON: NaN is no number of JSON"),
        ({"image_token_id": -5}, "image_token_id is -5; it must be at least 0"),
        ({"image_token_id": "x"}, 'image_token_id is "x"; a whole number belongs there'),
        ({"video_token_id": 96}, "video_token_id is 96, beyond the table of vocab_size 96"),
        ({"video_token_id": 90}, "image_token_id and video_token_id are the same"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings is "false"; true or false belongs there'),
        ({"use_sliding_window": "yes"}, 'use_sliding_window is "yes"; true or false belongs there'),
        ({"eos_token_id": ["<|im_end|>"]}, "eos_token_id is [\"<|im_end|>\"]; a list of whole numbers belongs there"),
        ({"rope_scaling": [1, 2, 3]}, "rope_scaling is [1, 2, 3]; an object belongs there"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [6]}}, "mrope_section is [6]; it must hold three numbers"),
        ({"vision_config": RAW["vision_config"] | {"fullatt_block_indexes": [99]}}, "is [99]; each must be from 0"),
        ({"vision_config": RAW["vision_config"] | {"window_size": None}}, "vision_config.window_size is null; a whole"),
        ({"vision_config": RAW["vision_config"] | {"patch_size": 0}}, "vision_config.patch_size is 0; it must"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised (quantization_config: awq)"),
        ({"text_config": "qwen"}, 'text_config is "qwen"; an object belongs there'),
    ],
)  # fmt: skip
def test_values_of_a_config(copy, change, message):
    edit(copy / "config.json", lambda raw: raw.update(change))
    told = refusal(copy)
    assert told.startswith(str(copy / "config.json"))
    assert message in told


def test_a_name_that_stands_twice_and_an_endless_nesting(copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text('{"hidden_size": 96,' + text[1:])
    assert "'hidden_size' stands there twice" in refusal(copy)
    (copy / "config.json").write_text("[" * 100_000)
    assert "config.json is not valid JSON" in refusal(copy)


# --- safetensors ------------------------------------------------------------------------------------------------------


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    """Changes the header of a safetensors file and leaves its bytes."""
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def shift(by: int, count: int | None = None) -> Callable[[dict], None]:
    def change(header: dict) -> None:
        for entry in [e for n, e in header.items() if n != "__metadata__"][:count]:
            entry["data_offsets"] = [i + by for i in entry["data_offsets"]]

    return change


def double(header: dict) -> None:
    """Two tensors of one shape at one place."""
    shapes = {n: tuple(e.get("shape", ())) for n, e in header.items()}
    first, second = next((a, b) for a, b in itertools.combinations(shapes, 2) if shapes[a] and shapes[a] == shapes[b])
    header[second]["data_offsets"] = header[first]["data_offsets"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shift(-4), "does not describe tensor"),
        (shift(4), "not where the one before ends"),
        (shift(4, count=1), "not where the one before ends"),
        (double, "not where the one before ends"),
        (lambda h: next(e for e in h.values() if "shape" in e).update(shape="48"), "does not describe tensor"),
        (lambda h: next(e for e in h.values() if "shape" in e).update(shape=[-48]), "does not describe tensor"),
        (lambda h: next(e for e in h.values() if "shape" in e).update(dtype=7), "does not describe tensor"),
        (lambda h: {**h, "more": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "not where the one before"),
    ],
)
def test_headers_that_the_library_refuses_too(copy, change, message):
    file = sorted(copy.glob("*.safetensors"))[-1]
    rewrite(file, change)
    with pytest.raises(Exception, match=r"(?i)header|offset|metadata|data"), safe_open(file, "np") as library:
        library.keys()
    told = refusal(copy)
    assert told.startswith(str(file))
    assert message in told


@pytest.mark.parametrize(
    "change",
    [
        lambda h: {"x" * 100_000: next(iter(h.values()))},
        lambda h: next(e for e in h.values() if "shape" in e).update(shape=[1] * 100_000),
        lambda h: next(e for e in h.values() if "shape" in e).update(dtype="x" * 100_000),
    ],
)
def test_what_a_header_holds_without_end_is_named_in_short(copy, change):
    file = sorted(copy.glob("*.safetensors"))[-1]
    rewrite(file, change)
    told = refusal(copy)
    assert told.startswith(str(file))
    assert len(told) < 600


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "x" * 100_000},
        {"rope_scaling": {"type": "x" * 100_000}},
        {"quantization_config": {"quant_method": "x" * 100_000}},
        {"hidden_size": "x" * 100_000},
    ],
)
def test_a_value_without_end_is_named_in_short(copy, change):
    edit(copy / "config.json", lambda raw: raw.update(change))
    assert len(refusal(copy)) < 600


def test_a_name_without_end_that_stands_twice(copy):
    name = "x" * 100_000
    (copy / "config.json").write_text(f'{{"{name}": 1, "{name}": 2}}')
    assert len(refusal(copy)) < 600


def test_bytes_after_the_last_tensor(copy):
    file = sorted(copy.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes() + b"\0" * 12)
    with pytest.raises(Exception, match=r"(?i)header|metadata"), safe_open(file, "np") as library:
        library.keys()
    assert "holds 12 bytes after its last tensor" in refusal(copy)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "../small/model.safetensors", "a/b.safetensors", ".."]
)
def test_an_index_stays_in_its_folder(copy, name, monkeypatch):
    edit(copy / SAFETENSORS_INDEX, lambda raw: raw["weight_map"].update({next(iter(raw["weight_map"])): name}))
    original = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: _within(file, copy) and original(file, *a, **k))
    assert f"names {name!r}; a model's files are *.safetensors in its own folder" in refusal(copy)


def _within(file: object, folder: Path) -> bool:
    assert isinstance(file, int) or folder in Path(str(file)).resolve().parents, f"{file} was opened"
    return True


@pytest.mark.parametrize("index", [[], {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {}}, {}])
def test_an_index_of_another_form(copy, index):
    (copy / SAFETENSORS_INDEX).write_text(json.dumps(index))
    assert SAFETENSORS_INDEX in refusal(copy)


# --- folders of another kind ------------------------------------------------------------------------------------------


def test_a_file_for_a_folder(tiny, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path / "m.gguf").startswith(f"{tmp_path}/m.gguf is a file; a model is an HF folder")
    assert refusal(tiny / WEIGHTS).endswith(f"name its folder, {tiny}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapters of peft (adapter_config.json): merge them"),
        (["m-q4.gguf"], "weights of llama.cpp (m-q4.gguf)"),
        (["pytorch_model.bin"], "weights as a pickle (pytorch_model.bin), which jvr1 never opens"),
        (["consolidated.safetensors"], "consolidated.safetensors"),
        (["model-00001-of-00003.safetensors"], "holds 1 of 3 shards"),
    ],
)
def test_what_a_folder_holds_instead_of_weights(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    if "safetensors" not in names[0]:
        assert message in refusal(tmp_path)  # without a config.json
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    assert message in refusal(tmp_path)


def renamed(names: Callable[[str], str]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            save_file({names(k): v for k, v in load_file(file).items()}, file)
        (folder / SAFETENSORS_INDEX).unlink()

    return change


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda n: f"base_model.model.{n}", "have names of peft (base_model.model."),
        (lambda n: f"language_model.{n}", "have names of another program (language_model.model."),
        (lambda n: f"module.{n}", "have names of another program (module."),
        (lambda n: n.replace("up_proj.weight", "up_proj.qweight"), "are quantised ("),
    ],
)
def test_tensors_of_another_program(copy, names, message):
    renamed(names)(copy)
    assert f"tensors {message}" in refusal(copy)


def test_a_stray_file_is_not_the_model_s(talking):
    save_file({"lora": np.zeros(2, np.float32)}, talking / "adapter_model.safetensors")
    opened(talking)
    edit_index = {"metadata": {}, "weight_map": {"lora": "adapter_model.safetensors"}}
    (talking / SAFETENSORS_INDEX).write_text(json.dumps(edit_index))
    assert f"holds {WEIGHTS} and {SAFETENSORS_INDEX}, which names other files" in refusal(talking)


def test_a_tensor_in_two_files(copy):
    first, *_, last = sorted(copy.glob("*.safetensors"))
    save_file(load_file(last) | dict([next(iter(load_file(first).items()))]), last)
    assert f"is there twice, also in {first.name}" in refusal(copy)


# --- tokenizer and template -------------------------------------------------------------------------------------------


def template(folder: Path) -> str:
    """Takes the template out of the folder's tokenizer files."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    found = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    edit(folder / "tokenizer_config.json", lambda raw: raw.pop("chat_template"))
    return found


def test_a_template_in_chat_template_json_is_used_and_none_is_refused(talking):
    text = template(talking)
    assert "has no chat template in chat_template.jinja, chat_template.json or tokenizer_config.json" in refusal(
        talking
    )
    (talking / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    opened(talking)
    for content in ("[]", '{"chat_template": 3}', '{"other": ""}', "{"):
        (talking / "chat_template.json").write_text(content)
        assert "chat_template.json" in refusal(talking)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "the chat template cannot be used: "),
        ("{{ nothing.at.all }}", "the chat template cannot be used: "),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
            "0 image and 0 video pl",
        ),
        ("<|image_pad|><|video_pad|>", "where one each and the question belong"),
    ],
)
def test_templates_that_put_no_question_after_its_video(talking, text, message):
    template(talking)
    (talking / "chat_template.jinja").write_text(text)
    assert message in refusal(talking)


def test_ids_beyond_the_table_are_refused(talking):
    vocab = json.loads((talking / "config.json").read_text())["vocab_size"]
    added = {"content": "<extra>", "special": False, "id": vocab, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}  # fmt: skip
    edit(talking / "tokenizer.json", lambda raw: raw["added_tokens"].append(added))
    told = refusal(talking)
    assert f"1 tokens of the tokenizer lie beyond the table of {vocab} rows, the first '<extra>' = {vocab}" in told


def test_placeholders_of_another_id(talking):
    edit(talking / "config.json", lambda raw: raw.update(image_token_id=3))
    assert "0 image and 1 video placeholders (ids 3, " in refusal(talking)


# --- 150 damaged folders ----------------------------------------------------------------------------------------------

VALUES = (None, "", "x", "12", -1, 0, 1, 2**31, 10**30, 0.5, 1e-300, 1e300, True, [], [1], [[]], {}, {"a": 1})


def damage(folder: Path, rng: np.random.Generator) -> str:
    """One thing of a folder changed at random; says what."""
    files = sorted(p for p in folder.iterdir())
    file = files[rng.integers(len(files))]
    content = file.read_bytes()
    kind = rng.integers(7)
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(content[: rng.integers(len(content))])
    elif kind == 2:
        file.unlink()
        file.mkdir()
    elif kind == 3:
        at = int(rng.integers(min(len(content), 2000)))
        file.write_bytes(content[:at] + rng.bytes(8) + content[at + 8 :])
    elif kind == 4 and file.suffix == ".safetensors":
        rewrite(file, lambda header: nudge(header, rng))
    elif file.suffix == ".json":
        edit(file, lambda raw: nudge(raw, rng))
    else:
        file.write_bytes(rng.bytes(200))
    return f"{file.name}, kind {kind}"


def nudge(raw: dict, rng: np.random.Generator) -> None:
    """Another value at a random place of a JSON object."""
    place: dict | list = raw
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
            continue
        place[key] = VALUES[rng.integers(len(VALUES))]
        return


@pytest.mark.slow
def test_150_damaged_folders_open_or_are_refused_in_one_line(tiny, small, tmp_path):
    """Seeded, in this process: whatever else is raised fails the test."""
    rng = np.random.default_rng(20261126)
    told: list[str] = []
    for number in range(150):
        folder = Path(shutil.copytree((tiny, small)[number % 2], tmp_path / str(number)))
        what = damage(folder, rng)
        try:
            opened(folder)
        except UserError as error:
            told.append(str(error))
        except Exception as error:
            raise AssertionError(f"number {number}: {what}") from error
    assert len(told) > 75
    assert all("\n" not in line and len(line) < 1000 for line in told)
