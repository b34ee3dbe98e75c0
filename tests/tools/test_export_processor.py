"""What an export says of media and sampling, read by transformers: the grids of the training, its ends, no penalty."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from oracle import random_model
from transformers import AutoProcessor, GenerationConfig
from transformers.video_utils import VideoMetadata

from jvr1 import config as settings
from jvr1.commands import export as export_command
from jvr1.data import processor
from jvr1.data.chat import ends_of
from jvr1.demo.dataset import questions
from jvr1.demo.questions import TASKS
from jvr1.demo.tiny_model import (
    corpus,
    generation_config,
    json_bytes,
    processor_config,
    raw_config,
    tokenizer_files,
    train_tokenizer,
)
from jvr1.errors import UserError
from jvr1.model.families import FACTOR, from_hf, published
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.opening.models import make_tokenizer, save_model

ROOT = Path(__file__).parents[2]
CONFIG = published("7b")
FORM = CONFIG.family.processor
TOKEN = 28 * 28
SIZES = (
    (360, 640),
    (640, 360),
    (288, 512),
    (480, 480),
    (90, 160),
    (56, 56),
    (540, 960),
    (30, 900),
    (400, 600),
    (99, 33),
)
RUNS = {
    "by rate": (VideoSampling(fps=2.0, min_frames=4, max_frames=16), PixelLimits(128 * TOKEN, 128 * TOKEN)),
    "by number": (VideoSampling(frames=8), PixelLimits(4 * TOKEN, 64 * TOKEN)),
    "with a budget": (VideoSampling(max_frames=64), PixelLimits(4 * TOKEN, 256 * TOKEN, 1000 * TOKEN)),
}
IMAGES = PixelLimits(4 * TOKEN, 200 * TOKEN)


@pytest.fixture(scope="module")
def carried() -> dict[str, bytes]:
    tokenizer = train_tokenizer(corpus(questions(TASKS, each=4, seed=0)))
    penalised = generation_config(tokenizer) | {"repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 50}
    return tokenizer_files(tokenizer) | {
        "config.json": json_bytes(raw_config(tokenizer)),
        "preprocessor_config.json": json_bytes(processor_config()),
        "generation_config.json": json_bytes(penalised),
    }


@pytest.fixture(scope="module")
def workdirs(carried, tmp_path_factory) -> Path:
    """A workdir for each of RUNS, with a checkpoint of step 1."""
    root = tmp_path_factory.mktemp("workdirs")
    config = from_hf(json.loads(carried["config.json"]))
    files = {name: content for name, content in carried.items() if name != "config.json"}
    _, params = random_model(config)
    save_model(root / "model", params, config, files)
    for name, (sampling, limits) in RUNS.items():
        run = settings.default()
        run.data.video.update({k: v for k, v in vars(sampling).items() if v is not None})
        run.data.video_pixels.update({k: v for k, v in vars(limits).items() if v is not None})
        run.data.image_pixels.update({"min_pixels": IMAGES.min_pixels, "max_pixels": IMAGES.max_pixels})
        run.sampling.update({"temperature": 0.9, "top_p": 0.95, "top_k": 40})
        (root / name).mkdir()
        (root / name / "config.json").write_text(settings.to_json(run))
        (root / name / "model").symlink_to(root / "model")
        with ocp.CheckpointManager(root / name / "checkpoints") as manager:
            manager.save(1, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    return root


def export(source: Path, out: Path, *more: str) -> None:
    """As a user does, in this process, whose devices are set already."""
    export_command.main([str(source), str(out), "--dtype=float32", *more])


@pytest.fixture(scope="module")
def exported(workdirs) -> dict[str, Path]:
    for name in RUNS:
        export(workdirs / name, workdirs / "out" / name)
    return {name: workdirs / "out" / name for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_the_processor_of_the_export_gives_the_grids_of_the_training(exported, name):
    """Images, videos that a caller sampled, and videos that the processor is asked to sample."""
    library = AutoProcessor.from_pretrained(exported[name])
    sampling, limits = RUNS[name]
    for number, (height, width) in enumerate(SIZES):
        image = np.zeros((height, width, 3), np.uint8)
        size = CONFIG.frames.resized(Probe(height, width, 1, 0.0), sampling, IMAGES)
        got = library.image_processor(images=[image], return_tensors="np")["image_grid_thw"]
        assert got.tolist() == [[1, size[0] // 14, size[1] // 14]], (height, width)

        total, fps = 20 + 13 * number, 8.0
        chosen, _ = CONFIG.frames.indices(total, fps, sampling)
        size = CONFIG.frames.resized(Probe(height, width, total, fps), sampling, limits)
        want = [[len(chosen) // 2, size[0] // 14, size[1] // 14]]
        video = torch.zeros((1, 3, height, width), dtype=torch.uint8).expand(total, -1, -1, -1)
        sampled = library.video_processor(videos=[video[chosen]], return_tensors="np")
        assert sampled["video_grid_thw"].tolist() == want, (height, width)
        metadata = VideoMetadata(total_num_frames=total, fps=fps, frames_indices=list(range(total)))
        whole = library.video_processor(
            videos=[video], video_metadata=[metadata], do_sample_frames=True, return_tensors="np"
        )
        assert whole["video_grid_thw"].tolist() == want, (height, width)


def test_both_forms_of_the_files_are_written(exported, carried):
    """The nested file of transformers 5 is changed where there is one: it is read before the others."""
    folder = exported["by rate"]
    video = json.loads((folder / "video_preprocessor_config.json").read_text())
    assert video["size"] == {"shortest_edge": 128 * TOKEN, "longest_edge": int(1.05 * 128 * TOKEN)}
    assert (video["fps"], video["min_frames"], video["max_frames"], video["do_sample_frames"]) == (2.0, 4, 16, False)
    assert not (folder / "processor_config.json").exists()
    nested = {"image_processor": {"patch_size": 14, "max_pixels": 1}, "video_processor": {"fps": 24, "num_frames": 3}}
    files = carried | {"processor_config.json": json.dumps(nested).encode()}
    of_video = FORM.video(*RUNS["by rate"], FACTOR)
    out = processor.processor_files(files, CONFIG, FORM.image(IMAGES), of_video)
    both = json.loads(out["processor_config.json"])
    assert both["image_processor"]["max_pixels"] == IMAGES.max_pixels
    assert both["video_processor"]["fps"] == 2.0
    assert "num_frames" not in both["video_processor"]
    assert json.loads(out["video_preprocessor_config.json"]) == both["video_processor"]
    without = processor.processor_files({}, CONFIG, FORM.image(IMAGES), None)
    assert json.loads(without["preprocessor_config.json"])["size"]["longest_edge"] == IMAGES.max_pixels
    assert set(without) == {"preprocessor_config.json"}


def test_sampling_of_the_export_is_that_of_the_training(exported, carried):
    config = GenerationConfig.from_pretrained(exported["by rate"])
    assert (config.temperature, config.top_p, config.top_k, config.do_sample) == (0.9, 0.95, 40, True)
    assert config.repetition_penalty == 1.0
    before = json.loads(carried["generation_config.json"])
    assert config.eos_token_id == before["eos_token_id"]
    assert config.pad_token_id == before["pad_token_id"]


def test_what_the_export_says(workdirs, tmp_path, capsys):
    export(workdirs / "by rate", tmp_path / "run")
    assert "generation_config.json samples as the training did; the source's repetition_penalty of 1.05" in printed(
        capsys
    )
    export(workdirs / "model", tmp_path / "model")
    told = printed(capsys)
    assert "its repetition_penalty of 1.05 makes generate answer otherwise than jvr1" in told
    assert f'sys.path.insert(0, "{tmp_path}/model")' in told
    assert (tmp_path / "model" / "text_positions.py").exists()
    kept = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert kept["repetition_penalty"] == 1.05  # no training is known of
    export(workdirs / "model", tmp_path / "limits", "--min-pixels=3136", "--max-pixels=100352")
    processors = json.loads((tmp_path / "limits" / "preprocessor_config.json").read_text())
    assert processors["size"] == {"shortest_edge": 3136, "longest_edge": 100352}


def printed(capsys) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["preprocessor_config.json", "generation_config.json"])
def test_files_that_are_no_json_are_named(carried, name):
    broken = carried | {name: b"{"}
    read = {
        "preprocessor_config.json": lambda: processor.processor_files(broken, CONFIG, {}, None),
        "generation_config.json": lambda: processor.penalty(broken),
    }
    with pytest.raises(UserError, match=re.escape(name)):
        read[name]()


def test_a_third_end_token_ends_an_answer(carried):
    config = from_hf(json.loads(carried["config.json"]))
    tokenizer = make_tokenizer(carried, CONFIG, "here")
    first, last = ends_of(tokenizer, carried, config)
    assert tokenizer.convert_ids_to_tokens([first, last]) == ["<|im_end|>", "<|endoftext|>"]
    for given, want in (([first, 7, last], (first, 7, last)), (7, (first, 7, last)), (first, (first, last))):
        files = carried | {"generation_config.json": json.dumps({"eos_token_id": given}).encode()}
        assert ends_of(tokenizer, files, config) == want
    assert ends_of(tokenizer, {}, config) == (first, last)
    for given in ("<|im_end|>", [config.text.vocab], [None], -1):
        files = carried | {"generation_config.json": json.dumps({"eos_token_id": given}).encode()}
        with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is "):
            ends_of(tokenizer, files, config)


def test_devices_are_as_the_tool_sets_them():
    assert jax.device_count() == export_command.HOST_DEVICES
