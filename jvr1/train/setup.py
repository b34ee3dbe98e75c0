"""What every training run has: mesh, model, optimizer, data and held-out questions, made from its config."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.data.chat import ends_of
from jvr1.data.encode import Encoder
from jvr1.data.index import Again
from jvr1.data.index_file import IndexEntry, file_stamp
from jvr1.data.pipeline import Pipeline
from jvr1.data.records import DATA_TYPES, Record
from jvr1.data.schedule import Pool, Schedule, Sequential
from jvr1.data.share import Share
from jvr1.data.store import RecordStore
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.families import to_hf
from jvr1.model.hf import CONFIG
from jvr1.model.lora import ADAPTERS, LoRAConfig
from jvr1.opening import checksums
from jvr1.opening.data import by_bucket, check_batch, make_encoder
from jvr1.opening.holder import hold, release_all
from jvr1.opening.indices import Questions, fit_run, measure_questions, put_in_buckets, with_buckets
from jvr1.opening.models import MODEL, make_tokenizer, write_lora
from jvr1.opening.places import check_writable, local_cache, use_compilation_cache
from jvr1.opening.restore import check_fits, folder_of
from jvr1.opening.staging import write_file
from jvr1.optimizers.config import OptimizerConfig
from jvr1.processes.peers import agree, processes, share_of
from jvr1.rl.user_values import UserValues
from jvr1.rollout.decoder import Decoder, make_decoder
from jvr1.sharding import make_mesh, param_shardings
from jvr1.train.early import check_early
from jvr1.train.optimizer import make_optimizer, partition
from jvr1.train.state import abstract_state, beside_params
from jvr1.train.workdir import Begun, Origin, check_unchanged, find_run, keep_buckets, open_weights


@dataclass(frozen=True)
class Run:
    """A training run before its first step. `begun`: what its workdir holds; the loop restores it. `origin`: the
    weights it began from. `params` are all, `frozen` those no gradient touches, `shardings` where the trainable ones
    lie; of a run to be resumed they are shapes, or the source's where KL is measured from it. `lora`: the adapters,
    which alone are then trainable. `rows` is a hash of what it trains on; `changed` says which settings of the
    objective differ from those the workdir was made with; `entries` is the index of its rows; `user` are the rewards
    of the user's own."""

    settings: ConfigDict
    workdir: epath.Path
    stage: str
    begun: Begun | None
    origin: Origin
    mesh: Mesh
    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict
    lora: LoRAConfig | None
    trainable: dict
    frozen: dict
    shardings: Any
    carried: dict[str, bytes]
    tokenizer: PreTrainedTokenizerBase
    optimizer: OptimizerConfig
    tx: Any
    key: jax.Array
    decoder: Decoder
    pipeline: Pipeline
    share: Share
    rows: str
    entries: tuple[IndexEntry, ...]
    user: UserValues | None
    questions: tuple[Pipeline, int] | None
    changed: tuple[str, ...]


def open_run(config: ConfigDict, workdir: str, *, targets: bool, stage: str | None = None) -> Run:
    """Takes the workdir, opens the model and the data. `targets`: whether rows carry the answer (SFT). stage: STAGE of
    the main train_STAGE, which alone goes on with the workdir (None: sft with targets, else rl). Raises UserError and
    gives the workdir back."""
    folder = epath.Path(workdir)
    check_writable(folder)
    hold(folder)
    try:
        return _open_held(config, folder, stage or ("sft" if targets else "rl"), targets=targets)
    except BaseException:
        release_all()
        raise


def _open_held(config: ConfigDict, folder: epath.Path, stage: str, *, targets: bool) -> Run:
    begun = find_run(folder)
    keep_buckets(config, folder, begun)
    changed = check_unchanged(config, folder, begun, stage)
    if processes() > 1:
        agree("files", files_of(config))
    check_schedule(config, config.rl.updates * config.rl.minibatches if stage == "rl" else 1)
    user = check_early(config, stage)
    use_compilation_cache()
    mesh = make_mesh(settings.mesh_shape(config))
    check_batch(config, mesh)
    share = share_of(mesh)
    lora = settings.lora(config)
    model, origin = open_weights(config, folder, begun, mesh, stage)
    tokenizer = make_tokenizer(model.carried, model.config, model.source)
    ends, tensor = ends_of(tokenizer, model.carried, model.config), config.mesh.decode_tensor
    optimizer = settings.optimizer(config)
    trainable, frozen = partition(model.params, optimizer.freeze, ".*" if lora is None else ADAPTERS)
    tx = make_optimizer(optimizer, trainable)
    if begun is not None:  # before the data are opened
        state = beside_params(abstract_state(tx, trainable, mesh))
        check_fits(folder_of(folder) / str(begun.step), model.params, state)
    going_on = begun is not None
    (pipeline, rows, entries), questions = open_data(
        config, model.config, tokenizer, folder, share, targets=targets, begun=going_on
    )
    return Run(
        settings=config,
        workdir=folder,
        stage=stage,
        begun=begun,
        origin=origin,
        mesh=mesh,
        config=model.config,
        graphdef=model.graphdef,
        params=model.params,
        lora=lora,
        trainable=trainable,
        frozen=frozen,
        shardings=param_shardings(trainable, mesh),
        carried=model.carried,
        tokenizer=tokenizer,
        optimizer=optimizer,
        tx=tx,
        key=jax.random.key(config.seed),
        decoder=make_decoder(model.graphdef, mesh, model.config, ends, tensor=tensor, dtype=config.model.dtype),
        pipeline=pipeline,
        share=share,
        rows=rows,
        entries=entries,
        user=user,
        questions=questions,
        changed=changed,
    )


def files_of(config: ConfigDict) -> dict[str, str | None]:
    """What the processes of a run must find alike, each in its own place: name -> hash of the content, None where there
    is none. Of a model what describes it; its weights are read in parts by all."""
    root, source = epath.Path(config.data.root), epath.Path(config.model.source)
    validated = config.data.valid if config.train.validate_every else ()
    found = {name: root / name for name in (*config.data.train, *validated)}
    found |= {f"model.source/{name}": source / name for name in (CONFIG, "model.safetensors.index.json")}
    return {name: file_stamp(str(p))["sha256"][:12] if p.exists() else None for name, p in found.items()}


def keep_run(run: Run) -> None:
    """Writes the settings into the workdir, and the model's config and tokenizer, so that it is a model by itself.

    Only now: what was wrong with the command line was said before anything of an older run could be overwritten.
    """
    if jax.process_index():
        return
    folder = run.workdir / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in run.carried.items():
        write_file(folder / name, content)
    write_lora(folder, run.lora)
    described = json.dumps(to_hf(run.config, settings.base_dtype(run.settings)), indent=2) + "\n"
    write_file(folder / CONFIG, described.encode())
    checksums.write_checksums(folder)
    write_file(run.workdir / CONFIG, settings.to_json(run.settings).encode())


def check_schedule(config: ConfigDict, updates: int) -> None:
    """Raises UserError when the learning rate would reach 0 before the run ends."""
    needed, there = config.train.steps * updates, config.optimizer.steps
    if config.optimizer.schedule != "constant" and there < needed:
        raise UserError(
            f"optimizer.steps={there} ends the {config.optimizer.schedule} schedule before the run's {needed} updates; "
            f"set optimizer.steps to {needed} or more, or train.steps to {there // updates} or fewer"
        )


def open_data(
    config: ConfigDict,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    workdir: epath.Path,
    share: Share,
    *,
    targets: bool,
    begun: bool = False,
) -> tuple[tuple[Pipeline, str, tuple[IndexEntry, ...]], tuple[Pipeline, int] | None]:
    """The rows to train on, as of `open_training_rows`, and the questions of validation. Buckets that are to be fitted
    are put into the config. begun: whether the run has steps behind it, whose rows must stay."""
    again: Again = "nothing" if begun or config.data.index else "changed"
    encoder = make_encoder(config, model, tokenizer, targets=targets)
    trained = [measure_questions(file, config, encoder, workdir, again=again) for file in config.data.train]
    asking, validated = encoder, []
    if config.train.validate_every:
        asking = make_encoder(config, model, tokenizer, targets=False)
        validated = [measure_questions(file, config, asking, workdir, again=again) for file in config.data.valid]
    if settings.fits_buckets(config):
        fit_run(config, trained, validated, encoder)
    questions = None
    if validated:
        questions = open_questions(config, validated, with_buckets(asking, config), workdir, "valid", share)
    return open_training_rows(config, trained, with_buckets(encoder, config), workdir, share), questions


def open_training_rows(
    config: ConfigDict, files: Sequence[Questions], encoder: Encoder, workdir: epath.Path, share: Share
) -> tuple[Pipeline, str, tuple[IndexEntry, ...]]:
    """The mixture of data.train, put into buckets, drawn by data.weights and data.modality; a hash of its rows; their
    index."""
    digest = hashlib.sha256()
    names = {b.name: b for b in encoder.buckets}
    weights = config.data.weights or (1.0,) * len(config.data.train)
    records: list[Record] = []
    found: list[IndexEntry] = []
    pools = []
    for questions, weight in zip(files, weights, strict=True):
        often = {kind: weight * config.data.modality[kind] for kind in DATA_TYPES}
        file, own, entries, *_ = put_in_buckets(questions, config, encoder, [kind for kind in often if often[kind]])
        digest.update(file_stamp(str(epath.Path(config.data.root) / file))["sha256"].encode())
        for bucket, rows in by_bucket(entries, names).items():
            digest.update(bucket.name.encode() + rows.tobytes())
            pools.append(Pool(bucket, rows + len(records), often[bucket.kind]))
        records += own
        found += entries
    store = RecordStore.write(local_cache(workdir) / "train", records)
    pipeline = Pipeline(
        Schedule(pools, config.batch.micro, config.seed),
        store,
        encoder,
        seed=config.seed,
        per_step=config.batch.per_step,
        workers=config.data.workers,
        share=share,
    )
    return pipeline, digest.hexdigest(), tuple(found)


def open_questions(
    config: ConfigDict,
    files: Sequence[Questions],
    encoder: Encoder,
    workdir: epath.Path,
    name: str,
    share: Share,
) -> tuple[Pipeline, int]:
    """Held-out questions, each once, and the number of microbatches they make."""
    names = {b.name: b for b in encoder.buckets}
    records: list[Record] = []
    rows: dict[Bucket, list[int]] = defaultdict(list)
    for questions in files:
        _, own, entries, *_ = put_in_buckets(questions, config, encoder)
        for bucket, numbers in by_bucket(entries, names).items():
            rows[bucket] += (numbers + len(records)).tolist()
        records += own
    plan = Sequential(rows, config.batch.micro)
    store = RecordStore.write(local_cache(workdir) / name, records)
    pipeline = Pipeline(
        plan,
        store,
        encoder,
        seed=config.seed,
        per_step=1,
        workers=config.data.workers,
        share=share,
    )
    return pipeline, len(plan.plans)
