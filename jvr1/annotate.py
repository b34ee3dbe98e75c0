"""Chains of thought for your own questions: jvr1 annotate --model DIR --data FILE --out FILE

Asks any model the questions of a file in Video-R1's form, keeps the answers that the reward finds right, and writes
them with their reasoning as `process`: what jvr1.train_sft reads. How questions are put is as in jvr1.evaluate. Every
answer, kept or not, stays in the folder OUT.answers; killed, it goes on where it was, and with another --threshold,
--keep or --reward nothing is asked again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

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
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.eval.journal import ANSWERS, write_whole
from jvr1.eval.report import AskedSuite, answer_lines, failures
from jvr1.processes.guard import run_distributed
from jvr1.questions.replies import Question
from jvr1.rl.rewards import MODES, score

SUFFIXES = (".json", ".jsonl")
ANSWERS_FOLDER, FAILED = ".answers", "failed.json"


def main(args: argparse.Namespace) -> int:
    out, folder = epath.Path(args.out), epath.Path(args.out + ANSWERS_FOLDER)
    check_options(args)
    asking = asking_of(args)
    file = args.data if "://" in args.data else str(epath.Path(args.data).resolve())
    config, fitted, mesh = prepared(args, (file,), args.root or str(epath.Path(file).parent), folder)

    # --- answers: those of before, then the rest
    done = answer_files(config, asking, mesh, folder, fitted=fitted)

    # --- what is worth learning from
    if jax.process_index() == 0:
        (asked,) = done.plan.asked(done.found)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answer_lines([asked]))
        write_whole(folder / ANSWERS, text)
        failed = failures(asked)
        write_whole(folder / FAILED, json.dumps(failed, indent=2, ensure_ascii=False) + "\n")
        done.journal.clear()
        kept = {i: annotated(q, args.reward, args.threshold, args.keep) for i, q in asked.questions.items()}
        rows = [row for index in sorted(kept) for row in kept[index]]
        write_whole(out, as_file(rows, lines=out.suffix == ".jsonl"))
        print(outcome(asked, kept, failed, args), f"Written to {out}.")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError."""
    for name, path in (("--data", args.data), ("--out", args.out)):
        if not path.endswith(SUFFIXES):
            raise UserError(f"{name} {path} must be a file ending in .json or .jsonl")
    if not epath.Path(args.data).exists():
        raise UserError(f"--data {args.data} does not exist; name the questions' file")
    if args.root is not None and not epath.Path(args.root).is_dir():
        raise UserError(
            f"--root {args.root} is no folder; name that which the paths of the questions' media start from"
        )
    if epath.Path(args.out).exists() and epath.Path(args.out).resolve() == epath.Path(args.data).resolve():
        raise UserError(f"--out {args.out} is the questions' own file; name another")
    if not 0 <= args.threshold < 1:
        raise UserError(f"--threshold is {args.threshold}; it must be at least 0 and below 1, the highest reward")
    if args.keep < 1:
        raise UserError(f"--keep is {args.keep}; it must be at least 1")


CHAIN = re.compile(r"(<think>.*</think>)\s*<answer>.*</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def chain_of(completion: str) -> str | None:
    """The reasoning with its tags, where the completion is reasoning and one answer and nothing else."""
    text = completion.strip()
    found = CHAIN.fullmatch(text)
    return found[1] if found and all(text.count(tag) == 1 for tag in TAGS) else None


def annotated(question: Question, mode: str, threshold: float, most: int) -> list[dict[str, Any]]:
    """At most `most` cold-start records of a question: different chains whose answer's accuracy is above the
    threshold, the best first, then in the order drawn."""
    record = question.record
    right: dict[str, float] = {}
    for reply in question.replies:
        chain = chain_of(reply.completion)
        accuracy = score(
            reply.completion, record.solution, record.problem_type, mode, record.options, facts=record.further
        ).accuracy
        if chain is not None and accuracy > threshold:
            right[chain] = max(accuracy, right.get(chain, 0.0))
    best = sorted(right, key=lambda chain: -right[chain])[:most]
    return [raw(record, chain) for chain in best]


def raw(record: Record, process: str) -> dict[str, Any]:
    """A record as its file holds it, with this chain of thought; its solution in the tags that SFT learns."""
    solution = record.solution if "<answer>" in record.solution else f"<answer>{record.solution.strip()}</answer>"
    fields = asdict(record) | {"process": process, "solution": solution}
    read = ("extra", "seconds", "task", "aspect")  # `further` has what they were read from
    return {name: value for name, value in fields.items() if value is not None and name not in read} | record.further


def as_file(rows: Iterable[dict[str, Any]], *, lines: bool) -> str:
    if lines:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n"


# --- what came of it --------------------------------------------------------------------------------------------------


def outcome(asked: AskedSuite, kept: dict[int, list], failed: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """One line: what was kept of how many, and why not the rest."""
    chains, with_one = sum(map(len, kept.values())), sum(map(bool, kept.values()))
    answered = [q for q in asked.questions.values() if q.error is None]
    unformed = sum(all(chain_of(r.completion) is None for r in q.replies) for q in answered)
    parts = [f"{with_one} of {asked.suite.size} questions annotated with {chains} chains of thought"]
    parts.append(f"{unformed} without one answer in its tags")
    parts.append(f"{len(answered) - with_one - unformed} without a reward above {args.threshold:g}")
    causes = Counter(row["cause"] for row in failed).most_common()
    listed = ", ".join(f"{count} {cause}" for cause, count in causes)
    parts.append(
        f"{len(failed)} could not be asked"
        + (f" ({listed}), see {args.out}{ANSWERS_FOLDER}/{FAILED}" if failed else "")
    )
    return "; ".join(parts) + "."


def options() -> Parser:
    parser = Parser(prog="jvr1 annotate", description=__doc__)
    parser.add_argument("--data", required=True, help="the questions, a .json or .jsonl file")
    parser.add_argument("--root", help="folder that their media's paths start from; default: the file's own")
    parser.add_argument("--out", required=True, help="the cold-start file to write, .json or .jsonl")
    parser.add_argument("--threshold", type=float, default=0.6, help="kept is what has a reward above it")
    parser.add_argument("--reward", choices=MODES, default="robust", help="how accuracy is scored")
    parser.add_argument("--keep", type=int, default=1, help="most chains of thought kept a question, the best")
    add_model_options(parser)
    add_batch_options(parser)
    return parser


def command() -> None:
    run_distributed(main, lambda: parse_options(options(), sys.argv[1:]))


if __name__ == "__main__":
    command()
