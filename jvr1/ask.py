"""A question to a model: jvr1 ask --model DIR [--video FILE | --image FILE] QUESTION

DIR is any model: HF folder, hub id, converted folder, workdir. The reasoning and the answer appear as they are
generated. How the question is put comes from --config or from the workdir that trained the model; for any other model
it is how Video-R1 evaluates.
"""

from __future__ import annotations

import argparse
import os
import re
import string
import sys
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jvr1.answering import add_model_options, config_of, fill_devices, mesh_of, open_decoder, open_encoder
from jvr1.command_line import Parser
from jvr1.data.batch import Arrays, Bucket, choose_bucket, empty_example, stack_examples
from jvr1.data.encode import Encoder
from jvr1.data.fitting import fit_buckets, need_of
from jvr1.data.index import measure_one
from jvr1.data.media import MediaError
from jvr1.data.records import Record, check_whole
from jvr1.errors import UserError, run_main
from jvr1.eval.sheet import write_frames
from jvr1.opening.places import use_compilation_cache
from jvr1.problems.kinds import KINDS
from jvr1.processes.guard import explaining
from jvr1.questions.asking import Asking, identity
from jvr1.rollout.stream import TextStream


def main(args: argparse.Namespace) -> int:
    check_question(args)
    asking = Asking(temperature=args.temperature or 0.0, top_p=args.top_p)
    config, fitted = config_of(args, ("the command line",), "")
    record, config.data.root = record_of(args)
    use_compilation_cache()
    mesh = mesh_of(config, args.mesh)
    config.batch.micro = 1
    fill_devices(config, mesh)

    # --- the question as the model gets it
    encoder, _ = open_encoder(config)
    bucket = bucket_of(record, encoder, config, fitted=fitted)
    arrays = question_rows(record, encoder, bucket, config.batch.micro)
    if args.frames_out:
        write_frames(args.frames_out, [encoder.frames(record, path) for path in record.paths])

    # --- its answer
    decoder, weights = open_decoder(config, mesh, encoder.tokenizer)
    sampling = decoder.sampling(bucket.completion, temperature=asking.temperature, top_p=asking.top_p)
    text, seen, cut = TextStream(encoder.tokenizer), 0, True
    with jax.set_mesh(mesh):
        for sampled in decoder.stream(weights, arrays, jax.random.key(config.seed), sampling):
            length, cut = int(sampled.length[0, 0]), not sampled.ended[0, 0]
            write_out(text.add(sampled.ids[0, 0, seen:length]))
            seen = length
    write_out(text.end() + "\n")
    if cut:
        print(f"cut off after {seen} tokens; --max-tokens allows more", file=sys.stderr)
    return 0


def write_out(text: str) -> None:
    print(text, end="", flush=True)


# --- the question -----------------------------------------------------------------------------------------------------


def check_question(args: argparse.Namespace) -> None:
    """Raises UserError."""
    if not (args.question or "").strip():
        raise UserError('the question is empty; write it in quotes before --options, such as "What happens here?"')
    if args.video and args.image:
        raise UserError("--video and --image do not go together; ask about one of them")
    if args.frames_out and not (args.video or args.image):
        raise UserError("--frames-out has no frames to show; name a --video or an --image")
    check_whole("QUESTION", args.question)
    check_whole("--options", args.options)


def record_of(args: argparse.Namespace) -> tuple[Record, str]:
    """The question of a command line, and the folder that its media lie in. Raises UserError."""
    types = {name.replace(" ", "-"): name for name in KINDS}
    if args.type not in types:
        raise UserError(f"--type: invalid choice: {args.type!r}; use one of {', '.join(types)}")
    kind = types[args.type]
    if KINDS[kind].lists_options != bool(args.options):
        listing = args.type if KINDS[kind].lists_options else "multiple-choice"
        raise UserError(f'--type {listing} and --options go together, such as --options "A. red" "B. blue"')
    files = [args.video] if args.video else args.image or []
    root, paths = placed(files) if files else (os.curdir, ())
    record = Record(
        problem_id=0,
        problem=args.question,
        data_type="video" if args.video else "image" if paths else "text",
        problem_type=kind,
        options=labelled(args.options or ()),
        solution="",
        process=None,
        path=paths if len(paths) > 1 else paths[0] if paths else None,
        data_source="",
    )
    return record, root


def placed(files: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The deepest folder that holds all files, local or gs://, and their paths in it."""
    paths = [epath.Path(file if "://" in file else os.path.abspath(file)) for file in files]
    root = paths[0].parent
    while not all(path.is_relative_to(root) for path in paths):
        root = root.parent
    return str(root), tuple(str(path.relative_to(root)) for path in paths)


_LABEL = re.compile(r"\(?([A-Z])[).:](?:\s|$)|([A-Z])$")


def labelled(options: Sequence[str]) -> tuple[str, ...]:
    """Options with their letters: as they stand where they are lettered A, B, C, ... in this order, else made so.

    Raises UserError for more options than there are letters.
    """
    letters = string.ascii_uppercase
    if len(options) > len(letters):
        raise UserError(f"--options has {len(options)} options; a letter names one, so there can be {len(letters)}")
    own = [_LABEL.match(option) for option in options]
    if all(label and (label[1] or label[2]) == letter for label, letter in zip(own, letters, strict=False)):
        return tuple(options)
    return tuple(f"{letter}. {option}" for letter, option in zip(letters, options, strict=False))


def bucket_of(record: Record, encoder: Encoder, config: ConfigDict, *, fitted: bool) -> Bucket:
    """A shape that holds the question: one of the config's where it fits one, else made for it. Raises UserError."""
    limits = config.data.timeout, config.data.max_decoded_mb
    entry = measure_one(record, encoder.media, encoder.measure, *limits)
    need = need_of(entry)
    if need is None:
        raise UserError(f"the question cannot be asked: {entry.error}")
    bucket = None if fitted else choose_bucket(need, encoder.buckets, encoder.model)[0]
    completion = max(b.completion for b in encoder.buckets)
    return bucket or fit_buckets([need], completion, encoder.model.vision.units)[0]


def question_rows(record: Record, encoder: Encoder, bucket: Bucket, rows: int) -> Arrays:
    """A microbatch with the question in its first row; the others, for the devices' sake, are empty. Raises
    UserError."""
    try:
        arrays = encoder.encode(record, bucket, np.random.default_rng(0))
    except (MediaError, ValueError) as error:
        raise UserError(f"the question cannot be asked: {error}") from None
    arrays = arrays._replace(number=np.asarray(identity(record), np.int32))
    return stack_examples([arrays, *[empty_example(bucket, encoder.model)] * (rows - 1)])


def options() -> Parser:
    parser = Parser(prog="jvr1 ask", description=__doc__)
    parser.add_argument("question", nargs="?", metavar="QUESTION")
    parser.add_argument("--video", help="a video file")
    parser.add_argument("--image", action="append", help="an image file; given several times, several images")
    parser.add_argument(
        "--type",
        default="free-form",
        help="the form its answer takes, such as numerical",
    )
    parser.add_argument("--options", nargs="+", help="of a multiple-choice question, after it")
    parser.add_argument("--frames-out", help="file.png or folder for the frames that the model saw")
    add_model_options(parser)
    return parser


def explained() -> int:
    with explaining():
        return main(options().parse_args(sys.argv[1:]))


def command() -> None:
    run_main(explained)


if __name__ == "__main__":
    command()
