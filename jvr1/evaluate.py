"""Accuracy on benchmarks or question files: python -m jvr1.evaluate --model DIR --suite NAMES --data ROOT --out DIR

DIR is any model: HF folder, hub id, converted folder, workdir. NAMES are of vsibench, videommmu, mmvu, mvbench,
tempcompass, videomme (Video-R1's published eval_*.json under ROOT), or question files, separated by commas. How
questions are put comes from --config or from the workdir that trained the model; for any other model it is how Video-R1
evaluates. Writes answers.jsonl, report.json, report.md and report.html; killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jvr1 import config as settings
from jvr1.data.pipeline import Pipeline, ahead
from jvr1.data.prompts import end_ids
from jvr1.data.schedule import Sequential
from jvr1.data.store import RecordStore
from jvr1.distributed import gather, share_of
from jvr1.errors import UserError, run_main
from jvr1.eval.journal import ANSWERS, Journal, claim, from_line, to_line, write_whole
from jvr1.eval.page import frames_seen, html
from jvr1.eval.plan import Plan, make_plan
from jvr1.eval.report import answer_lines, as_table, build, markdown, rests_on
from jvr1.eval.run import Asking, Summary, answer_questions
from jvr1.eval.score import Question, mode_of
from jvr1.eval.settings import describe, paper_frames, reference_settings, with_changes
from jvr1.eval.suites import open_suites
from jvr1.model.hf import CONFIG, read_carried, read_config
from jvr1.sharding import decode_mesh, make_mesh
from jvr1.train.decode import make_decoder
from jvr1.train.models import CHECKPOINTS, locate, make_tokenizer, open_model
from jvr1.train.setup import check_batch, check_writable, index_of, local_cache, make_encoder, use_compilation_cache


def main() -> int:
    args = parse(sys.argv[1:])
    out = epath.Path(args.out)
    asking = asking_of(args)
    config, fitted = settings_for(args)
    check_writable(out)
    use_compilation_cache()
    wanted = mesh_sizes(args.mesh) if args.mesh else settings.mesh_shape(config)
    mesh = decode_mesh(make_mesh(wanted), config.mesh.decode_tensor)
    set_batch(config, args.batch, mesh)

    # --- what is asked of whom: weights are read when there is something left to ask
    suites = open_suites(config.data.train, args.data)
    place = locate(args.model)
    model_config = read_config(place.folder)
    tokenizer = make_tokenizer(read_carried(place.folder), args.model)
    told = describe(config, asking, suites, str(place.params or place.folder), fitted)
    claim(out, told, write=jax.process_index() == 0)
    encoder = make_encoder(config, model_config, tokenizer, targets=False)

    def index(file, records, measure, fingerprint):
        return index_of(file, records, config, encoder, measure, fingerprint, out)

    plan = make_plan(suites, encoder, index, fitted=fitted)

    # --- answers: those of before, then the rest
    journal = Journal(out, jax.process_index())
    found = {n: from_line(line, plan.records) for n, line in everyone(journal.read()).items() if n < len(plan.records)}
    left = {bucket: [n for n in numbers if n not in found] for bucket, numbers in plan.rows.items()}
    todo = Sequential(left, config.batch.micro)
    if todo.plans:
        own = answer(config, mesh, tokenizer, asking, todo, plan, journal, found)
        lines = everyone({number: to_line(question) for number, question in own.items()})
        found |= {number: from_line(line, plan.records) for number, line in lines.items()}
    found |= plan.dropped

    # --- report
    if jax.process_index() == 0:
        asked = plan.asked(found)
        shapes = [bucket.name for bucket in plan.rows]
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        shown = told | {"buckets": shapes, "mesh": dict(mesh.shape), "devices": devices}
        report = build(asked, asking, shown, mode_of(config.reward.mode), paper_frames(config, asking))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answer_lines(asked))
        write_whole(out / ANSWERS, text)
        write_whole(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        write_whole(out / "report.md", markdown(report))
        write_whole(out / "report.html", html(report, asked, partial(frames_seen, plan.encoder), args.frames_in_report))
        journal.clear()
        print(as_table({task: Summary(**summary) for task, summary in report["tasks"].items()}))
        print(f"\n{rests_on(report)} {out / 'report.html'}")
    return 0


def answer(
    config: ConfigDict,
    mesh: Mesh,
    tokenizer,
    asking: Asking,
    todo: Sequential,
    plan: Plan,
    journal: Journal,
    found: dict[int, Question],
) -> dict[int, Question]:
    """Answers the rows of `todo`, `batch.micro` at a time; each is in the journal before its place is given to
    another."""
    dtype = jnp.dtype(config.model.dtype)
    model = open_model(config.model.source, mesh, dtype=dtype, param_dtype=dtype, attention=config.model.attention)
    decoder = make_decoder(model.graphdef, mesh, model.config, end_ids(tokenizer))
    key = jax.random.key(config.seed)
    decode = decoder.answering(decoder.weights(model.params), key, temperature=asking.temperature, top_p=asking.top_p)
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
            new = [q for q in questions if q.number not in found]
            journal.add(new)
            fresh |= {q.number: q for q in new}
            bar.update(len(new) * jax.process_count())
    return fresh


def everyone(mine: Mapping[int, str]) -> dict[int, str]:
    """Lines of all processes by the number of their question."""
    return {number: line for lines in gather(list(mine.items())) for number, line in lines}


# --- command line -----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jvr1.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="HF folder, hub id, converted folder or workdir")
    parser.add_argument("--suite", required=True, help="benchmarks or question files under --data, with commas")
    parser.add_argument("--data", required=True, help="root of the question files and their media")
    parser.add_argument("--out", required=True, help="folder of the answers and the report")
    parser.add_argument("--config", help="config file FILE[:ARG]; default: the workdir's own, or the reference's")
    parser.add_argument("--frames", type=int, help="most frames a video, at 2 a second (reference: 16, 32 or 64)")
    parser.add_argument("--max-pixels", type=int, help="most pixels a frame or image (reference: 256*28*28 = 200704)")
    parser.add_argument("--prompt", choices=("think", "direct"), help="Video-R1's prompt, or the bare question")
    parser.add_argument("--max-tokens", type=int, help="most new tokens (reference: 1024)")
    parser.add_argument("--variants", default="ordered", help="of ordered,shuffled,reversed,single: a video's frames")
    parser.add_argument("--samples", type=int, default=1, help="answers a question and variant: avg@k, majority")
    parser.add_argument("--temperature", type=float, help="default 0, the best token; with --samples 1")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--batch", type=int, help="questions decoded together; default: the config's, or 8")
    parser.add_argument(
        "--mesh", help="such as data=1,fsdp=4,tensor=2; default: the config's, or fsdp over all devices"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--workers", type=int, help="processes that read media")
    parser.add_argument("--frames-in-report", type=int, default=100, help="questions whose frames the page shows")
    return parser.parse_args(argv)


def asking_of(args: argparse.Namespace) -> Asking:
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if args.samples > 1 else 0.0
    return Asking(tuple(args.variants.split(",")), args.samples, temperature, args.top_p)


def settings_for(args: argparse.Namespace) -> tuple[ConfigDict, bool]:
    """The config file named, else that of the workdir the model is, else the reference's, with the changes of the
    command line; and whether buckets are to be fitted to the questions."""
    kept = workdir_of(epath.Path(args.model))
    if args.config:
        config = settings.from_file(args.config)
    elif kept is not None:
        if not (kept / CONFIG).exists():
            raise UserError(f"{kept / CONFIG} is missing, so it does not say how questions are put; name a --config")
        config = settings.from_json((kept / CONFIG).read_text(), args.model)
    else:
        config = reference_settings()
    config.model.source, config.data.root = args.model, args.data
    config.data.train, config.data.weights = tuple(args.suite.split(",")), ()
    own = not args.config and kept is None
    fitted = with_changes(
        config, frames=args.frames, max_pixels=args.max_pixels, prompt=args.prompt, max_tokens=args.max_tokens, fit=own
    )
    for section, name, value in (
        (config, "seed", args.seed),
        (config.model, "dtype", args.dtype),
        (config.data, "workers", args.workers),
        (config.data, "index_workers", args.workers or None),
    ):
        if value is not None:
            section[name] = value
    return settings.check(config), fitted


def workdir_of(model: epath.Path) -> epath.Path | None:
    """The workdir that a model is or lies in as a checkpoint."""
    if (model / CHECKPOINTS).is_dir():
        return model
    return model.parent.parent if model.name.isdigit() and model.parent.name == CHECKPOINTS else None


def set_batch(config: ConfigDict, batch: int | None, mesh: Mesh) -> None:
    """Rows a microbatch: as asked, else the config's, made to divide by the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    config.batch.micro = -(-config.batch.micro // ways) * ways if batch is None else batch
    if config.batch.micro < 1:
        raise UserError(f"--batch is {batch}; it must be at least 1")
    check_batch(config, mesh)


def mesh_sizes(text: str) -> dict[str, int]:
    """'data=1,fsdp=4' as sizes; an axis not named is 1."""
    try:
        return {name: int(size) for name, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise UserError(f"--mesh {text} is not of the form data=1,fsdp=4,tensor=2") from None


if __name__ == "__main__":
    run_main(main)
