"""Accuracy on question files: python -m jvr1.evaluate --model DIR --suite FILE[,FILE...] --data ROOT --out DIR

Every question is answered greedily, a video's on ordered and on shuffled frames. DIR is any model: HF folder, hub id,
converted folder, workdir. How questions are put (template, frames, pixels, buckets) comes from --config, or from the
workdir that trained the model. Writes OUT/answers.jsonl and OUT/report.json, prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from jvr1 import config as settings
from jvr1.data.prompts import end_ids
from jvr1.distributed import share_of
from jvr1.errors import UserError, run_main
from jvr1.eval.report import as_table
from jvr1.eval.run import Judge, answer_questions, as_json, summarise
from jvr1.sharding import decode_mesh, make_mesh
from jvr1.train.decode import make_decoder
from jvr1.train.models import make_tokenizer, open_model
from jvr1.train.setup import check_batch, check_writable, make_encoder, open_questions, use_compilation_cache


def main() -> int:
    args = parse(sys.argv[1:])
    out = epath.Path(args.out)
    config = settings_for(args)

    # --- model
    use_compilation_cache()
    mesh = decode_mesh(make_mesh(settings.mesh_shape(config)), config.mesh.decode_tensor)
    check_batch(config, mesh)
    check_writable(out)
    dtype = jnp.dtype(config.model.dtype)
    model = open_model(args.model, mesh, dtype=dtype, param_dtype=dtype)
    tokenizer = make_tokenizer(model.carried, model.source)
    decoder = make_decoder(model.graphdef, mesh, model.config, end_ids(tokenizer))

    # --- questions
    encoder = make_encoder(config, model.config, tokenizer, targets=False)
    pipeline, count = open_questions(config, tuple(args.suite.split(",")), encoder, out, "questions", share_of(mesh))

    # --- answers
    decode = decoder.greedy(decoder.weights(model.params), jax.random.key(config.seed))
    microbatches = tqdm(pipeline.microbatches(0, count, {}), total=count, unit="batch", disable=not sys.stderr.isatty())
    with jax.set_mesh(mesh):
        answers = list(answer_questions(microbatches, decode, Judge(config.reward.mode), tokenizer))
    if not answers:
        raise UserError(f"no question of {args.suite} fits a bucket of data.buckets; the lines above say why")

    # --- report
    summaries = summarise(answers)
    out.mkdir(parents=True, exist_ok=True)
    (out / "answers.jsonl").write_text("".join(json.dumps(as_json(a)) + "\n" for a in answers))
    report = {
        "model": args.model,
        "suite": args.suite.split(","),
        "tasks": {task: summary._asdict() for task, summary in summaries.items()},
        "settings": json.loads(settings.to_json(config)),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(as_table(summaries))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jvr1.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="HF folder, hub id, converted folder or workdir")
    parser.add_argument("--suite", required=True, help="question files, relative to --data, separated by commas")
    parser.add_argument("--data", required=True, help="root of the question files and their media")
    parser.add_argument("--out", required=True, help="folder of the answers and the report")
    parser.add_argument("--config", help="config file FILE[:ARG]; default: the workdir's own config.json")
    return parser.parse_args(argv)


def settings_for(args: argparse.Namespace) -> ConfigDict:
    """The config file named, else that of the workdir the model is; with the model and data of the command line."""
    if args.config:
        config = settings.from_file(args.config)
    elif (epath.Path(args.model) / "checkpoints").is_dir():
        kept = epath.Path(args.model) / "config.json"
        if not kept.exists():
            raise UserError(f"{kept} is missing, so {args.model} does not say how questions are put; name a --config")
        config = settings.from_json(kept.read_text(), args.model)
    else:
        raise UserError(f"{args.model} is no workdir, so it does not say how questions are put; name a --config")
    config.model.source, config.data.root = args.model, args.data
    config.data.train = tuple(args.suite.split(","))
    return settings.check(config)


if __name__ == "__main__":
    run_main(main)
