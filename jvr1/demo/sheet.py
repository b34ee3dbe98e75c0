"""Contact sheets of a demo data set, for looking at it: python -m jvr1.demo.sheet DATA OUT writes one PNG a task."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from jvr1.demo.dataset import SETTINGS_FILE
from jvr1.demo.questions import HARD, TASKS, DemoTask
from jvr1.demo.scenes import FRAMES, SIZE, Frames
from jvr1.errors import UserError, run_main

ZOOM, GAP, CAPTION = 2, 6, 34


def frames_in(path: Path) -> Frames:
    """All frames of a clip, or the one of a picture."""
    if path.suffix != ".mp4":
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def strip(record: dict[str, Any], frames: Frames) -> Image.Image:
    """Frames side by side, twice their size; question, options and answer above."""
    side = SIZE * ZOOM
    image = Image.new("RGB", (FRAMES * (side + GAP) + GAP, side + CAPTION), "white")
    for i, frame in enumerate(frames):
        large = frame.repeat(ZOOM, 0).repeat(ZOOM, 1)
        image.paste(Image.fromarray(large), (GAP + i * (side + GAP), CAPTION))
    answer = record["solution"].removeprefix("<answer>").removesuffix("</answer>")
    kind = ", ".join((record["data_source"], record["problem_type"], Path(record["path"]).suffix[1:]))
    draw = ImageDraw.Draw(image)
    draw.text((GAP, 3), f"{record['problem']}   {'  '.join(record['options'])}", fill="black")
    draw.text((GAP, 17), f"answer: {answer}   ({kind})", fill="gray")
    return image


def sheet(root: Path, task: DemoTask, count: int = 4) -> Image.Image:
    """The first `count` questions of a task from the test or the hard file, one under the other."""
    records = json.loads((root / f"{'hard' if task.hard else 'test'}.json").read_text())
    chosen = [r for r in records if r["data_source"] == task.name][:count]
    strips = [strip(r, frames_in(root / r["path"])) for r in chosen]
    width, height = strips[0].size
    image = Image.new("RGB", (width, len(strips) * (height + GAP)), "white")
    for i, one in enumerate(strips):
        image.paste(one, (0, i * (height + GAP)))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder of jvr1 demo-data")
    parser.add_argument("out", type=Path, help="where demo_TASK.png go")
    args = parser.parse_args()
    if not (args.data / SETTINGS_FILE).exists():
        raise UserError(f"{args.data} is not a folder of jvr1 demo-data; it holds no {SETTINGS_FILE}")
    args.out.mkdir(parents=True, exist_ok=True)
    for task in (*TASKS, *HARD):
        sheet(args.data, task).save(args.out / f"demo_{task.name}.png", optimize=True)


if __name__ == "__main__":
    run_main(main)
