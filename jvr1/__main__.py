"""One command for all of jvr1: jvr1 COMMAND [ARGUMENTS], or python -m jvr1 COMMAND [ARGUMENTS]"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from jvr1 import __version__
from jvr1.errors import UserError, run_main


class Entry(NamedTuple):
    module: str
    about: str


COMMANDS = {
    "train-sft": Entry("jvr1.train_sft", "supervised cold start on chains of thought"),
    "train-rl": Entry("jvr1.train_rl", "T-GRPO, GRPO and their variants"),
    "train-bestofn": Entry("jvr1.train_bestofn", "supervised steps on the best of n sampled completions"),
    "evaluate": Entry("jvr1.evaluate", "accuracy on benchmarks or question files, with a report"),
    "ask": Entry("jvr1.ask", "one question about a video or images"),
    "annotate": Entry("jvr1.annotate", "chains of thought for your own questions, by any model"),
    "report": Entry("jvr1.commands.report", "a training run as one page: curves, validations, completions with frames"),
    "convert": Entry("jvr1.commands.convert", "a model in a form that many hosts open faster"),
    "export": Entry("jvr1.commands.export", "a trained model as an HF folder, for transformers and vLLM"),
    "prepare-data": Entry("jvr1.commands.prepare_data", "Video-R1's data or your own: fetch, unpack, check, index"),
    "check-data": Entry("jvr1.commands.check_data", "what is wrong or doubtful in a question file, by record"),
    "index": Entry("jvr1.commands.index", "media of a data file, probed once; what cannot be used, and why"),
    "plan": Entry("jvr1.commands.plan", "memory and time of a run on chips you do not have yet"),
    "demo-data": Entry("jvr1.commands.demo_data", "the embedded data set and a tiny model, to try all this on a CPU"),
}
"""Training and evaluation are modules of their own with `command()`, the others have `main(arguments)`. Only the one
that is asked for is imported."""
OWN = "jvr1.commands."


def listing() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.about}" for name, entry in COMMANDS.items()]
    more = "jvr1 COMMAND --help, or jvr1 help COMMAND, says what it takes."
    return "\n".join(["usage: jvr1 COMMAND [ARGUMENTS]", "", "commands:", *lines, "", more])


def run(arguments: Sequence[str]) -> int | None:
    """Runs the command that the first argument names with the rest. Raises UserError for one that is not there."""
    name, *rest = arguments or ["--help"]
    if name == "help" and rest:
        name, *rest = rest[0], "--help"
    if name in ("-h", "--help", "help"):
        print(listing())
        return 0
    if name == "--version":
        print(f"jvr1 {__version__}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name.replace("_", "-"), COMMANDS, 1, 0.5)
        told = f"did you mean {near[0]!r}?" if near else "jvr1 --help lists them"
        raise UserError(f"there is no command {name!r}; {told}")
    entry = COMMANDS[name]
    sys.argv = [f"jvr1 {name}", *rest]  # what the commands read, and what their messages call them
    # that torch is missing: it has no part in this
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    module = importlib.import_module(entry.module)
    if entry.module.startswith(OWN):
        code: int | None = module.main(rest)
        return code
    module.command()
    return 0


def main() -> None:
    """The console script."""
    run_main(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
