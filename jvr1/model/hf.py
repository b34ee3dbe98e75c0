"""HF folders: read in slices straight to the devices, written back in the published form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.families import from_hf, to_hf
from jvr1.model.fields import parse_object
from jvr1.model.folder import foreign, form_of
from jvr1.model.lora import A, B, LoRAConfig
from jvr1.model.safetensors import ShardReader, write_shard
from jvr1.model.weights import Tensor, get, hf_tensors, to_ours, to_theirs

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""Files beside the weights that travel with a model."""


def read_config(folder: epath.PathLike) -> ModelConfig:
    """The shape of the model in a folder. Raises UserError naming the file."""
    path = epath.Path(folder) / CONFIG
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = form_of(epath.Path(folder))
        held = f"{folder} holds {found}" if found else "a model folder holds one"
        raise UserError(f"{path} does not exist; {held}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return from_hf(parse_object(text, str(path)), str(path))


_IGNORED = re.compile(r".*rotary_emb\.inv_freq")


def load(folder: epath.PathLike, config: ModelConfig, shapes: dict, shardings: Any) -> dict:
    """Parameters of an HF folder, laid out as `shapes` (ShapeDtypeStructs) and `shardings` say.

    Each device gets its slice straight from the memory-mapped file; the host holds one tensor at a time.
    Raises UserError that names the file or tensor: missing, unexpected, of another shape, truncated.
    """
    reader = ShardReader(epath.Path(folder), rename=config.family.published_name)
    tensors = list(hf_tensors(config, shapes))
    _check_names(reader, tensors, config)
    params: dict = {}
    for tensor in tensors:
        shape = get(shapes, tensor.rule.path)
        sharding = get(shardings, tensor.rule.path)
        if tensor.layer is None:
            _set(params, tensor.rule.path, _place(reader, tensor, shape.shape, shape.dtype, sharding))
            continue
        stacked = get(params, tensor.rule.path)
        if stacked is None:
            stacked = _zeros(shape.shape, shape.dtype, sharding)
        one = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
        part = _place(reader, tensor, shape.shape[1:], shape.dtype, one)
        _set(params, tensor.rule.path, _insert(sharding)(stacked, part, np.int32(tensor.layer)))
    return params


def _check_names(reader: ShardReader, tensors: list[Tensor], config: ModelConfig) -> None:
    if known_as := foreign(set(reader.specs) - {t.name for t in tensors}):
        raise UserError(f"{reader.folder}: tensors {known_as}")
    for tensor in tensors:
        spec = reader.specs.get(tensor.name)
        if spec is None:
            raise UserError(f"{reader.folder}: tensor {tensor.name} is missing")
        if spec.shape != tensor.shape:
            raise UserError(
                f"{spec.file}: tensor {tensor.name} has shape {spec.shape}; config.json asks for {tensor.shape}"
            )
    known = {t.name for t in tensors} | ({"lm_head.weight"} if config.tied else set())
    unexpected = sorted(n for n in reader.specs if n not in known and not _IGNORED.fullmatch(n))
    if unexpected:
        raise UserError(f"{reader.folder}: {len(unexpected)} unexpected tensors, the first {unexpected[0]}")


def _place(reader: ShardReader, tensor: Tensor, shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    whole = to_ours(tensor, reader.read(tensor.name), shape)
    # order="C" makes a copy that owns its memory: a view of the file would keep it mapped for the life of the array
    return jax.make_array_from_callback(shape, sharding, lambda index: np.array(whole[index], dtype, order="C"))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


_INSERTERS: dict[Any, Callable] = {}


def _insert(sharding: Any) -> Callable:
    """Writes one layer into its stack, in place: one program a sharding and shape."""
    if sharding not in _INSERTERS:
        _INSERTERS[sharding] = jax.jit(
            lambda stack, part, layer: jax.lax.dynamic_update_index_in_dim(stack, part, layer, 0),
            donate_argnums=0,
            out_shardings=sharding,
        )
    return _INSERTERS[sharding]


def _set(params: dict, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        params = params.setdefault(key, {})
    params[last] = value


def save(
    params: dict,
    config: ModelConfig,
    out: epath.PathLike,
    *,
    carried: dict[str, bytes],
    dtype: str,
    shard_bytes: int = 5 * 10**9,
    lora: LoRAConfig | None = None,
) -> None:
    """Writes an HF folder that `from_pretrained` and vLLM load. One tensor at a time is in host memory.

    carried: files beside the weights (`read_carried`). lora: of the adapters in `params`, which are merged into the
    weights. On several hosts all must call; the first writes. Raises UserError when `out` is not empty or cannot be
    written.
    """
    out = epath.Path(out)
    first = jax.process_index() == 0
    if first:
        claim_folder(out)
    tensors = list(hf_tensors(config, params))
    shards = split_shards(tensors, np.dtype(jnp.dtype(dtype)).itemsize, shard_bytes)
    for number, shard in enumerate(shards, 1):
        name = shard_name(number, len(shards))
        values = (_fetch(params, tensor, dtype, lora) for tensor in shard)
        if first:
            write_shard(out / name, [(t.name, t.shape) for t in shard], dtype, values)
        else:
            for _ in values:
                pass
    if first:
        write_index(out, shards, dtype)
        for name, content in carried.items():
            (out / name).write_bytes(content)
        (out / CONFIG).write_text(json.dumps(to_hf(config, dtype), indent=2) + "\n")


def _fetch(params: dict, tensor: Tensor, dtype: str, lora: LoRAConfig | None = None) -> np.ndarray:
    part = to_host(params, tensor.rule.path, tensor.layer)
    a, b = (get(params, path) for path in adapter_paths(tensor))
    if lora is not None and a is not None and b is not None:
        a, b = (to_host(params, path, tensor.layer).astype(np.float32) for path in adapter_paths(tensor))
        part = part.astype(np.float32) + np.tensordot(a, b, 1) * np.float32(lora.scale)
    return to_theirs(tensor, part).astype(jnp.dtype(dtype), copy=False)


def adapter_paths(tensor: Tensor) -> tuple[str, str]:
    """Where the adapter of a kernel is, if it has one."""
    module = tensor.rule.path.removesuffix("/kernel")
    return f"{module}/{A}", f"{module}/{B}"


def to_host(params: dict, path: str, layer: int | None) -> np.ndarray:
    """A parameter, or one layer of it, in host memory. All processes call it."""
    leaf = get(params, path)
    part = leaf if layer is None else leaf[layer]
    part = jax.device_get(part) if part.is_fully_addressable else multihost_utils.process_allgather(part, tiled=True)
    return np.asarray(part)


def claim_folder(out: epath.Path) -> None:
    """Makes an output folder; raises UserError when it holds something or cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty; name a new folder")
        probe = out / ".write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None


def split_shards(tensors: list[Tensor], itemsize: int, shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        bytes_ = math.prod(tensor.shape) * itemsize
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += bytes_
    return shards


def shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(out: epath.Path, shards: list[list[Tensor]], dtype: str) -> None:
    if len(shards) == 1:
        return
    total = sum(math.prod(t.shape) for shard in shards for t in shard) * np.dtype(jnp.dtype(dtype)).itemsize
    places = {t.name: shard_name(i, len(shards)) for i, shard in enumerate(shards, 1) for t in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_carried(folder: epath.PathLike) -> dict[str, bytes]:
    """Contents of the files beside the weights that a folder has."""
    folder = epath.Path(folder)
    found = {}
    for name in CARRIED:
        try:
            if (folder / name).exists():
                found[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}") from None
    return found
