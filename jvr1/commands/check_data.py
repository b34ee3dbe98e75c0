"""What is wrong or doubtful in a question file: jvr1 check-data FILE [--root ROOT [--config FILE[:ARG]]] [--json]

Each finding by record and field, counted by kind, with what to do about it. With --root the media are looked at too;
with --config everything is measured as its run would, so that what fits no bucket is found, and the index is kept for
runs. Exit code 1 where a record could not be used or would be learned from in vain.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etils import epath

from jvr1.command_line import Parser
from jvr1.commands.index import (
    TIMEOUT,
    add_config_options,
    add_media_options,
    again_of,
    config_of_data,
    fields_of,
    load_own_kinds,
    place_of,
    taken_with,
    with_overrides,
)
from jvr1.data.cache import MediaCache
from jvr1.data.index import VisualTokens, build_index, with_seconds
from jvr1.data.inspection import (
    Finding,
    counted_lines,
    doubtful_rows,
    inspect_entries,
    inspect_faults,
    inspect_records,
)
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.records import Record, read_records
from jvr1.errors import UserError, run_main
from jvr1.model.families import TOKEN_PIXELS
from jvr1.model.media import PixelLimits, VideoSampling

if TYPE_CHECKING:
    from jvr1.data.index_file import IndexEntry

SHOWN_FINDINGS = 50


def main(arguments: list[str] | None = None) -> int:
    flags = with_overrides(options(), arguments)
    if flags.config and not flags.root:
        raise UserError("--config measures media too; name the folder their paths start from with --root")
    fields = fields_of(flags)
    summary: list[str] = []
    load_own_kinds(flags)
    records, faults = read_records(flags.data, fields)
    findings = inspect_faults(faults) + inspect_records(records, thoughts=flags.sft or not flags.config)
    if flags.root and records:
        entries, summary = measured_for(flags, records) if flags.config else (probed(flags, records), [])
        findings += at_their_places(inspect_entries(list(records.values()), entries), list(records))
    findings.sort(key=lambda one: one.row)
    told = counts_of(flags.data, len(records) + len(faults), findings)
    if flags.json:
        print(json.dumps(told | {"findings": [one.as_json() for one in findings]}, ensure_ascii=False, indent=1))
    else:
        print("\n".join([*told_findings(told, findings, flags.all), *summary]))
    return int(any(one.counted or one.unusable for one in findings))


def counts_of(file: str, records: int, findings: Sequence[Finding]) -> dict[str, Any]:
    """How many records are what."""
    unusable = len({one.row for one in findings if one.unusable})
    return {"file": file, "records": records, "unusable": unusable, "doubtful": len(doubtful_rows(findings))}


def told_findings(told: Mapping[str, Any], findings: Sequence[Finding], every: bool) -> list[str]:
    """The findings as lines: counted by kind, then one by one."""
    counts = f"{told['unusable']} cannot be used, {told['doubtful']} are doubtful"
    lines = [f"{told['file']}: {told['records']} records, {counts}", *counted_lines(findings)]
    shown = findings if every else findings[:SHOWN_FINDINGS]
    lines += [str(one) for one in shown]
    if len(shown) < len(findings):
        lines.append(f"{len(findings) - len(shown)} more findings; --all shows them, --json has them for programs")
    return lines


def at_their_places(findings: Sequence[Finding], places: Sequence[int]) -> list[Finding]:
    """Findings of usable records, numbered as in the file, where others stand between them."""
    return [replace(one, row=places[one.row]) for one in findings]


def probed(flags: argparse.Namespace, records: Mapping[int, Record]) -> list[IndexEntry]:
    """The media as they are, whatever a run makes of them."""
    media = MediaCache(flags.root, flags.cache, round(flags.cache_gb * 2**30))
    most = flags.max_decoded_mb or MAX_DECODED_MB
    limits = PixelLimits(TOKEN_PIXELS, 256 * TOKEN_PIXELS)
    measure = VisualTokens(VideoSampling(), limits, limits)
    return build_index(list(records.values()), media, {}, measure, flags.workers, None, flags.timeout or TIMEOUT, most)


def measured_for(flags: argparse.Namespace, records: Mapping[int, Record]) -> tuple[list[IndexEntry], list[str]]:
    """What they come to in a run with the config, and its summary. Raises UserError."""
    from jvr1.config import fits_buckets
    from jvr1.opening.data import encoder_of
    from jvr1.opening.indices import Questions, fit_run, in_buckets_of, index_of, summary_lines, with_buckets

    config = config_of_data(flags)
    encoder = encoder_of(config, targets=flags.sft)
    file, own = place_of(flags.data), list(records.values())
    entries = index_of(file, own, config, encoder, epath.Path(config.data.index), told=False, again=again_of(flags))
    questions = Questions(file, with_seconds(own, entries), entries, flags.sft, list(records), fits_buckets(config))
    if questions.fitted:
        with redirect_stdout(sys.stderr):  # stdout may be JSON
            fit_run(config, [questions], [], encoder)
    questions = in_buckets_of(questions, with_buckets(encoder, config))
    return questions.entries, [*summary_lines(questions, [], config), taken_with(config)]


def options() -> Parser:
    parser = Parser(prog="jvr1 check-data", description=__doc__)
    parser.add_argument("data", metavar="FILE", help="records: JSON, JSONL, Parquet or a folder of tables")
    parser.add_argument("--root", help="media root, local or gs://; without it media are not looked at")
    add_config_options(parser)
    parser.add_argument("--json", action="store_true", help="all findings as JSON")
    parser.add_argument("--all", action="store_true", help=f"show all findings, not {SHOWN_FINDINGS}")
    parser.add_argument("--out", help="folder of the index that --config makes; default: ROOT/index")
    add_media_options(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
