"""safetensors files in slices: an 8-byte header length, a JSON header, raw little-endian tensors.

The `safetensors` library writes a shard from memory and has no bfloat16 in numpy; here a tensor is a view of the
memory-mapped file on the way in, and one tensor at a time on the way out. Remote files are read by ranges.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np
from etils import epath

from jvr1.errors import UserError, shown
from jvr1.model.fields import parse_object
from jvr1.model.folder import form_of

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
CODES = {str(dtype): code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
SAFETENSORS_INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER = 100 * 2**20
LONGEST_NAME, MOST_AXES = 256, 8
"""Of a tensor: more than any model has, and few enough to be said in an error's line."""


class TensorSpec(NamedTuple):
    """Where a tensor lies."""

    file: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardReader:
    """All tensors of a folder of safetensors shards. Raises UserError that names the file or tensor."""

    def __init__(self, folder: epath.Path, rename: Callable[[str], str]):
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._maps: dict[epath.Path, np.memmap] = {}
        for path in shard_files(folder):
            for given, spec in read_header(path).items():
                name = rename(given)
                if name in self.specs:
                    raise UserError(f"{path}: tensor {given} is there twice, also in {self.specs[name].file.name}")
                self.specs[name] = spec

    def read(self, name: str) -> np.ndarray:
        """The tensor: a view of the mapped file when it is local, a copy otherwise."""
        spec = self.specs[name]
        count = math.prod(spec.shape)
        if "://" in str(spec.file):
            with spec.file.open("rb") as file:
                file.seek(spec.offset)
                return np.frombuffer(file.read(count * spec.dtype.itemsize), spec.dtype).reshape(spec.shape)
        if spec.file not in self._maps:
            self._maps[spec.file] = np.memmap(spec.file, np.uint8, "r")
        raw = self._maps[spec.file][spec.offset : spec.offset + count * spec.dtype.itemsize]
        return np.asarray(raw).view(spec.dtype).reshape(spec.shape)


def shard_files(folder: epath.Path) -> list[epath.Path]:
    """The shards of a folder, all of them there: those of the index, or model.safetensors.

    Other safetensors files of the folder are not the model's (adapters, another form of the weights).
    """
    index, single = folder / SAFETENSORS_INDEX, folder / SINGLE
    if not index.exists():
        return [single] if single.exists() else _without_index(folder)
    names = _indexed(index)
    if single.exists() and SINGLE not in names:
        raise UserError(
            f"{folder} holds {SINGLE} and {SAFETENSORS_INDEX}, which names other files; remove what is not the model's"
        )
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; {SAFETENSORS_INDEX} names it")
    return [folder / name for name in names]


def _indexed(index: epath.Path) -> list[str]:
    """The files an index names, of its own folder."""
    try:
        places = parse_object(index.read_bytes(), str(index)).get("weight_map")
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror}") from None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} is not a safetensors index: it holds no weight_map of file names")
    names = sorted(set(places.values()))
    for name in names:
        if not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
            raise UserError(f"{index} names {name[:80]!r}; a model's files are *.safetensors in its own folder")
    return names


def _without_index(folder: epath.Path) -> list[epath.Path]:
    files = sorted(folder.glob("*.safetensors"))
    parts = [re.fullmatch(r"model-\d+-of-(\d+)\.safetensors", path.name) for path in files]
    counts = {int(part[1]) for part in parts if part}
    if not counts:
        found = form_of(folder) or ", ".join(f.name for f in files[:3])
        raise UserError(f"{folder} holds no {SINGLE} or {SAFETENSORS_INDEX}" + (f" but {found}" if found else ""))
    shards = [path for path, part in zip(files, parts, strict=True) if part]
    if counts != {len(shards)}:
        raise UserError(
            f"{folder} holds {len(shards)} of {max(counts)} shards, and no {SAFETENSORS_INDEX} that names them"
        )
    return shards


def read_header(path: epath.Path) -> dict[str, TensorSpec]:
    """Tensors of one file by name; checks that the file is whole and that they fill it, as the library does."""
    try:
        size = path.stat().length
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(MAX_HEADER, size - 8):
                raise UserError(f"{path} is truncated or not a safetensors file ({size} bytes)")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        header = parse_object(text, str(path))
    except UserError as error:
        raise UserError(f"{path} is not a safetensors file: its header: {str(error).removeprefix(str(path))}") from None
    specs = {name: _spec(path, name, entry, 8 + length) for name, entry in header.items() if name != METADATA}
    at = 8 + length
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if spec.offset != at:
            raise UserError(
                f"{path}: tensor {name} begins at byte {spec.offset - 8 - length}, not where the one before ends"
            )
        at += spec.bytes
    if at > size:
        raise UserError(f"{path} is truncated: its tensors end at byte {at} of {size}")
    if at < size:
        raise UserError(f"{path} holds {size - at} bytes after its last tensor")
    return specs


def _spec(path: epath.Path, name: str, entry: Any, start: int) -> TensorSpec:
    """One entry of a header whose tensors begin at byte `start`."""
    raw = entry if isinstance(entry, dict) else {}
    shape, offsets, code = raw.get("shape"), raw.get("data_offsets"), raw.get("dtype")
    if len(name) > LONGEST_NAME or (isinstance(shape, list) and len(shape) > MOST_AXES):
        raise UserError(f"{path} is not a safetensors file: no model has a tensor such as {shown(name)} of its header")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2 and isinstance(code, str)):
        raise UserError(f"{path} is not a safetensors file: its header does not describe tensor {name[:80]}")
    if code not in DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {code[:40]}; {', '.join(DTYPES)} can be read")
    spec = TensorSpec(path, DTYPES[code], tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != spec.bytes:
        raise UserError(
            f"{path}: tensor {name} takes {offsets[1] - offsets[0]} bytes; shape {spec.shape} needs another number"
        )
    return spec


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


def write_shard(
    path: epath.Path, tensors: list[tuple[str, tuple[int, ...]]], dtype: str, values: Iterable[np.ndarray]
) -> None:
    """Writes tensors of one dtype in the given order; `values` is consumed one by one."""
    itemsize, header, at = DTYPES[CODES[dtype]].itemsize, {}, 0
    for name, shape in tensors:
        size = math.prod(shape) * itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({METADATA: {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), value in zip(tensors, values, strict=True):
            if value.shape != shape or str(value.dtype) != dtype:
                raise ValueError(f"{name} is {value.dtype}{value.shape}, announced as {dtype}{shape}")
            file.write(np.ascontiguousarray(value).view(np.uint8).reshape(-1).data)
