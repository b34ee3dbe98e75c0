"""A record becomes what the reference's path gives: its frame sampling and sizes, then the HF processor."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from cases import BUCKETS, IMAGE, TEXT, VIDEO, encoder, record
from media_files import clip, encoded, pictures
from painted import Paint
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jvr1.data.batch import make_buckets
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.fitting import in_buckets
from jvr1.data.index import build_index
from jvr1.data.index_file import IndexEntry
from jvr1.data.index_summary import summarise_index
from jvr1.data.prompts import TEMPLATES, PromptStyle
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD
from jvr1.problems.kinds import KINDS

VIDEO_PIXELS, IMAGE_PIXELS = PixelLimits(16 * 784, 24 * 784), PixelLimits(4 * 784, 40 * 784)
REFERENCE = make_buckets([("video", 8, 30, 1200, 24), ("image", 1, 60, 800, 24), ("text", 0, 0, 800, 24)])
ROUNDING = 2.01 / 255 / min(IMAGE_STD)  # two levels of a pixel


@pytest.fixture
def reading(tmp_path, config, tokenizer):
    """An encoder with Video-R1's prompt over real files, read by a helper process."""
    one = encoder(
        config,
        tokenizer,
        MediaReader(MediaCache(str(tmp_path))),
        buckets=REFERENCE,
        timeout=60.0,
        root=tmp_path,
        style=PromptStyle(),
        video=VideoSampling(),
        video_limits=VIDEO_PIXELS,
        image_limits=IMAGE_PIXELS,
    )
    yield one
    one.read.close()


def processor(folder):
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    pixels = {"shortest_edge": IMAGE_PIXELS.min_pixels, "longest_edge": IMAGE_PIXELS.max_pixels}
    images = Qwen2VLImageProcessorPil(size=pixels)
    pixels = {"shortest_edge": VIDEO_PIXELS.min_pixels, "longest_edge": VIDEO_PIXELS.max_pixels}
    videos = Qwen2VLVideoProcessor(size=pixels, cap_pixels_per_frame=False)
    return Qwen2_5_VLProcessor(images, AutoTokenizer.from_pretrained(folder), videos)


def pixel_values(arrays, tokens):
    """Ours in the order and normalisation of the HF processors, [patches, 1176]."""
    visual = arrays.visual
    pairs = visual.frames[visual.pair].reshape(len(visual.pair), 2, -1, 4, 3, 14 * 14)  # by merged unit
    pairs = np.moveaxis(pairs, 1, 4).reshape(-1, 4, 3, 2, 14 * 14)[arrays.prompt.visual_index[tokens]]
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (IMAGE_MEAN, IMAGE_STD))
    return ((pairs / 255 - mean) / std).reshape(-1, 1176)


def question(one):
    asked = one.problem + "Options:\n" + "".join(f"{option}\n" for option in one.options)
    return TEMPLATES["reference"].replace("{Question}", asked) + KINDS[one.problem_type].suffix


def sampled(path, fps):
    """The reference's frames of a video: 2 a second, 4 to 16, an even number, at equal distances."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    count = min(min(max(len(frames) / fps * 2, 4), 16), len(frames)) // 2 * 2
    indices = torch.linspace(0, len(frames) - 1, int(count)).round().long().numpy()
    return frames[indices], indices, len(frames)


def hf_positions(raw, inputs):
    """Position ids of transformers' own model (5.x), and its tokens."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**raw)).model
    names = (
        "input_ids",
        "mm_token_type_ids",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "attention_mask",
    )
    given = {name: torch.as_tensor(np.asarray(inputs[name])) for name in names if name in inputs}
    return model.get_rope_index(**given)[0][:, 0].numpy()


@pytest.mark.parametrize(
    ("frames", "fps", "height", "width"), [(12, 4, 84, 112), (90, 10, 130, 70), (7, 30, 65, 101), (40, 2, 90, 160)]
)
def test_a_video_record_equals_the_reference_s_path(reading, folder_of_tokenizer, tmp_path, frames, fps, height, width):
    clip(tmp_path / "a.mp4", frames, height, width, fps, pixels="yuv444p")
    one = record()
    arrays = reading.encode(one, REFERENCE[0], np.random.default_rng(0))

    from transformers.video_utils import VideoMetadata

    video, indices, total = sampled(tmp_path / "a.mp4", fps)
    metadata = VideoMetadata(total_num_frames=total, fps=float(fps), frames_indices=indices.tolist())
    hf = processor(folder_of_tokenizer)
    media = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": question(one)}]
    chat = [{"role": "user", "content": media}]
    text = hf.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = hf(text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="np")
    compare(arrays, inputs, "pixel_values_videos", "video_grid_thw", folder_of_tokenizer)
    assert arrays.visual.pair[: len(video) // 2].tolist() == np.arange(len(video)).reshape(-1, 2).tolist()
    seconds = np.float32(2 / (len(video) / total * fps))  # in the reference: 2 / sample_fps
    steps = np.arange(len(video) // 2, dtype=np.float32)
    own = int(inputs["video_grid_thw"][0, 1:].prod()) // 4
    start = np.flatnonzero(arrays.prompt.visual_index >= 0)[0]
    times = arrays.prompt.positions[0, start : start + own * len(steps) : own] - start
    np.testing.assert_array_equal(times, np.floor(steps * seconds * 2))


def compare(arrays, inputs, pixels, grid, folder):
    ids = inputs["input_ids"][0]
    t = len(ids)
    prompt = arrays.prompt
    np.testing.assert_array_equal(prompt.ids[:t], ids)
    assert prompt.mask.tolist() == [True] * t + [False] * (len(prompt.mask) - t)
    visual = np.flatnonzero(prompt.visual_index >= 0)
    steps, rows, columns = (int(n) for n in inputs[grid][0])
    assert len(visual) == steps * rows * columns // 4
    real = arrays.visual.hw[:steps]
    assert (real.reshape(steps, -1, 2).max(1) + 1).tolist() == [[rows, columns]] * steps
    assert ((real[..., 0] >= 0).sum((1, 2)) == rows * columns).all()
    apart = np.abs(pixel_values(arrays, visual) - inputs[pixels])
    assert (apart > ROUNDING).mean() < 1e-3  # Pillow clips between its two passes, torch does not: seen at hard edges
    assert apart.max() < 5 * ROUNDING

    raw = json.loads((folder / "config.json").read_text())
    want = hf_positions(raw, inputs)
    after = visual[-1] + 1
    got = prompt.positions[:, :t]
    np.testing.assert_array_equal(got[1:, :after], want[1:, :after])
    np.testing.assert_array_equal(got[0, : visual[0]], want[0, : visual[0]])
    # the rule of 4.x, which the model was trained with: text goes on after the largest position
    follow = got[:, visual].max() + 1
    np.testing.assert_array_equal(got[:, after:], follow + np.broadcast_to(np.arange(t - after), (3, t - after)))
    assert int(prompt.next_position) == follow + t - after


@pytest.mark.parametrize("size", [(60, 80), (300, 70), (37, 211)])
def test_an_image_record_equals_the_reference_s_path(reading, folder_of_tokenizer, tmp_path, size):
    picture = Image.fromarray(pictures(1, *size)[0])
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG"))
    one = record(path="./a.png", data_type="image", problem_type="multiple choice")
    arrays = reading.encode(one, REFERENCE[1], np.random.default_rng(0))
    hf = processor(folder_of_tokenizer)
    media = [{"type": "image", "image": "a.png"}, {"type": "text", "text": question(one)}]
    text = hf.tokenizer.apply_chat_template(
        [{"role": "user", "content": media}], tokenize=False, add_generation_prompt=True
    )
    inputs = hf(text=[text], images=[picture], return_tensors="np")
    compare(arrays, inputs, "pixel_values", "image_grid_thw", folder_of_tokenizer)
    raw = json.loads((folder_of_tokenizer / "config.json").read_text())
    t = inputs["input_ids"].shape[1]
    np.testing.assert_array_equal(arrays.prompt.positions[:, :t], hf_positions(raw, inputs))
    np.testing.assert_array_equal(arrays.shuffled, arrays.visual.pair)
    assert (int(arrays.distinct), arrays.visual.pair.tolist()) == (1, [[0, 0]])


def test_training_time_may_be_one_second_a_step(tmp_path, config, tokenizer):
    """As in Video-R1's training, where second_per_grid_ts is 1.0 whatever the clip."""
    read = Paint(tmp_path)
    real, one = (encoder(config, tokenizer, read, real_seconds=real) for real in (True, False))
    for each, wanted in ((real, [0, 1, 2, 3]), (one, [0, 2, 4, 6])):  # 0.5 and 1 s at 2 tokens a second
        prompt = each.encode(record(), VIDEO, np.random.default_rng(0)).prompt
        visual = np.flatnonzero(prompt.visual_index >= 0)
        assert (prompt.positions[0, visual[::4]] - visual[0]).tolist() == wanted
        each.read.close()


def test_the_index_measures_what_the_encoder_makes(reading, tmp_path):
    """Sizes known from the probe alone agree with those of the decoded frames: no row is lost later."""
    clip(tmp_path / "a.mp4", 30, 84, 112, 10)
    clip(tmp_path / "tall.mp4", 9, 200, 70, 3, pixels="yuv444p")
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pictures(1, 90, 300)[0]), "PNG"))
    records = [
        record(0),
        record(1, "tall.mp4"),
        record(2, "a.png", "image"),
        record(3, ("a.png", "a.png"), "image", problem="x"),
        record(4, None, "text"),
    ]
    buckets = make_buckets([("video", 8, 30, 1200, 24), ("image", 2, 60, 800, 24), ("text", 0, 0, 800, 24)])
    one = replace(reading, buckets=buckets)
    entries = in_buckets(build_index(records, str(tmp_path), one.fingerprint(), one.measure, 1), buckets, one.model)
    names = {b.name: b for b in buckets}
    for each, entry in zip(records, entries, strict=True):
        arrays, error = one.try_encode(each, names[entry.bucket], np.random.default_rng(0))
        assert error is None
        assert entry.prompt_tokens == arrays.prompt.mask.sum()


LET_THROUGH = PromptStyle(TEMPLATES["plain"], suffixes=False, special_tokens=True)


def measured(config, tokenizer, one, media, targets=False, buckets=BUCKETS, **changes):
    """(bucket, reason) of a record by itself."""
    each = encoder(config, tokenizer, len, buckets=buckets, targets=targets, **changes)
    found = each.measure(one, media)
    entry = IndexEntry(0, media, found.tokens, found.bucket, found.reason, *found[3:])
    (entry,) = in_buckets([entry], buckets, config)
    return entry.bucket, entry.error


def test_oversize_prompts_and_literal_placeholders_are_dropped_at_the_index_and_counted(config, tokenizer, tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    questions = ["which?", "why " * 60, "what does <|video_pad|> do?", "and <|image_pad|>?", "why " * 61]
    records = [record(n, "a.png", "image", problem) for n, problem in enumerate(questions)]
    one = encoder(config, tokenizer, len, targets=False, style=LET_THROUGH)
    entries = in_buckets(build_index(records, str(tmp_path), one.fingerprint(), one.measure, 1), BUCKETS, config)
    assert [entry.bucket for entry in entries] == [IMAGE.name, None, None, None, None]
    assert summarise_index(entries).dropped == {"too many prompt tokens": 2, "visual placeholder": 2}
    assert "2 visual placeholders for 1 media" in entries[2].error


def test_the_measure_s_reasons(config, tokenizer):
    square = (Probe(56, 56, 8, 4.0),)
    assert measured(config, tokenizer, record(), square) == (VIDEO.name, None)
    bucket, reason = measured(config, tokenizer, record(process="<think>" + "a " * 40 + "</think>"), square, True)
    assert (bucket, reason.partition(":")[0]) == (None, "too many completion tokens")
    cheat = record(process="<think><|image_pad|></think>")
    assert measured(config, tokenizer, cheat, square, True, style=LET_THROUGH)[1].startswith(
        "visual placeholder: the answer"
    )
    assert measured(config, tokenizer, cheat, square) == (VIDEO.name, None)  # RL never reads it
    assert measured(config, tokenizer, record(path=None, data_type="text"), ()) == (TEXT.name, None)
    assert measured(config, tokenizer, record(), square, buckets=(IMAGE,)) == (None, "no video bucket")


def test_an_index_depends_on_all_that_changes_it(config, tokenizer):
    first = encoder(config, tokenizer, len)
    changed = [
        {"style": PromptStyle()},
        {"video": VideoSampling(frames=6)},
        {"video_limits": PixelLimits(784, 784)},
        {"targets": False},
    ]
    for change in changed:
        assert encoder(config, tokenizer, len, **change).fingerprint() != first.fingerprint(), change
    for same in ({}, {"buckets": BUCKETS[:2]}):  # which are chosen later
        assert encoder(config, tokenizer, len, **same).fingerprint() == first.fingerprint()


def test_failures_come_as_a_cause_and_nothing_else(config, tokenizer, tmp_path):
    one = encoder(config, tokenizer, Paint(tmp_path))
    order = np.random.default_rng(0)
    assert one.try_encode(record(path="broken.mp4"), VIDEO, order) == (None, "corrupt")
    arrays, error = one.try_encode(record(), IMAGE, order)
    assert arrays is None
    assert error.startswith("does not fit: ")
    one.read.close()
