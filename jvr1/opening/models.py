"""The one way to open a model wherever a model is named: HF folder, hub id, converted folder, workdir, checkpoint."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jvr1.errors import UserError
from jvr1.model import hf, vision_language
from jvr1.model import lora as adapters
from jvr1.model.attention import choose
from jvr1.model.config import ModelConfig
from jvr1.model.families import to_hf
from jvr1.model.fields import parse_object
from jvr1.model.lora import LoRAConfig
from jvr1.opening import checksums
from jvr1.opening.restore import CHECKPOINTS, quieten_orbax, steps_of
from jvr1.opening.staging import appearing
from jvr1.opening.values import check_finite, fingerprint
from jvr1.processes.peers import gather
from jvr1.sharding import check_mesh, param_shardings, path_name

PARAMS, MODEL, LORA = "params", "model", "lora.json"
CHAT_TEMPLATE_FILE = "chat_template.json"
FORMS = "an HF folder, a hub id, a converted folder, a workdir or one of its checkpoints"
CHUNK_BYTES = 256 * 2**20
"""Arrays are stored in chunks of at most this size, so that another mesh reads little more than its slices."""


@dataclass(frozen=True)
class Model:
    """An opened model: shape, graph, parameters on the mesh, files beside the weights, where it came from (`pinned` as
    in `Location`), the adapters that it has beside its weights (a workdir trained with LoRA), and the fingerprint of
    its source's parameters, in the dtype they were opened in, where it was asked for."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict
    carried: dict[str, bytes]
    source: str
    lora: LoRAConfig | None = None
    pinned: str = ""
    fingerprint: str | None = None


class Location(NamedTuple):
    """Where a model lies. folder: config.json and carried files. params: orbax parameters; None: safetensors. pinned:
    the name that stays with what is there now: of a workdir its step, of a hub id its commit."""

    folder: epath.Path
    params: epath.Path | None
    pinned: str


def open_model(
    source: epath.PathLike,
    mesh: Mesh,
    *,
    dtype: DTypeLike = jnp.bfloat16,
    param_dtype: DTypeLike = jnp.bfloat16,
    remat: str = "none",
    attention: str = "auto",
) -> Model:
    """Reads a model straight onto the mesh, with the adapters it was trained with. All processes call it.

    dtype: of activations; param_dtype: of parameters, whatever they are stored in (adapters keep their own); remat: see
    `vision_language.VisionLanguageModel`; attention: one of `attention.CHOICES`, for the platform of the mesh.
    Raises UserError that says what is wrong: no such model, another architecture, a tensor missing or of another
    shape, a file that is not what was written, a number that is not finite, a tensor axis that cannot split the model,
    attention that the mesh's devices do not have.
    """
    quieten_orbax()
    folder, stored, pinned = locate(source)
    check_files(folder, stored)
    model = describe_model(
        folder, mesh, dtype=dtype, param_dtype=param_dtype, remat=remat, attention=attention, lora=read_lora(folder)
    )
    shapes, shardings = model.params, param_shardings(model.params, mesh)
    params = hf.load(folder, model.config, shapes, shardings) if stored is None else restore(stored, shapes, shardings)
    check_finite(params, str(source), "a model whose weights are not all numbers answers nothing: use another")
    return replace(model, params=params, source=str(source), pinned=pinned)


def describe_model(
    folder: epath.Path,
    mesh: Mesh,
    *,
    lora: LoRAConfig | None,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
    attention: str,
) -> Model:
    """The model of a folder as `open_model` opens it, with shapes that have shardings for parameters. Raises
    UserError."""
    config = hf.read_config(folder)
    check_mesh(mesh, config)
    backend = choose(attention, mesh.devices.flat[0].platform, dtype, config.text.head_size)
    kw: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "attention": backend}
    graphdef, shapes = vision_language.abstract(config, lora=lora, **kw)
    shardings = param_shardings(shapes, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return Model(config, graphdef, params, hf.read_carried(folder), str(folder), lora)


def check_files(folder: epath.Path, stored: epath.Path | None) -> None:
    """Raises UserError naming the first file of a model that is not what was written, where it has checksums: a step
    of a workdir, a converted folder, an export. All processes call it, each reads its part."""
    of_step = stored is not None and stored.parent != folder
    base, under = (stored.parent, f"{PARAMS}/") if stored is not None and of_step else (folder, "")
    found = gather(checksums.first_damaged(base, under, jax.process_index(), jax.process_count()))
    problem = next((one for one in found if one), None)
    if problem is None and of_step:
        base, problem = folder, gather(checksums.first_damaged(folder))[0]
    if problem is not None:
        then = (
            "name another step"
            if of_step
            else f"make it again, or delete {checksums.CHECKSUMS_FILE} if it was changed on purpose"
        )
        raise UserError(f"{base} is damaged: {problem}; {then}")


def open_base(
    source: epath.PathLike,
    mesh: Mesh,
    *,
    lora: LoRAConfig | None,
    seed: int,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
    attention: str = "auto",
    marked: bool = False,
) -> Model:
    """A model to train from: adapters of the source become part of its weights; `lora` asks for new ones beside them,
    drawn from the seed. marked: the source gets its fingerprint. Otherwise as `open_model`."""
    model = open_model(source, mesh, dtype=dtype, param_dtype=param_dtype, remat=remat, attention=attention)
    if marked:
        model = replace(model, fingerprint=fingerprint(model.params))
    graphdef, params = model.graphdef, model.params
    if model.lora is not None:
        graphdef, params = adapters.merge_adapters(graphdef, params)
    if lora is not None:
        graphdef, shapes = adapters.with_adapters(graphdef, params, lora)
        params = adapters.draw(shapes, seed, param_shardings(shapes, mesh))
    return replace(model, graphdef=graphdef, params=params, lora=lora)


def read_lora(folder: epath.Path) -> LoRAConfig | None:
    """The adapters of the model in a folder; None without the file that describes them. Raises UserError."""
    path = folder / LORA
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        return LoRAConfig(**raw | {"patterns": tuple(raw["patterns"])})
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path} does not describe adapters: {_one_line(error)}") from None


def write_lora(folder: epath.Path, lora: LoRAConfig | None) -> None:
    """Describes a model's adapters beside its config.json; without any, removes what an unsaved run left there."""
    if lora is None:
        (folder / LORA).unlink(missing_ok=True)
    else:
        (folder / LORA).write_text(json.dumps(asdict(lora), indent=2) + "\n")


def save_model(
    folder: epath.PathLike,
    params: dict,
    config: ModelConfig,
    carried: Mapping[str, bytes],
    lora: LoRAConfig | None = None,
) -> None:
    """Writes the converted form: config.json, carried files, `params/`, checksums. All processes call it.

    The folder appears whole (`staging.appearing`); in a bucket config.json comes last, so that an interrupted one is
    not taken for a model. Raises UserError when `folder` is not empty or cannot be written.
    """
    with appearing(folder) as beside:
        _write_model(beside, params, config, carried, lora)


def _write_model(
    folder: epath.Path, params: dict, config: ModelConfig, carried: Mapping[str, bytes], lora: LoRAConfig | None
) -> None:
    args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    with _checkpointer(params) as checkpointer:
        checkpointer.save(_absolute(folder / PARAMS), args=ocp.args.PyTreeSave(params, save_args=args))
    if jax.process_index() == 0:
        for name, content in carried.items():
            (folder / name).write_bytes(content)
        write_lora(folder, lora)
        dtype = str(params["text"]["embedding"].dtype)
        (folder / hf.CONFIG).write_text(json.dumps(to_hf(config, dtype), indent=2) + "\n")


def restore(stored: epath.Path, shapes: dict, shardings: Any) -> dict:
    """Parameters from an orbax folder, each device its own slices. Raises UserError naming what does not fit."""
    targets = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    with _checkpointer(targets) as checkpointer:
        try:
            metadata = checkpointer.metadata(_absolute(stored)).item_metadata.tree
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{stored} holds no readable parameters: {_one_line(error)}") from None
        _compare(stored, metadata, targets)
        args = ocp.args.PyTreeRestore(targets, ocp.checkpoint_utils.construct_restore_args(targets))
        return checkpointer.restore(_absolute(stored), args=args)


def _checkpointer(arrays: dict) -> ocp.Checkpointer:
    """Copies of at most a GB are in host memory at a time, or of the largest slice of a device where that is more."""
    largest = max(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    limit = math.ceil(max(largest, 10**9) / 10**9)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit))


def _compare(stored: epath.Path, metadata: Any, targets: dict) -> None:
    is_leaf = lambda x: hasattr(x, "shape")  # noqa: E731
    found = {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(metadata, is_leaf=is_leaf)}
    wanted = {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(targets)}
    for name, shape in wanted.items():
        if name not in found:
            raise UserError(f"{stored}: parameter {name} is missing")
        if found[name] != shape:
            raise UserError(f"{stored}: parameter {name} has shape {found[name]}; config.json asks for {shape}")
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise UserError(f"{stored}: {len(extra)} unexpected parameters, the first {extra[0]}")


def locate(source: epath.PathLike) -> Location:
    """Where a model lies, downloading a hub id, at a commit NAME@COMMIT too. Raises UserError when there is none."""
    folder = epath.Path(source)
    if folder.exists() and not folder.is_dir():
        whole = f"; name its folder, {folder.parent}" if folder.suffix == ".safetensors" else ""
        raise UserError(f"{source} is a file; a model is {FORMS}{whole}")
    if not folder.exists():
        found = re.fullmatch(r"([\w][\w.-]*/[\w.-]+)(?:@([0-9a-f]{40}))?", str(source))
        if found:
            there = download(found[1], found[2])
            return Location(there, None, f"{found[1]}@{there.name}")
        raise UserError(f"{source} does not exist; a model is {FORMS}")
    if (folder / CHECKPOINTS).is_dir():
        return _checkpoint(folder, _latest_step(folder))
    if folder.name.isdigit() and folder.parent.name == CHECKPOINTS:
        return _checkpoint(folder.parent.parent, int(folder.name))
    if (folder / PARAMS).is_dir():
        return Location(folder, folder / PARAMS, str(source))
    return Location(folder, None, str(source))


def _latest_step(workdir: epath.Path) -> int:
    steps = steps_of(workdir / CHECKPOINTS)
    if not steps:
        raise UserError(f"{workdir / CHECKPOINTS} holds no finished checkpoint yet")
    return steps[0]


def _checkpoint(workdir: epath.Path, step: int) -> Location:
    there = workdir / CHECKPOINTS / str(step)
    if not (there / PARAMS).is_dir():
        raise UserError(f"{there / PARAMS} does not exist; a checkpoint holds its parameters there")
    return Location(workdir / MODEL, there / PARAMS, str(there))


def download(name: str, commit: str | None = None) -> epath.Path:
    """The local folder of a hub id's files, fetched when they are not in the cache, as they are now or at a commit; the
    folder has the commit's name. Raises UserError."""
    from huggingface_hub import snapshot_download  # slow to import, seldom needed

    wanted = ["*.safetensors", hf.INDEX, hf.CONFIG, *hf.CARRIED]
    try:
        return epath.Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
    except Exception as error:  # the hub raises errors of several libraries
        raise UserError(
            f"{name} is no folder here, and cannot be fetched from the hub: {_one_line(error)}; a model is {FORMS}"
        ) from None


def read_tokenizer(source: epath.PathLike) -> Any:
    """The tokenizer (HF `PreTrainedTokenizerFast`) beside a model's weights. Raises UserError when there is none."""
    folder = locate(source).folder
    return make_tokenizer(hf.read_carried(folder), hf.read_config(folder), str(folder))


def make_tokenizer(carried: Mapping[str, bytes], config: ModelConfig, name: str) -> Any:
    """The tokenizer of a model's carried files; `name` says in errors where they came from. Needs no torch."""
    from transformers import AutoTokenizer  # slow to import

    if "tokenizer.json" not in carried and "vocab.json" not in carried:
        raise UserError(f"{name} holds no tokenizer.json; copy the tokenizer files of the model there")
    with tempfile.TemporaryDirectory() as folder:  # carried files may come from a bucket
        for file, content in carried.items():
            (Path(folder) / file).write_bytes(content)
        (Path(folder) / hf.CONFIG).write_text(json.dumps({"model_type": config.model_type}))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # whatever a broken file makes the library raise
            raise UserError(f"{name}: the tokenizer files cannot be read: {_one_line(error)}") from None
    if not tokenizer.chat_template and CHAT_TEMPLATE_FILE in carried:  # which the library reads with processors alone
        where = f"{name}/{CHAT_TEMPLATE_FILE}"
        tokenizer.chat_template = parse_object(carried[CHAT_TEMPLATE_FILE], where).get("chat_template")
        if not isinstance(tokenizer.chat_template, str):
            raise UserError(f"{where} holds no text under chat_template")
    return tokenizer


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else path.resolve()


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
