"""safetensors files in slices: an 8-byte header length, a JSON header, raw little-endian tensors.

The `safetensors` library writes a shard from memory and has no bfloat16 in numpy; here a tensor is a view of the
memory-mapped file on the way in, and one tensor at a time on the way out. Remote files are read by ranges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from jvr1.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
CODES = {str(dtype): code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 * 2**20


class TensorSpec(NamedTuple):
    """Where a tensor lies."""

    file: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class ShardReader:
    """All tensors of a folder of safetensors shards. Raises UserError that names the file or tensor."""

    def __init__(self, folder: epath.Path, rename: Callable[[str], str]):
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._maps: dict[epath.Path, np.memmap] = {}
        for path in shard_files(folder):
            self.specs |= {rename(name): spec for name, spec in read_header(path).items()}

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
    """The shards of a folder, all of them there."""
    index = folder / INDEX
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder} holds no *.safetensors file")
        return files
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not a safetensors index: {error!r}") from None
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; {INDEX} names it")
    return [folder / name for name in names]


def read_header(path: epath.Path) -> dict[str, TensorSpec]:
    """Tensors of one file by name; checks that the file is whole."""
    size = path.stat().length
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is truncated or not a safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{path} is not a safetensors file: its header is not JSON") from None
    try:
        entries = {n: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for n, e in header.items() if n != METADATA}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path} is not a safetensors file: its header does not describe tensors") from None
    specs = {}
    for name, (code, shape, begin, end) in entries.items():
        if code not in DTYPES:
            raise UserError(f"{path}: tensor {name} has dtype {code}; {', '.join(DTYPES)} can be read")
        dtype = DTYPES[code]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{path}: tensor {name} takes {end - begin} bytes; shape {shape} needs another number")
        if 8 + length + end > size:
            raise UserError(f"{path} is truncated: tensor {name} ends at byte {8 + length + end} of {size}")
        specs[name] = TensorSpec(path, dtype, shape, 8 + length + begin)
    return specs


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
