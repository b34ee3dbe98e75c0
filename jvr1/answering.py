"""What evaluate, annotate and ask share: the command line, how questions are put, and questions answered one by one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from jvr1 import config as settings
from jvr1.command_line import Parser
from jvr1.data.chat import ends_of
from jvr1.data.encode import Encoder
from jvr1.data.index_file import IndexEntry
from jvr1.data.pipeline import Pipeline, ahead
from jvr1.data.records import Record
from jvr1.data.schedule import Sequential
from jvr1.data.store import RecordStore
from jvr1.errors import UserError
from jvr1.eval.journal import AnswerJournal, claim
from jvr1.eval.plan import EvaluationPlan, plan_evaluation
from jvr1.eval.settings import PIXELS, describe_evaluation, reference_settings, with_changes
from jvr1.eval.suites import open_suites
from jvr1.model.families import FACTOR
from jvr1.model.hf import CONFIG, read_carried, read_config
from jvr1.model.layers import batch_ways
from jvr1.opening.data import check_batch, make_encoder
from jvr1.opening.indices import index_of
from jvr1.opening.models import CHECKPOINTS, locate, make_tokenizer, open_model
from jvr1.opening.places import check_writable, local_cache, use_compilation_cache
from jvr1.processes.peers import PEER_SECONDS, Peers, gather, share_of
from jvr1.questions.asking import Asking, answer_questions
from jvr1.questions.own_accuracy import with_own_accuracy
from jvr1.questions.replies import Question, from_line, to_line
from jvr1.rl.judge import make_judge
from jvr1.rl.user_values import UserValues
from jvr1.rollout.decoder import Decoder, make_decoder
from jvr1.setting import written_as
from jvr1.sharding import decode_mesh, make_mesh

# --- command line -----------------------------------------------------------------------------------------------------


SETTING_OF = {
    "seed": "seed",
    "dtype": "model.dtype",
    "kinds": "data.kinds",
    "batch": "batch.micro",
    "workers": "data.workers",
    "index": "data.index",
    "frame_cache": "data.frame_cache",
}
"""Option -> the setting that it gives."""


def _given(args: argparse.Namespace) -> dict[str, str]:
    """Those of `SETTING_OF` that the command line has: option -> setting."""
    return {option: name for option, name in SETTING_OF.items() if getattr(args, option, None) is not None}


def _as_given(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Errors name options, where a setting was given as one."""
    return written_as({name: f"--{option.replace('_', '-')}" for option, name in _given(args).items()})


def add_model_options(parser: Parser) -> None:
    """Which model, and how it is asked."""
    parser.add_argument("--model", required=True, help="HF folder, hub id, converted folder or workdir")
    parser.add_argument("--config", help="config file FILE[:ARG]; default: the workdir's own, or the reference's")
    parser.add_argument(
        "--kinds",
        metavar="MODULE:NAME",
        type=lambda text: tuple(text.split(",")),
        help="your own problem kinds, with commas",
    )
    parser.add_argument("--frames", type=int, help="most frames a video, at 2 a second (reference: 16, 32 or 64)")
    parser.add_argument(
        "--max-pixels", type=int, help=f"most pixels a frame or image (reference: 256*{FACTOR}*{FACTOR} = {PIXELS})"
    )
    parser.add_argument("--prompt", choices=("think", "direct"), help="Video-R1's prompt, or the bare question")
    parser.add_argument("--max-tokens", type=int, help="most new tokens (reference: 1024)")
    parser.add_argument("--temperature", type=float, help="default 0, the best token; several samples: 1")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--mesh", help="such as data=1,fsdp=4,tensor=2; default: the config's, or fsdp over all devices"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))


def add_batch_options(parser: Parser) -> None:
    """How many questions and answers at a time, on which processes."""
    parser.add_argument("--samples", type=int, default=1, help="answers a question")
    parser.add_argument("--batch", type=int, help="questions decoded together; default: the config's, or 8")
    parser.add_argument("--workers", type=int, help="processes that read media")
    parser.add_argument("--index", help="folder for the index of the media, which runs may share; default: OUT/index")
    parser.add_argument("--frame-cache", metavar="FOLDER", help="for decoded frames, which runs may share")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, of several")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    parser.add_argument("--peer_limit", type=float, default=PEER_SECONDS, help="seconds another may be silent")


def parse_options(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The options, and `peers` made of them. Raises UserError."""
    args = parser.parse_args(argv)
    args.peers = Peers(args.coordinator, args.processes, args.process, args.peer_limit)
    own = ("peers", "process", "peer_limit", "coordinator", "workers", "frame_cache")
    args.told = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in own}
    return args


def asking_of(args: argparse.Namespace, variants: Sequence[str] = ("ordered",)) -> Asking:
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if args.samples > 1 else 0.0
    return Asking(tuple(variants), args.samples, temperature, args.top_p)


def config_of(args: argparse.Namespace, files: Sequence[str], root: str) -> tuple[ConfigDict, bool]:
    """The config file named, else that of the workdir the model is, else the reference's, with the changes of the
    command line, for question files under a root; and whether buckets are to be fitted to the questions."""
    kept = workdir_of(epath.Path(args.model))
    if args.config:
        config = settings.from_file(args.config)
    elif kept is not None:
        if not (kept / CONFIG).exists():
            raise UserError(f"{kept / CONFIG} is missing, so it does not say how questions are put; name a --config")
        config = settings.from_json((kept / CONFIG).read_bytes().decode(errors="replace"), args.model)
    else:
        config = reference_settings()
    config.model.source, config.data.root = args.model, root
    config.data.train, config.data.weights = tuple(files), ()
    own = not args.config and kept is None
    fitted = with_changes(
        config, frames=args.frames, max_pixels=args.max_pixels, prompt=args.prompt, max_tokens=args.max_tokens, fit=own
    )
    given = {name: getattr(args, option) for option, name in _given(args).items()}
    config.update_from_flattened_dict(given)
    if "data.workers" in given:
        config.data.index_workers = max(config.data.workers, 1)
    with _as_given(args):
        return settings.check(config), fitted


def prepared(
    args: argparse.Namespace, files: Sequence[str], root: str, out: epath.Path
) -> tuple[ConfigDict, bool, Mesh]:
    """Of `config_of`, with the mesh as asked; `out` can be written. Raises UserError."""
    config, fitted = config_of(args, files, root)
    check_writable(out)
    use_compilation_cache()
    mesh = mesh_of(config, args.mesh)
    if args.batch is None:
        fill_devices(config, mesh)
    with _as_given(args):
        check_batch(config, mesh)
    return config, fitted, mesh


def workdir_of(model: epath.Path) -> epath.Path | None:
    """The workdir that a model is or lies in as a checkpoint."""
    if (model / CHECKPOINTS).is_dir():
        return model
    return model.parent.parent if model.name.isdigit() and model.parent.name == CHECKPOINTS else None


def mesh_of(config: ConfigDict, given: str | None) -> Mesh:
    """The devices as they generate: `given` as 'data=1,fsdp=4', an axis not named being 1, or the config's."""
    if given is None:
        wanted = settings.mesh_shape(config)
    else:
        try:
            wanted = {name: int(size) for name, size in (part.split("=") for part in given.split(","))}
        except ValueError:
            raise UserError(f"--mesh {given} is not of the form data=1,fsdp=4,tensor=2") from None
    return decode_mesh(make_mesh(wanted), config.mesh.decode_tensor)


def fill_devices(config: ConfigDict, mesh: Mesh) -> None:
    """Makes the rows of a microbatch divide by the devices."""
    ways = batch_ways(mesh)
    config.batch.micro = -(-config.batch.micro // ways) * ways


# --- the model --------------------------------------------------------------------------------------------------------


def open_encoder(config: ConfigDict) -> tuple[Encoder, str]:
    """How the model's questions become examples, and where its weights lie, which are not read. Raises UserError."""
    place = locate(config.model.source)
    model = read_config(place.folder)
    tokenizer = make_tokenizer(read_carried(place.folder), model, config.model.source)
    return make_encoder(config, model, tokenizer, targets=False), str(place.params or place.folder)


def open_decoder(config: ConfigDict, mesh: Mesh, tokenizer: PreTrainedTokenizerBase) -> tuple[Decoder, dict]:
    """The model, and its weights laid out for generation. All processes call it. Raises UserError."""
    dtype = jnp.dtype(config.model.dtype)
    model = open_model(config.model.source, mesh, dtype=dtype, param_dtype=dtype, attention=config.model.attention)
    ends = ends_of(tokenizer, model.carried, model.config)
    decoder = make_decoder(model.graphdef, mesh, model.config, ends, tensor=config.mesh.decode_tensor)
    return decoder, decoder.weights(model.params, consumed=True)


# --- questions of files -----------------------------------------------------------------------------------------------


class Answered(NamedTuple):
    """found: what came of each question of the plan, by number. settings: all that it depends on, and where it ran.
    journal: of the answers, to be cleared when they are kept elsewhere."""

    plan: EvaluationPlan
    found: dict[int, Question]
    settings: dict[str, Any]
    journal: AnswerJournal


def answer_files(config: ConfigDict, asking: Asking, mesh: Mesh, out: epath.Path, *, fitted: bool) -> Answered:
    """Answers the questions of `data.train`, those without an answer in the folder `out`; weights are read when there
    is something left to ask. All processes call it. Raises UserError."""
    suites = open_suites(config.data.train, config.data.root, settings.question_fields(config))
    encoder, weights = open_encoder(config)
    told = describe_evaluation(config, asking, suites, weights, fitted)
    claim(out, told, write=jax.process_index() == 0)

    def index(file: str, records: Sequence[Record], stamp: Mapping[str, Any]) -> list[IndexEntry]:
        return index_of(file, records, config, encoder, out, stamp=stamp)

    plan = plan_evaluation(suites, encoder, index, fitted=fitted)
    journal = AnswerJournal(out, jax.process_index())
    found = {n: from_line(line, plan.records) for n, line in everyone(journal.read()).items() if n < len(plan.records)}
    left = {bucket: [n for n in numbers if n not in found] for bucket, numbers in plan.rows.items()}
    todo = Sequential(left, config.batch.micro)
    if todo.plans:
        own = answer(config, mesh, asking, todo, plan, journal, found)
        lines = everyone({number: to_line(question) for number, question in own.items()})
        found |= {number: from_line(line, plan.records) for number, line in lines.items()}
    found |= plan.dropped
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    where = {"buckets": [bucket.name for bucket in plan.rows], "mesh": dict(mesh.shape), "devices": devices}
    return Answered(plan, found, told | where, journal)


def answer(
    config: ConfigDict,
    mesh: Mesh,
    asking: Asking,
    todo: Sequential,
    plan: EvaluationPlan,
    journal: AnswerJournal,
    found: Mapping[int, Question],
) -> dict[int, Question]:
    """Answers the rows of `todo`, `batch.micro` at a time; each is in the journal before its place is given to
    another."""
    tokenizer = plan.encoder.tokenizer
    user = accuracy_of_own(config, plan.records)
    decoder, weights = open_decoder(config, mesh, tokenizer)
    key = jax.random.key(config.seed)
    decode = decoder.answering(weights, key, temperature=asking.temperature, top_p=asking.top_p)
    pipeline = Pipeline(
        todo,
        RecordStore.write(local_cache(journal.folder) / "questions", plan.records),
        plan.encoder,
        seed=config.seed,
        per_step=1,
        workers=config.data.workers,
        share=share_of(mesh),
    )
    microbatches = ahead(pipeline.microbatches(0, len(todo.plans), {}), 1)
    fresh: dict[int, Question] = {}
    total, quiet = sum(map(len, plan.rows.values())), jax.process_index() > 0
    every = 0.5 if sys.stderr.isatty() else 15.0
    with (
        jax.set_mesh(mesh),
        tqdm(total=total, initial=len(found), unit="question", mininterval=every, disable=quiet) as bar,
    ):
        for questions in answer_questions(microbatches, decode, tokenizer, asking):
            new = with_own_accuracy([q for q in questions if q.number not in found], user)
            journal.add(new)
            fresh |= {q.number: q for q in new}
            bar.update(len(new) * jax.process_count())
    return fresh


def accuracy_of_own(config: ConfigDict, records: Sequence[Record]) -> UserValues | None:
    """The user's rewards where one is the accuracy of a problem type. Raises UserError."""
    return make_judge(config, records).user if config.reward.user_accuracy else None


def everyone(mine: Mapping[int, str]) -> dict[int, str]:
    """Lines of all processes by the number of their question."""
    return {number: line for lines in gather(list(mine.items())) for number, line in lines}
