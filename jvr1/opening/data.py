"""The encoder of a config, and what of it must suit the mesh and the model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.chat import check_tokenizer
from jvr1.data.encode import Encoder
from jvr1.data.frame_cache import FrameCache
from jvr1.data.index_file import IndexEntry
from jvr1.data.prompts import placeholders_of
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.config import ModelConfig
from jvr1.model.hf import read_config
from jvr1.model.layers import BATCH, batch_ways
from jvr1.opening.models import locate, read_tokenizer
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
        buckets=() if settings.fits_buckets(config) else settings.buckets(config),
        targets=targets,
        real_seconds=config.data.real_seconds,
        kept=FrameCache(kept, config.data.frame_cache_gb * 2**30).open() if kept else None,
        kinds=tuple(config.data.kinds),
    )


def encoder_of(config: ConfigDict, *, targets: bool) -> Encoder:
    """The encoder of a config whose model is not opened. Raises UserError."""
    model = read_config(locate(config.model.source).folder)
    return make_encoder(config, model, read_tokenizer(config.model.source), targets=targets)


def by_bucket(entries: list[IndexEntry], names: dict[str, Bucket]) -> dict[Bucket, np.ndarray]:
    """Row numbers of each bucket; rows the index dropped are in none."""
    rows: dict[Bucket, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.bucket is not None:
            rows[names[entry.bucket]].append(entry.row)
    return {bucket: np.asarray(numbers, np.int64) for bucket, numbers in rows.items()}
