"""A T-GRPO step of ours against the usual way with transformers + torch: same weights, same clip, same token counts.

The usual way is what PyTorch trainers of vision models do: HF `generate` with prompt and video repeated for each
completion, then on the shuffled frames; a pass of a reference model and one of the policy over repeated sequences, with
the logits of all positions; AdamW. Each way is a process of its own with its own peak of memory; they take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jvr1.data.batch import Arrays
from jvr1.errors import UserError
from jvr1.model import hf, vision_language
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD
from jvr1.sharding import make_mesh, param_shardings

from .phases import open_phases
from .shapes import SHAPES, Shape, make_inputs, resized

TOOLS = Path(__file__).parents[1]
PHASES = ("generate", "update", "step")
SECONDS = 1.0
"""Between a clip's temporal steps: 2 frames a second."""


class Case(NamedTuple):
    """What each way is given; the same but where ours has more frames."""

    ours: Shape
    usual: Shape


MID = SHAPES["mid"]
CASES = {
    "small": Case(*(resized(SHAPES["small"], frames=4, completion=8),) * 2),
    "mid": Case(MID, MID),
    "mid-400": Case(*(resized(MID, completion=400),) * 2),
    "mid-64-frames": Case(resized(MID, frames=64), MID),
}


# --- ours


def open_ours(folder: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """The programs of `jvr1.train_rl` for one prompt a step."""
    config = hf.read_config(folder)
    graphdef, shapes = vision_language.abstract(config, remat="dots")
    params = hf.load(folder, config, shapes, param_shardings(shapes, make_mesh({"data": 1}, jax.devices()[:1])))
    phases = open_phases(graphdef, params, shape)

    def score() -> list:
        return np.asarray(phases["score"].run(None)).tolist()

    def update() -> None:
        score()
        jax.block_until_ready(phases["update"].run(None))

    return {"generate": lambda: phases["generate"].run(None), "update": update, "score": score}


# --- the usual way


def open_usual(folder: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """One prompt a step, everything repeated G times."""
    import torch

    if not torch.cuda.is_available():  # torchvision's CUDA build imports without its library once these have a schema
        schemas = torch.library.Library("torchvision", "DEF")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # by itself it leaves out hyperthreads, which XLA uses
    policy = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    reference = deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    given, ids, _, advantages = make_inputs(shape)
    group, length = shape.group, shape.bucket.completion
    visual = torch_visual(shape)
    prompt = torch.tensor(given.prompt.ids).long()
    completions = torch.tensor(ids[0]).long()
    advantage = torch.tensor(advantages[0])[:, None]
    positions = torch_positions(given, group, length)

    def logprobs(model: Any) -> Any:
        ids = torch.cat([prompt.expand(group, -1), completions], dim=1)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False, **repeated(visual, group)).logits
        rows = [  # row by row, as TRL does: all at once would double the logits
            torch.gather(row.log_softmax(-1), -1, own[:, None])[:, 0]
            for row, own in zip(logits[:, -length - 1 : -1], completions, strict=True)
        ]
        return torch.stack(rows)

    def generate() -> None:
        policy.eval()
        for count in (group, shape.shuffled):  # ordered, then shuffled frames: which they are costs nothing
            with torch.no_grad():
                out = policy.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), **visual, do_sample=True, temperature=1.0,
                    top_k=0, num_return_sequences=count, min_new_tokens=length, max_new_tokens=length,
                )  # fmt: skip
            assert out.shape == (count, prompt.shape[1] + length)

    def update() -> None:
        policy.train()
        with torch.no_grad():
            anchor = logprobs(reference)
        own = logprobs(policy)
        ratio = torch.exp(own - own.detach())
        apart = anchor - own
        kl = torch.exp(apart) - apart - 1
        loss = -(ratio * advantage - 0.04 * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    def score() -> list:
        with torch.no_grad():
            return [logprobs(reference).tolist()]

    return {"generate": generate, "update": update, "score": score}


def torch_visual(shape: Shape) -> dict[str, Any]:
    """The clip of `make_inputs` as the HF processor gives it: patches in its order, grid, seconds a temporal step."""
    import torch

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (shape.frames, shape.height, shape.width, 3), np.uint8)
    x = (frames.astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    t, h, w = shape.frames // 2, shape.height // 14, shape.width // 14
    x = x.reshape(t, 2, h // 2, 2, 14, w // 2, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return {
        "pixel_values_videos": torch.tensor(x.reshape(t * h * w, -1)),
        "video_grid_thw": torch.tensor([[t, h, w]]),
        "second_per_grid_ts": torch.tensor([SECONDS]),
    }


def repeated(visual: dict[str, Any], count: int) -> dict[str, Any]:
    """A video for each of `count` sequences."""
    return {name: x.repeat(count, *(1,) * (x.ndim - 1)) for name, x in visual.items()}


def torch_positions(given: Arrays, count: int, length: int) -> Any:
    """[3, count, P + C], as ours."""
    import torch

    prompt = np.asarray(given.prompt.positions)[0]
    following = np.broadcast_to(given.prompt.next_position[0] + np.arange(length), (3, length))
    positions = torch.tensor(np.concatenate([prompt, following], axis=1)).long()
    return positions[:, None].expand(-1, count, -1)


# --- turns


def peak_memory() -> int:
    """Bytes this process held at most since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def serve(way: str, folder: str, name: str) -> None:
    """A worker: answers each phase named on its standard input with a line of JSON."""
    shape = getattr(CASES[name], way)
    phases = {"ours": open_ours, "usual": open_usual}[way](folder, shape)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        phase = line.strip()
        reset_peak()
        start = time.perf_counter()
        value = phases[phase]()
        said = {"seconds": time.perf_counter() - start, "peak": peak_memory(), "value": value}
        print(json.dumps(said), file=answers, flush=True)


class Worker:
    """A way in a process of its own."""

    def __init__(self, way: str, folder: str, name: str):
        command = [sys.executable, "-m", "benchmarks.against", way, folder, name]
        self.process = subprocess.Popen(command, cwd=TOOLS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, phase: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(phase + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(name: str, rounds: int = 3) -> dict[str, Any]:
    """Seconds, peak memory and ratios (above 1: ours is faster, or takes less) of each phase, medians over the rounds
    after one that compiles and warms up; largest difference of the two ways' log-probabilities.

    Raises UserError for a shape that does not exist.
    """
    if name not in CASES:
        raise UserError(f"no shape {name!r}; there are {', '.join(CASES)}")
    ours, usual = CASES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/model"
        _, params = vision_language.init(ours.model, 0)
        hf.save(params, ours.model, folder, carried={}, dtype="float32")
        del params
        workers = {way: Worker(way, folder, name) for way in ("ours", "usual")}
        apart = None
        if ours == usual:
            scores = [np.asarray(worker.run("score")["value"]) for worker in workers.values()]
            apart = float(np.abs(scores[0] - scores[1]).max())
        seconds: dict[str, dict[str, list[float]]] = {way: {phase: [] for phase in PHASES} for way in workers}
        peaks = dict.fromkeys(workers, 0)
        for turn in range(rounds + 1):
            for way, worker in workers.items():
                said = {phase: worker.run(phase) for phase in ("generate", "update")}
                if turn:
                    for phase, one in said.items():
                        seconds[way][phase].append(one["seconds"])
                        peaks[way] = max(peaks[way], one["peak"])
                    seconds[way]["step"].append(sum(one["seconds"] for one in said.values()))
        for worker in workers.values():
            worker.close()
    medians = {
        way: {phase: statistics.median(values) for phase, values in of_way.items()} for way, of_way in seconds.items()
    }
    return {
        "shape": {
            way: f"{s.frames} frames, P={s.bucket.prompt}, C={s.bucket.completion}, {s.group} + {s.shuffled} rows"
            for way, s in zip(workers, (ours, usual), strict=True)
        },
        "seconds": medians,
        "peak_gib": {way: peak / 2**30 for way, peak in peaks.items()},
        "ratio": {phase: medians["usual"][phase] / medians["ours"][phase] for phase in PHASES}
        | {"memory": peaks["usual"] / peaks["ours"]},
        "logprob_difference": apart,
    }


if __name__ == "__main__":
    serve(*sys.argv[1:])
