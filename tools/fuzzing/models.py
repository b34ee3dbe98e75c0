"""Model folders that are not what they should be, of a tiny random checkpoint in two shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzzing.damage import DIGITS, MARK, Rng, harm
from tools.fuzzing.watch import Canaries

INDEX = "model.safetensors.index.json"
JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
TEMPLATES = (
    "{% for m in messages %}", "{{ messages[0", "{% include '/etc/passwd' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{% set x = 1 / 0 %}", "{{ raise_exception('no') }}", "",
    "{{ messages }}", "{{ undefined.attribute.of }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "\0",
    "{{ 'a' * 10**7 }}",    "{% import 'os' as os %}", "{{ namespace(**messages) }}",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, 1e-300, 1e308, float("nan"), float("inf"), "", "3",
    "x" * 100_000, "../../etc/passwd", "\ud83d", MARK, [], [1], [-1], [[1]], ["a"], [10**9], {}, {"a": 1},
    "qwen2_vl", "bfloat16",
)  # fmt: skip


def make(folder: Path) -> None:
    """The folder as it should be."""
    from etils import epath

    from jvr1.demo.tiny_model import write_tiny_model
    from jvr1.model.safetensors import ShardReader, write_shard

    write_tiny_model(folder, 0)
    weights = ShardReader(epath.Path(folder), lambda name: name)
    names = list(weights.specs)
    tensors = {name: np.array(weights.read(name)) for name in names}
    (folder / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        kind = str(tensors[part[0]].dtype)
        write_shard(epath.Path(folder / file), [(n, tensors[n].shape) for n in part], kind, (tensors[n] for n in part))
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write(rng: Rng, folder: Path, good: Path, canaries: Canaries) -> tuple[str, str]:
    """Writes one case. Gives the folder's name within the case's, and what was done."""
    model = folder / "model"
    shutil.copytree(good, model)
    done = []
    for _ in range(int(rng.choice((1, 1, 2)))):
        how = WAYS[int(rng.integers(len(WAYS)))]
        done.append(f"{how.__name__.strip('_')} {how(rng, model, canaries)}")
    return "model", ", ".join(done)


def _shards(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def _pick(rng: Rng, items: Any) -> Any:
    return list(items)[int(rng.integers(len(items)))]


def _dump(file: Path, raw: Any) -> None:
    file.write_bytes(json.dumps(raw).replace(f'"{MARK}"', DIGITS).encode())


def _places(raw: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all values of a JSON document, at most some hundred."""
    found: list[tuple[Any, Any]] = []
    todo = [raw]
    while todo and len(found) < 500:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                todo.append(node[key])
    return found


def _load(file: Path) -> Any:
    """What an earlier way left of it."""
    try:
        return json.loads(file.read_text())
    except (ValueError, OSError):
        return None


def _config(rng: Rng, model: Path, canaries: Canaries) -> str:
    return _value(rng, model / "config.json")


def _json(rng: Rng, model: Path, canaries: Canaries) -> str:
    return _value(rng, model / str(rng.choice(JSON)))


def _value(rng: Rng, file: Path) -> str:
    """Another value, none, or one more in its place."""
    raw = _load(file)
    if not isinstance(raw, dict) or not (places := _places(raw)):
        return "nothing left"
    node, key = places[int(rng.integers(len(places)))]
    value = VALUES[int(rng.integers(len(VALUES)))]
    if rng.random() < 0.15:
        node.pop(key)
        value = "gone"
    else:
        node[key] = value
    _dump(file, raw)
    return f"{file.name} {key}={value!r:.30}"


def _bytes(rng: Rng, model: Path, canaries: Canaries) -> str:
    file = _pick(rng, sorted(p for p in model.iterdir() if p.is_file()) or [model / "config.json"])
    data, how = harm(rng, file.read_bytes() if file.exists() else b"{}")
    file.write_bytes(data)
    return f"{file.name} {how}"


def _header(rng: Rng, model: Path, canaries: Canaries) -> str:
    """The header of a shard: its length, or a value of a tensor."""
    if not (shards := _shards(model)):
        return "nothing left"
    file = _pick(rng, shards)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:end])
        name = _pick(rng, header)
        entry = header[name]
    except (ValueError, IndexError, OverflowError):
        return "nothing left"
    what = str(rng.choice(("length", "shape", "dtype", "data_offsets", "entry", "name", "shift", "metadata")))
    odd = VALUES[int(rng.integers(len(VALUES)))]
    numbers = [[0, 0], [0, 2**40], [2**62, 2**63], [-1, 4], [4, 0], [0], [2**31, 2**31], [1] * 1000]
    if what == "length":
        size = int(rng.choice(np.array((0, 1, 7, 2**20, 2**32, 2**63 - 1, len(data)), np.uint64)))
        file.write_bytes(size.to_bytes(8, "little") + data[8:])
        return f"{file.name} length {size}"
    if what in ("shape", "dtype", "data_offsets") and isinstance(entry, dict):
        entry[what] = odd if rng.random() < 0.4 else str(rng.choice(("F32", "F64", "I8", "BOOL", "F8_E4M3")))
        if what != "dtype" and rng.random() < 0.6:
            entry[what] = numbers[int(rng.integers(len(numbers)))]
    elif what == "shift" and isinstance(entry, dict):
        entry["data_offsets"] = [i + int(rng.choice((-4, 4, 10**6))) for i in entry.get("data_offsets", [])]
    elif what == "metadata":
        header["__metadata__"] = odd
    elif what == "name":
        header[str(rng.choice(("../x", "model.layers.99.mlp.up_proj.weight", "", "x" * 10_000)))] = header.pop(name)
    else:
        header[name] = odd
    text = json.dumps(header).replace(f'"{MARK}"', DIGITS).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return f"{file.name} {what} of {name}"


def _weights(rng: Rng, model: Path, canaries: Canaries) -> str:
    """Numbers that are none."""
    if not (shards := _shards(model)):
        return "nothing left"
    data = bytearray(_pick(rng, shards).read_bytes())
    at = len(data) - 4 * int(rng.integers(1, 500))
    data[at : at + 4] = b"\xff\xff\xff\xff"
    _shards(model)[0].write_bytes(data)
    return "not a number"


def _index(rng: Rng, model: Path, canaries: Canaries) -> str:
    """Places of tensors outside of the folder, of no file, of another kind."""
    raw = _load(model / INDEX)
    if not isinstance(raw, dict) or not isinstance(raw.get("weight_map"), dict) or not raw["weight_map"]:
        return "nothing left"
    targets = [
        *canaries.names(model),
        "../model/config.json",
        "config.json",
        "/dev/zero",
        "/dev/stdin",
        "..",
        "a" * 300,
    ]
    target = _pick(rng, [*targets, f"{'n' * 300}.safetensors", "absent.safetensors", "a\0.safetensors", *VALUES])
    if rng.random() < 0.2:
        raw["weight_map"] = target
    else:
        raw["weight_map"][_pick(rng, raw["weight_map"])] = target
    _dump(model / INDEX, raw)
    return f"{target!r:.60}"


def _missing(rng: Rng, model: Path, canaries: Canaries) -> str:
    files = sorted(p for p in model.iterdir() if p.is_file())
    file = _pick(rng, files or [model / "config.json"])
    file.unlink(missing_ok=True)
    return file.name


def _odd(rng: Rng, model: Path, canaries: Canaries) -> str:
    """A file that is no file."""
    file = _pick(rng, sorted(model.iterdir()) or [model / "config.json"])
    what = str(rng.choice(("folder", "loop", "gone", "empty")))
    if file.is_dir():
        return "nothing left"
    file.unlink(missing_ok=True)
    if what == "folder":
        file.mkdir()
    elif what == "empty":
        file.touch()
    else:
        os.symlink(file.name if what == "loop" else "nowhere", file)
    return f"{file.name} {what}"


def _template(rng: Rng, model: Path, canaries: Canaries) -> str:
    text = str(rng.choice(TEMPLATES))
    place = str(rng.choice(("chat_template.jinja", "chat_template.json", "tokenizer_config.json")))
    if place == "chat_template.jinja":
        (model / place).write_text(text)
    else:
        (model / "chat_template.jinja").unlink(missing_ok=True)  # which goes before the others
        raw = _load(model / place) or {}
        _dump(model / place, {**raw, "chat_template": text} if isinstance(raw, dict) else raw)
    return f"{place} {text[:30]!r}"


def _stranger(rng: Rng, model: Path, canaries: Canaries) -> str:
    """Files of others beside it, or what marks another form of ours."""
    name = str(
        rng.choice(("lora.json", "checksums.json", "params", "checkpoints", "adapter_config.json", "model.safetensors"))
    )
    if name in ("params", "checkpoints"):
        (model / name).mkdir(exist_ok=True)
        (model / name / "x").write_text("x")
    else:
        (model / name).write_text(json.dumps(VALUES[int(rng.integers(len(VALUES)))]))
    return name


WAYS: tuple[Callable[[Rng, Path, Canaries], str], ...] = (
    _config, _config, _config, _json, _bytes, _bytes, _header, _header, _header, _index, _index, _missing, _odd,
    _template, _template, _weights, _stranger,
)  # fmt: skip


class Opening:
    """Opens a folder as every command does, and writes it as jvr1 convert does: a hash of the parameters."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        import jvr1.opening.models  # here, for the helper's start has a longer limit than a call

        self.models = jvr1.opening.models

    def __call__(self, path: str) -> str:
        """Raises UserError, and what no command would make a sentence of."""
        from jvr1.errors import UserError, storage_fault
        from jvr1.mistakes import sentence
        from jvr1.processes.guard import explain

        try:
            return self._opened(Path(self.root, path))
        except UserError:
            raise
        except Exception as error:  # as `run_main` and `explaining` do
            told = explain(error)
            said = str(told) if told else storage_fault(error) if isinstance(error, OSError) else None
            if said := said or sentence(error):
                raise UserError(said) from None
            raise

    def _opened(self, folder: Path) -> str:
        import jax

        from jvr1.data.chat import check_tokenizer
        from jvr1.sharding import make_mesh

        models = self.models
        model = models.open_model(folder, make_mesh({}, jax.devices()[:1]), dtype="float32", param_dtype="float32")
        check_tokenizer(models.make_tokenizer(model.carried, model.config, str(folder)), model.config, str(folder))
        models.save_model(folder.parent / "converted", model.params, model.config, model.carried, model.lora)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(model.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:12]
