"""Qwen3-VL's frames, sizes, times and prompts: those of its processors, token for token."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import deep
import numpy as np
import pytest
import torch
from cases import encoder, record
from media_files import clip, pyav_frames
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLModel
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from jvr1.data.batch import make_buckets
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.media import probe
from jvr1.data.prompts import PromptStyle, messages, opened, placeholders_of, target_ids
from jvr1.demo.tiny_model import TINY_FORMS, tokenizer_files, train_tokenizer
from jvr1.errors import MediaError, UserError
from jvr1.model.families import from_hf, published
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.rollout.stream import TextStream
from jvr1.rollout.tasks import Sampled, texts_of

TOKEN = 32 * 32
LIMITS = PixelLimits(4 * TOKEN, 16 * TOKEN)
BUCKETS = make_buckets([("video", 8, 2, 400, 24), ("image", 1, 2, 200, 24)])
FORM = TINY_FORMS["qwen3_vl"]
FAMILY = published("qwen3-vl-8b").family


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer(["which colour came third?", *FORM.sentences[:4]])
    files = tokenizer_files(trained, FORM.template) | {"config.json": json.dumps(FORM.raw(trained)).encode()}
    for name, content in files.items():
        (out / name).write_bytes(content)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def config(folder):
    return from_hf(json.loads((folder / "config.json").read_text()))


@pytest.fixture(scope="module")
def processor(folder):
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}, patch_size=16,
        image_mean=deep.MEAN, image_std=deep.MEAN,
    )  # fmt: skip
    fields = FAMILY.processor.video(VideoSampling(), LIMITS, 32)
    return Qwen3VLProcessor(images, AutoTokenizer.from_pretrained(folder), Qwen3VLVideoProcessor(**fields))


def chat(tokenizer, one) -> str:
    style = PromptStyle("{Question}", suffixes=False)
    return tokenizer.apply_chat_template(messages(one, style, 1), tokenize=False, add_generation_prompt=True)


def as_released(text: str, grid, times) -> str:
    """What the processors of the release made of a template's text, written again from its description: the whole
    marked placeholder gives way to the steps, each marked and after its time."""
    steps, height, width = grid
    step = "<|vision_start|>" + "<|video_pad|>" * (height * width // 4) + "<|vision_end|>"
    assert len(times) == steps
    every = "".join(f"<{time:.1f} seconds>{step}" for time in times)
    return text.replace("<|vision_start|><|video_pad|><|vision_end|>", every)


CLIPS = {
    "even": {"frames": 12, "fps": 4},
    "odd": {"frames": 25, "fps": 10},
    "one frame": {"frames": 1, "fps": 5},
    "23.976": {"frames": 60, "fps": Fraction(24000, 1001)},
    "120": {"frames": 300, "fps": 120},
    "variable": {"frames": 12, "fps": 10, "times": (0, 1, 2, 3, 4, 9, 14, 19, 24, 29, 34, 39)},
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_becomes_what_its_processors_make(config, tokenizer, processor, folder, tmp_path, name):
    """Frames, sizes, times, positions, ids in both forms. Of one frame the processor refuses to speak: it gets two."""
    clip(tmp_path / "a.mp4", height=130, width=70, pixels="yuv444p", **CLIPS[name])
    one = encoder(
        config, tokenizer, MediaReader(MediaCache(str(tmp_path))), buckets=BUCKETS, timeout=60.0, root=tmp_path,
        style=PromptStyle("{Question}", suffixes=False), video=VideoSampling(), video_limits=LIMITS, targets=False,
    )  # fmt: skip
    seen = probe(tmp_path / "a.mp4", "video")
    frames = pyav_frames(tmp_path / "a.mp4")
    assert seen.frames == len(frames)
    if name not in ("one frame", "variable"):
        assert seen.fps == pytest.approx(float(CLIPS[name]["fps"]), rel=1e-3)
    text = chat(tokenizer, record())
    many = np.repeat(frames, 2, axis=0) if name == "one frame" else frames
    metadata = VideoMetadata(
        total_num_frames=len(many),
        fps=seen.fps,
        frames_indices=[0, 0] if name == "one frame" else list(range(len(many))),
    )
    theirs = processor(
        text=[text], videos=[torch.tensor(many).permute(0, 3, 1, 2)], video_metadata=[metadata],
        do_sample_frames=name != "one frame", return_tensors="np",
    )  # fmt: skip
    steps, height, width = theirs["video_grid_thw"][0].tolist()
    shown = [t for t in tokenizer.decode(theirs["input_ids"][0]).split("<") if t.endswith("seconds>")]
    seconds = [float(t.split()[0]) for t in shown]

    nested = dataclasses.replace(one, style=dataclasses.replace(one.style, form="nested"))
    for each, ids in (
        (nested, theirs["input_ids"][0]),
        (one, tokenizer(as_released(text, (steps, height, width), seconds))["input_ids"]),
    ):
        assert each.measure(record(), (seen,)).tokens == len(ids)
        arrays = each.encode(record(), BUCKETS[0], np.random.default_rng(0))
        real = arrays.prompt.mask
        np.testing.assert_array_equal(arrays.prompt.ids[real], ids)
        kinds = torch.tensor(2 * (np.asarray(ids) == config.video_token))[None]
        with torch.device("meta"):
            model = Qwen3VLModel(Qwen3VLConfig(**json.loads((folder / "config.json").read_text())))
        want, delta = model.get_rope_index(
            torch.tensor(ids)[None], kinds, video_grid_thw=torch.tensor([[steps, height, width]])
        )
        np.testing.assert_array_equal(arrays.prompt.positions[:, real], want[:, 0])
        assert arrays.prompt.next_position == len(ids) + int(delta)
        visual = arrays.visual
        pairs = visual.frames[visual.pair[:steps]].reshape(steps, 2, -1, 4, 3, 256)
        pairs = np.moveaxis(pairs, 1, 4).reshape(-1, 4, 3, 2, 256)
        flat = pairs[arrays.prompt.visual_index[arrays.prompt.visual_index >= 0]]
        apart = np.abs((flat / 127.5 - 1).reshape(-1, 1536) - theirs["pixel_values_videos"])
        assert (apart > 4.01 / 255).mean() < 1e-3
    one.read.close()


def test_an_image_becomes_what_its_processors_make(config, tokenizer, processor):
    rng = np.random.default_rng(0)
    for size in ((60, 80), (300, 70), (37, 211), (640, 480)):
        theirs = processor(
            text=[chat(tokenizer, record(data_type="image"))],
            images=[rng.integers(0, 256, (*size, 3), np.uint8)],
            return_tensors="np",
        )
        height, width = config.frames.resized(Probe(*size, 1, 0.0), VideoSampling(), LIMITS)
        assert theirs["image_grid_thw"].tolist() == [[1, height // 16, width // 16]]


def test_frames_are_those_of_the_processor():
    library = Qwen3VLVideoProcessor(max_frames=16)
    for total in (1, 2, 3, 5, 9, 30, 31, 100, 299, 5000):
        for fps in (1.0, 8.0, 10.0, 24000 / 1001, 25.0, 120.0):
            want = library.sample_frames(VideoMetadata(total_num_frames=total, fps=fps))
            got, _ = published("qwen3-vl-4b").frames.indices(total, fps, VideoSampling())
            np.testing.assert_array_equal(got, want)
    part, rate = published("qwen3-vl-4b").frames.indices(100, 10.0, VideoSampling(start=2.0, end=4.0))
    assert (part[0], part[-1], len(part), rate) == (20, 40, 4, pytest.approx(4 / 21 * 10))


BUDGETS = {"a step": (4, 128), "enlarged": (128, 128), "a budget": (4, 768, 1000)}


@pytest.mark.parametrize("tokens", BUDGETS.values(), ids=BUDGETS)
def test_sizes_are_those_of_the_processor(monkeypatch, tokens):
    """Its own resize asked for a size, with the fields that an export has."""
    limits = PixelLimits(*(count * TOKEN for count in tokens))
    monkeypatch.setattr(BaseVideoProcessor, "resize", lambda self, image, size, resample: size)
    rules = published("qwen3-vl-8b").frames
    fields = FAMILY.processor.video(VideoSampling(max_frames=40), limits, 32)
    library = Qwen3VLVideoProcessor(**fields)
    for height, width in ((360, 640), (1080, 1920), (480, 640), (352, 448), (96, 64), (20, 50), (33, 900), (1, 100)):
        for count in (2, 3, 5, 7, 8, 9, 16, 33):
            video = torch.empty((1, count, 3, height, width), device="meta")
            want = library.resize(
                video, SizeDict(**fields["size"]), None, 32, 2, cap_pixels_per_frame=fields["cap_pixels_per_frame"]
            )
            got = rules.resized(Probe(height, width, count, 2.0), VideoSampling(frames=count), limits)
            assert got == (want["height"], want["width"]), (height, width, count)
    with pytest.raises(MediaError, match="aspect ratio of 32000x32"):
        rules.resized(Probe(2, 2000, 8, 2.0), VideoSampling(), limits)


def test_the_form_of_a_prompt_is_one_of_the_family_s(config):
    assert placeholders_of(PromptStyle(form=""), config) is placeholders_of(PromptStyle(form="release"), config)
    with pytest.raises(UserError, match=r"data.prompt_form is 'outer'; those of Qwen3-VL, dense are release, nested"):
        placeholders_of(PromptStyle(form="outer"), config)
    with pytest.raises(UserError, match=r"data.prompt_form is 'nested'; Qwen2.5-VL has one: leave it empty"):
        placeholders_of(PromptStyle(form="nested"), published("7b"))


def test_what_a_thinking_template_opens_belongs_to_the_answer(folder, config):
    """Scored, shown, and not learned a second time."""
    plain, thinking = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    thinking.chat_template = FORM.template.replace("assistant\\n", "assistant\\n<think>\\n")
    assert (opened(plain), opened(thinking)) == ("", "<think>\n")
    said = np.asarray(plain("red</think><answer>B</answer>")["input_ids"])
    sampled = Sampled(said[None, None], np.asarray([[len(said)]]), np.zeros((1, 1), bool), np.zeros((1, 1, len(said))))
    assert texts_of(thinking, sampled) == [["<think>\nred</think><answer>B</answer>"]]
    stream = TextStream(thinking)
    assert stream.add(said) + stream.end() == "<think>\nred</think><answer>B</answer>"
    style = PromptStyle("{Question}", suffixes=False)
    for process, want in (
        ("<think>red</think>", "red</think>\n<answer>B</answer>"),
        (None, "</think>\n<answer>B</answer>"),
    ):
        ids = target_ids(thinking, record(process=process), style, 7, config)
        assert (plain.decode(ids[:-1]), ids[-1]) == (want, 7)
    both = "<think>red</think>\n<answer>B</answer>"
    assert plain.decode(target_ids(plain, record(), style, 7, config)[:-1]).startswith("<think>red then blue</think>")
    assert plain.decode(target_ids(plain, record(process="<think>red</think>"), style, 7, config)[:-1]) == both
