"""A run as one HTML page: jvr1 report WORKDIR [--out FILE] [--no-frames]

Curves, validations and what changed between them, groups of completions with frames, rewards and advantages by step.
The file needs no network. It can be made while the run goes on, as often as you like. Frames are read again from
data.root, as the model gets them; where they cannot be, the page goes without.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from etils import epath

from jvr1 import config as settings
from jvr1.command_line import Parser
from jvr1.data.records import Record
from jvr1.errors import UserError, run_main
from jvr1.opening.staging import write_file
from jvr1.run_page.page import run_html
from jvr1.run_page.reading import RunFiles, read_run


def main(arguments: list[str] | None = None) -> None:
    args = options().parse_args(arguments)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this, and may be the run's
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart
    run = read_run(args.workdir)
    config = settings.from_json((run.workdir / "config.json").read_text(), str(run.workdir))
    out = epath.Path(args.out or run.workdir / "report.html")
    html = run_html(run, not_default(config), frames_reader(run, config, args))
    try:
        write_file(out, html.encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); name another file by --out") from None
    print(f"step {run.step} of {config.train.steps}: {out}")


def options() -> Parser:
    parser = Parser(prog="jvr1 report", description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="of a training run, local or gs://")
    parser.add_argument("--out", metavar="FILE", help="default: WORKDIR/report.html")
    parser.add_argument("--root", help="folder of the data, where it is not at data.root on this machine")
    parser.add_argument("--no-frames", action="store_true", help="read no media")
    return parser


def not_default(config: settings.ConfigDict) -> dict[str, Any]:
    """Setting -> value of those that differ from the defaults."""
    given, usual = (settings.flat(one.to_dict()) for one in (config, settings.default()))
    return {name: value for name, value in given.items() if value != usual[name]}


def frames_reader(
    run: RunFiles, config: settings.ConfigDict, args: argparse.Namespace
) -> Callable[[Record], Sequence[str]]:
    """What looks at a record's media; one that shows nothing where model or data are not to be had."""
    if args.no_frames or not run.rollouts:
        return _nothing
    from jvr1.eval.page import frames_seen, thumbnails
    from jvr1.model.hf import read_config
    from jvr1.opening.data import make_encoder
    from jvr1.opening.models import MODEL, read_tokenizer

    config.data.root = args.root or config.data.root
    try:
        folder = run.workdir / MODEL
        encoder = make_encoder(config, read_config(folder), read_tokenizer(folder), targets=False)
    except (UserError, OSError):
        return _nothing
    seen = partial(frames_seen, encoder)
    return lambda record: thumbnails(seen(record))


def _nothing(_: Record) -> Sequence[str]:
    return ()


if __name__ == "__main__":
    run_main(main)
