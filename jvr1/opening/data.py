"""The encoder of a config, and the index of a question file's media, made before or now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.chat import check_tokenizer
from jvr1.data.encode import Encoder
from jvr1.data.frame_cache import FrameCache
from jvr1.data.index import (
    IndexEntry,
    Measure,
    build_index,
    file_stamp,
    load_index,
    save_index,
    settings_hash,
    with_seconds,
)
from jvr1.data.index_summary import summarise_index
from jvr1.data.prompts import placeholders_of
from jvr1.data.records import Record, load_records
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.layers import BATCH, batch_ways
from jvr1.opening.places import local_cache
from jvr1.rl.golds import doubts
from jvr1.sharding import decode_mesh


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError when a microbatch cannot be split over the mesh, or over its devices as they generate."""
    for name, ways in (
        (" x ".join(BATCH), batch_ways(mesh)),
        ("devices / decode_tensor", batch_ways(decode_mesh(mesh, config.mesh.decode_tensor))),
    ):
        if config.batch.micro % ways:
            raise UserError(
                f"batch.micro={config.batch.micro} rows cannot be split {ways} ways (mesh {name}); use a multiple"
            )


def check_prompt(config: ConfigDict, model: ModelConfig) -> None:
    """Raises UserError where prompts of the model's family are not written as the config asks."""
    placeholders_of(settings.style(config), model)
    if not config.data.real_seconds and not model.family.clocked:
        raise UserError(f"data.real_seconds is off; positions of {model.family.title} know no seconds: leave it on")


def make_encoder(
    config: ConfigDict, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, targets: bool
) -> Encoder:
    check_tokenizer(tokenizer, model, config.model.source)
    check_prompt(config, model)
    video_limits, image_limits = settings.pixel_limits(config)
    cache = config.data.media_cache or str(Path.home() / ".cache" / "jvr1" / "media")
    media = MediaCache(config.data.root, cache, config.data.media_cache_gb * 2**30)
    kept, most = config.data.frame_cache, config.data.max_decoded_mb
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        read=Sandbox(MediaReader(media, most), config.data.timeout, most),
        media=media,
        style=settings.style(config),
        video=settings.video_sampling(config),
        video_limits=video_limits,
        image_limits=image_limits,
        buckets=settings.buckets(config),
        targets=targets,
        real_seconds=config.data.real_seconds,
        kept=FrameCache(kept, config.data.frame_cache_gb * 2**30).open() if kept else None,
        kinds=tuple(config.data.kinds),
    )


def open_index(
    file: str, config: ConfigDict, encoder: Encoder, workdir: epath.Path
) -> tuple[list[Record], list[IndexEntry]]:
    """The records of a file (relative to data.root) and their index: made before with the same settings, or now."""
    records = load_records(str(epath.Path(config.data.root) / file))
    entries = index_of(file, records, config, encoder, encoder.measure, encoder.fingerprint(), workdir)
    return with_seconds(records, entries), entries


def index_of(
    file: str,
    records: Sequence[Record],
    config: ConfigDict,
    encoder: Encoder,
    measure: Measure,
    fingerprint: Mapping[str, Any],
    workdir: epath.Path,
    kept_as: str = "kept",
) -> list[IndexEntry]:
    """The index of a file's records by `measure`, all that depends on being in `fingerprint`. kept_as: what its summary
    says of those that are not dropped.

    An index's name carries the hash of its settings, so one made with others is never taken.
    """
    file = str(epath.Path(config.data.root) / file)
    made_with = {"records": file_stamp(file), **fingerprint}
    folder = epath.Path(config.data.index) if config.data.index else workdir / "index"
    path = folder / f"{epath.Path(file).stem}-{settings_hash(made_with)}.jsonl"
    if not path.exists() and jax.process_index() == 0:
        partial = local_cache(workdir) / f"{path.name}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        workers = config.data.index_workers
        limits = config.data.timeout, config.data.max_decoded_mb
        entries = build_index(records, encoder.media, made_with, measure, workers, partial, *limits)
        save_index(str(path), entries, made_with)
        partial.unlink()
        lengths = {b.name: b.prompt for b in encoder.buckets}
        print(f"{file}: {summarise_index(entries, lengths).told(kept_as)}")
        if doubtful := doubts(records):
            print(doubtful)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"index {path}")
    entries = load_index(str(path), made_with)
    if [entry.row for entry in entries] != list(range(len(records))):
        raise UserError(f"{path} is damaged: it has not one entry for each of {len(records)} records; remove it")
    return entries


def by_bucket(entries: list[IndexEntry], names: dict[str, Bucket]) -> dict[Bucket, np.ndarray]:
    """Row numbers of each bucket; rows the index dropped are in none."""
    rows: dict[Bucket, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.bucket is not None:
            rows[names[entry.bucket]].append(entry.row)
    return {bucket: np.asarray(numbers, np.int64) for bucket, numbers in rows.items()}
