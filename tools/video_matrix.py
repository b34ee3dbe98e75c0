"""Whether every frame is the one asked for, over containers x codecs x structure: python tools/video_matrix.py

Makes a clip of each (PyAV's encoders) whose frames carry their own number, loads 16 of them and 2 a second, again and
again, and writes the table: frames that show another number than asked for, refusals, results that differ from load to
load; beside it decord's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from benchmarks.clips import BITS, Clip, clips, make, number_of, read, read_by_decord

from jvr1.data.media import MediaError
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError, run_main
from jvr1.model.families import RULES
from jvr1.model.media import VideoSampling

SAMPLINGS = {"16": VideoSampling(frames=16), "2 fps": VideoSampling(fps=2, max_frames=10_000)}


@dataclass(frozen=True)
class Outcome:
    """Of some loads: the most wrong frames in one, of how many; refusals; how many results differ from the first."""

    wrong: int = 0
    frames: int = 0
    refused: int = 0
    changed: int = 0

    @property
    def right(self) -> bool:
        return not (self.wrong or self.refused or self.changed) and self.frames > 0

    def __str__(self) -> str:
        notes = [f"{self.wrong} of {self.frames} wrong"] if self.wrong else []
        notes += [f"refused {self.refused}x"] if self.refused else []
        notes += [f"{self.changed} loads differ"] if self.changed else []
        return ", ".join(notes) or "right"


def outcome(reader: Sandbox, path: Path, sampling: VideoSampling, loads: int, frames: int) -> Outcome:
    """Loads a clip of `frames` frames `loads` times."""
    first, indices, wrong, most, refused, changed = None, np.zeros(0, np.int64), 0, 0, 0, 0
    wanted = set(RULES.indices(frames, 25.0, sampling)[0].tolist()) if sampling.frames else None
    for _ in range(loads):
        try:
            named, got = reader(str(path), sampling, first is None)
        except MediaError:
            refused += 1
            continue
        indices = indices if named is None else named
        numbers = np.array([number_of(one) for one in got])
        off = (numbers != indices).sum() if len(numbers) == len(indices) else len(indices)
        off = len(indices) if wanted is not None and wanted != set(indices.tolist()) and not off else off
        wrong, most = max(wrong, int(off)), max(most, len(indices))
        first = got if first is None else first
        changed += not np.array_equal(got, first)
    return Outcome(wrong, most, refused, changed)


def rows(frames: int, loads: int, only: str) -> Iterator[tuple[Clip, dict[str, Outcome], dict[str, Outcome]]]:
    """Each clip that can be made, with ours and decord's outcomes."""
    with tempfile.TemporaryDirectory() as folder, Sandbox(read, 120.0) as our, Sandbox(read_by_decord, 120.0) as their:
        for clip in clips():
            path = Path(folder) / clip.file
            if only not in clip.name:
                continue
            try:
                make(clip, path, frames)
            except (av.error.FFmpegError, ValueError) as error:
                print(f"{clip.name}: not made: {error}", file=sys.stderr)
                continue
            result = {name: outcome(our, path, sampling, loads, frames) for name, sampling in SAMPLINGS.items()}
            beside = {n: outcome(their, path, sampling, min(loads, 3), frames) for n, sampling in SAMPLINGS.items()}
            path.unlink()
            yield clip, result, beside


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=1500, help="of a clip")
    parser.add_argument("--loads", type=int, default=20, help="of each clip and sampling")
    parser.add_argument("--only", default="", help="clips whose name holds this, such as 'HEVC open'")
    flags = parser.parse_args(arguments)
    if not 16 <= flags.frames < 2**BITS or flags.loads < 1:
        raise UserError(f"--frames must lie in [16, {2**BITS - 1}] and --loads be at least 1")
    print("| codec | structure | container | 16 frames | 2 fps | decord: 16 frames | decord: 2 fps |")
    print("|---|---|---|---|---|---|---|")
    right = total = 0
    for clip, result, beside in rows(flags.frames, flags.loads, flags.only):
        cells = [str(one) for one in (*result.values(), *beside.values())]
        print(f"| {clip.codec} | {clip.structure} | {clip.container} | {' | '.join(cells)} |", flush=True)
        total, right = total + 1, right + all(one.right for one in result.values())
    print(f"\n{right} of {total} clips right in all {flags.loads} loads")


if __name__ == "__main__":
    run_main(main)
