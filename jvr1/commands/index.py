"""Indexes a data set: jvr1 index DATA.json --root ROOT [--config FILE[:ARG] [--sft]] [--out PATH]

Probes every medium once and writes sizes, frames, rates, prompt tokens and buckets, or why a record cannot be used.
An interrupted run goes on where it stopped. With a training config it makes the index its runs would make at their
start (into the folder PATH, which they take as --config.data.index=PATH); without one it surveys the media, visual
tokens only, into the file PATH.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from jvr1.command_line import Parser
from jvr1.data.cache import MediaCache
from jvr1.data.index import Again, VisualTokens, build_index
from jvr1.data.index_file import as_json_values, file_stamp, save_index, settings_hash, with_places
from jvr1.data.index_summary import summarise_index
from jvr1.data.inspection import counted_lines, inspect_records
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.records import usable_records
from jvr1.data.rows import FieldMap, field_map
from jvr1.errors import UserError, run_main
from jvr1.model.families import TOKEN_PIXELS
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.problems.kinds import load_kinds
from jvr1.setting import written_as

TIMEOUT = 60.0
SURVEY = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "frame_tokens": 128, "image_tokens": 256}
"""How media are measured without a config; with one that is among its settings."""


def main(arguments: list[str] | None = None) -> None:
    flags = with_overrides(options(), arguments)
    given = [f"--{name.replace('_', '-')}" for name in SURVEY if getattr(flags, name) is not None]
    if flags.config and given:
        raise UserError(f"{', '.join(given)}: not beside --config, which says it: data.video, data.image_pixels")
    if flags.config:
        return index_for(flags)
    for name, value in SURVEY.items():
        setattr(flags, name, value if getattr(flags, name) is None else getattr(flags, name))
    out = flags.out or f"{flags.data}.index"
    with written_as({name: f"--{name.replace('_', '-')}" for name in ("fps", "min_frames", "max_frames")}):
        sampling = VideoSampling(flags.fps, flags.min_frames, flags.max_frames)
    measure = VisualTokens(
        sampling,
        PixelLimits(4 * TOKEN_PIXELS, flags.image_tokens * TOKEN_PIXELS),
        PixelLimits(min(128, flags.frame_tokens) * TOKEN_PIXELS, flags.frame_tokens * TOKEN_PIXELS),
    )
    media = MediaCache(flags.root, flags.cache, round(flags.cache_gb * 2**30))
    fields = fields_of(flags)
    found = usable_records(flags.data, fields)
    records = list(found.values())
    most = MAX_DECODED_MB if flags.max_decoded_mb is None else flags.max_decoded_mb
    settings = {"records": file_stamp(flags.data), "measure": as_json_values(measure.settings), "max_decoded_mb": most}
    settings |= fields.told
    partial = partial_file(out, settings)
    entries = build_index(records, media, settings, measure, flags.workers, partial, flags.timeout or TIMEOUT, most)
    save_index(out, entries, settings)
    partial.unlink(missing_ok=True)
    print(summarise_index(with_places(entries, list(found))))
    for line in counted_lines(inspect_records(found)):
        print(line)
    print(f"index: {out}")


def index_for(flags: argparse.Namespace) -> None:
    """The index of a training config: its tokenizer, template, sampling and limits, and what its buckets hold."""
    from jvr1.config import fits_buckets
    from jvr1.opening.data import encoder_of
    from jvr1.opening.indices import findings_of, fit_run, in_buckets_of, measure_questions, summary_lines, with_buckets

    config = config_of_data(flags)
    encoder = encoder_of(config, targets=flags.sft)
    questions = measure_questions(
        place_of(flags.data), config, encoder, epath.Path(config.data.index), again=again_of(flags)
    )
    if fits_buckets(config):
        fit_run(config, [questions], [], encoder)
    questions = in_buckets_of(questions, with_buckets(encoder, config))
    print("\n".join(summary_lines(questions, findings_of(questions), config)))
    print(taken_with(config))


def config_of_data(flags: argparse.Namespace) -> ConfigDict:
    """The config that the command line names, with its overrides, for files under --root, checked as a run checks it.
    Raises UserError."""
    from jvr1 import config as settings

    config = settings.from_file(flags.config, flags.overrides)
    config.data.root = flags.root
    if flags.workers is not None:
        config.data.index_workers = flags.workers
    config.data.index = flags.out or config.data.index or f"{flags.root}/index"
    config.data.media_cache = flags.cache or config.data.media_cache
    config.model.source = flags.model or config.model.source
    config.data.fields = tuple(flags.field) or config.data.fields
    if flags.max_decoded_mb is not None:
        config.data.max_decoded_mb = flags.max_decoded_mb
    if flags.timeout is not None:
        config.data.timeout = flags.timeout
    return settings.check(config)


def again_of(flags: argparse.Namespace) -> Again:
    """Which media that could not be used are probed again."""
    return "all" if flags.again else "changed"


def load_own_kinds(flags: argparse.Namespace) -> None:
    """Puts the config's own problem kinds into the table. Raises UserError."""
    if flags.config:
        from jvr1 import config as settings

        load_kinds(settings.from_file(flags.config, flags.overrides).data.kinds)


def taken_with(config: ConfigDict) -> str:
    """What to tell of an index that was made for runs."""
    return f"runs take it with --config.data.index={config.data.index}"


def fields_of(flags: argparse.Namespace) -> FieldMap:
    """What the file calls a record's fields, by --field or by the config. Raises UserError."""
    if flags.field or not flags.config:
        return field_map(flags.field)
    from jvr1 import config as settings

    return settings.question_fields(settings.from_file(flags.config, flags.overrides))


def place_of(file: str) -> str:
    """Where a file lies, whatever the media root is."""
    return file if "://" in file else os.path.abspath(file)


def partial_file(out: str, settings: dict[str, object]) -> Path:
    """Where an unfinished index lies: beside `out`, or for a bucket in the local temporary folder."""
    if "://" in out:
        return Path(tempfile.gettempdir()) / f"jvr1-{settings_hash({'out': out, **settings})}.partial"
    folder = Path(out).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} does not exist or may not be written to; name another file by --out")
    return Path(f"{out}.partial")


def options() -> Parser:
    parser = Parser(prog="jvr1 index", description=__doc__)
    parser.add_argument("data", help="records: JSON, JSONL, Parquet or a folder of tables, local or gs://")
    parser.add_argument("--root", required=True, help="media root, local or gs://")
    add_config_options(parser)
    parser.add_argument("--out", help="local or gs:// (default: ROOT/index with --config, else DATA.json.index)")
    add_media_options(parser)
    survey = parser.add_argument_group("without --config, whose settings say it")
    survey.add_argument("--fps", type=float, help="frames read a second of video (2)")
    survey.add_argument("--min-frames", type=int, help="fewest frames of a video (4)")
    survey.add_argument("--max-frames", type=int, help="most frames of a video (16)")
    survey.add_argument("--frame-tokens", type=int, help="most visual tokens of a video frame (128)")
    survey.add_argument("--image-tokens", type=int, help="most visual tokens of an image (256)")
    return parser


def add_config_options(parser: Parser) -> None:
    """Which config a data file is looked at for."""
    parser.add_argument("--config", help="training config FILE[:ARG]; --config.data....=VALUE overrides its settings")
    parser.add_argument("--model", help="model whose tokenizer counts; default: the config's model.source")
    parser.add_argument("--sft", action="store_true", help="with --config: for train-sft, whose rows carry answers")
    parser.add_argument(
        "--field", action="append", default=[], metavar="OURS=THEIRS", help="one of data.fields, such as path=video"
    )


def add_media_options(parser: Parser) -> None:
    """How media are probed."""
    parser.add_argument(
        "--workers", type=int, help="helper processes (the config's data.index_workers, or a core each)"
    )
    parser.add_argument("--timeout", type=float, help="seconds a medium may take (60)")
    parser.add_argument(
        "--again", action="store_true", help="with --config: probe all again that could not be used, changed or not"
    )
    parser.add_argument("--max-decoded-mb", type=int, help="megabytes that decoding one may take")
    parser.add_argument("--cache", help="local folder for copies of remote media")
    parser.add_argument("--cache-gb", type=float, default=100.0, help="size of that folder")


def with_overrides(parser: Parser, arguments: list[str] | None) -> argparse.Namespace:
    """The options, and as `overrides` the settings that follow --config. Raises UserError."""
    flags, rest = parser.parse_known_args(arguments)
    if rest and not (flags.config and all(one.startswith("--config.") for one in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    flags.overrides = rest
    if not flags.config and getattr(flags, "workers", 1) is None:
        flags.workers = os.cpu_count() or 1
    return flags


if __name__ == "__main__":
    run_main(main)
