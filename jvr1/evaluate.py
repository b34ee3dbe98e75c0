"""Accuracy on benchmarks or question files: jvr1 evaluate --model DIR --suite NAMES --data ROOT --out DIR

DIR is any model: HF folder, hub id, converted folder, workdir. NAMES are of vsibench, videommmu, mmvu, mvbench,
tempcompass, videomme (Video-R1's published eval_*.json under ROOT), of videoholmes, lvbench, longvideobench, mlvu,
videomathqa, charades, tvbench (in the files that they publish), or question files, separated by commas. How questions
are put comes from --config or from the workdir that trained the model; for any other model it is how Video-R1
evaluates. Writes answers.jsonl, report.json, report.md and report.html; killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

import jax
from etils import epath

from jvr1.answering import (
    add_batch_options,
    add_model_options,
    answer_files,
    asking_of,
    parse_options,
    prepared,
)
from jvr1.command_line import Parser
from jvr1.eval.journal import ANSWERS, write_whole
from jvr1.eval.page import frames_seen, html
from jvr1.eval.report import answer_lines, as_table, build, markdown, rests_on
from jvr1.eval.settings import paper_frames
from jvr1.processes.guard import run_distributed
from jvr1.questions.replies import mode_of
from jvr1.questions.summary import TaskSummary


def main(args: argparse.Namespace) -> int:
    out = epath.Path(args.out)
    asking = asking_of(args, args.variants.split(","))
    config, fitted, mesh = prepared(args, args.suite.split(","), args.data, out)

    # --- answers: those of before, then the rest
    done = answer_files(config, asking, mesh, out, fitted=fitted)

    # --- report
    if jax.process_index() == 0:
        asked = done.plan.asked(done.found)
        report = build(asked, asking, done.settings, mode_of(config.reward.mode), paper_frames(config, asking))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answer_lines(asked))
        write_whole(out / ANSWERS, text)
        write_whole(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        write_whole(out / "report.md", markdown(report))
        look = partial(frames_seen, done.plan.encoder)
        write_whole(out / "report.html", html(report, asked, look, args.frames_in_report))
        done.journal.clear()
        print(as_table({task: TaskSummary(**summary) for task, summary in report["tasks"].items()}))
        print(f"\n{rests_on(report)} {out / 'report.html'}")
    return 0


def options() -> Parser:
    parser = Parser(prog="jvr1 evaluate", description=__doc__)
    parser.add_argument("--suite", required=True, help="benchmarks or question files under --data, with commas")
    parser.add_argument("--data", required=True, help="root of the question files and their media")
    parser.add_argument("--out", required=True, help="folder of the answers and the report")
    parser.add_argument("--variants", default="ordered", help="of ordered,shuffled,reversed,single: a video's frames")
    parser.add_argument("--frames-in-report", type=int, default=100, help="questions whose frames the page shows")
    add_model_options(parser)
    add_batch_options(parser)
    return parser


def command() -> None:
    run_distributed(main, lambda: parse_options(options(), sys.argv[1:]))


if __name__ == "__main__":
    command()
