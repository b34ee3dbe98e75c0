"""Records about a part of a video: to the model it is what the part alone, cut into a file of its own, would be."""

import json
from dataclasses import replace
from fractions import Fraction

import av
import jax
import numpy as np
import pytest
from cases import encoder, record
from media_files import pictures
from transformers import AutoTokenizer

from jvr1.data.batch import make_buckets
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.fitting import in_buckets
from jvr1.data.frame_cache import FrameCache
from jvr1.data.index import VisualTokens, build_index, with_seconds
from jvr1.data.media import load_media
from jvr1.data.prompts import PromptStyle
from jvr1.data.records import parse_record
from jvr1.demo.tiny_model import TINY_FORMS, tokenizer_files, train_tokenizer
from jvr1.errors import UserError
from jvr1.model.families import RULES, from_hf
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.questions.asking import identity

FPS, FRAMES = 10, 60
FIRST, LAST = 20, 41
"""Frames of the part, which begins at 1.95 s and ends at 4.15 s."""
PART = {"path": "whole.mkv", "start": 1.95, "end": 4.15}
LIMITS = PixelLimits(4 * 1024, 16 * 1024)
BUCKETS = make_buckets([("video", 8, 4, 600, 24)])
SAMPLING = VideoSampling(fps=4, min_frames=4, max_frames=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A lossless clip, and its part written by itself."""
    folder = tmp_path_factory.mktemp("spans")
    whole = pictures(FRAMES, 70, 90)
    for name, frames in (("whole", whole), ("part", whole[FIRST : LAST + 1])):
        with av.open(str(folder / f"{name}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=FPS)
            stream.height, stream.width, stream.pix_fmt = 70, 90, "yuv444p"
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def reading(request, folder, tmp_path_factory, config, tokenizer):
    if request.param == "qwen3_vl":
        place, form = tmp_path_factory.mktemp("tokenizer"), TINY_FORMS["qwen3_vl"]
        trained = train_tokenizer(["which colour came third?", *form.sentences[:4]])
        for name, content in tokenizer_files(trained, form.template).items():
            (place / name).write_bytes(content)
        config, tokenizer = from_hf(form.raw(trained)), AutoTokenizer.from_pretrained(place)
    one = encoder(
        config, tokenizer, MediaReader(MediaCache(str(folder))), buckets=BUCKETS, timeout=60.0, root=folder,
        style=PromptStyle("{Question}", suffixes=False), video=SAMPLING, video_limits=LIMITS, targets=False,
    )  # fmt: skip
    yield one
    one.read.close()


def test_a_part_is_what_its_own_file_would_be(reading, folder):
    """Frames, sizes, ids with the times in them, positions; measured before anything is read, too."""
    records = [record(0, **PART), record(1, "part.mkv")]
    entries = build_index(records, str(folder), {}, reading.measure, 1)
    assert entries[0].media[0].frames == FRAMES
    sizes = [(e.prompt_tokens, e.steps, e.windows) for e in entries]
    assert sizes[0] == sizes[1]
    (part, error), (alone, _) = (reading.try_encode(one, BUCKETS[0], np.random.default_rng(0)) for one in records)
    assert error is None
    assert part.prompt.mask.sum() == entries[0].prompt_tokens
    jax.tree.map(np.testing.assert_array_equal, part, alone)
    assert in_buckets(entries, BUCKETS, reading.model)[0].bucket == BUCKETS[0].name


def test_its_frames_are_those_of_the_whole_clip(reading, folder):
    got = reading.frames(record(**PART), "whole.mkv")
    every = load_media(folder / "whole.mkv", "video", VideoSampling(frames=FRAMES), LIMITS, reading.model.frames)
    sampled = np.linspace(FIRST, LAST, 8).round().astype(int)
    np.testing.assert_allclose(got.timestamps, sampled / FPS, atol=1e-6)
    if got.frames.shape[1:] == every.frames.shape[1:]:  # Qwen3-VL's size depends on how many there are
        np.testing.assert_array_equal(got.frames, every.frames[sampled])
    assert len(got.frames) == 8


def test_a_beginning_or_an_end_alone(reading):
    late, early = record(**PART | {"end": None}), record(**PART | {"start": None})
    assert reading.frames(late, "whole.mkv").timestamps[[0, -1]] == pytest.approx([2.0, 5.9])
    assert reading.frames(early, "whole.mkv").timestamps[[0, -1]] == pytest.approx([0.0, 4.1])


def test_parts_of_a_clip_are_kept_apart(reading, tmp_path):
    keeping = replace(reading, kept=FrameCache(str(tmp_path), 1 << 30).open())
    parts = [record(**PART), record(**PART | {"end": 3.0}), record(path="whole.mkv")]
    for _ in range(2):  # read, then taken from the folder
        found = [keeping.frames(part, "whole.mkv") for part in parts]
        assert [media.timestamps[-1] for media in found] == pytest.approx([4.1, 3.0, 5.9])
    assert len(list(tmp_path.glob("*/*"))) == 3
    assert len({identity(part) for part in parts}) == 3


def test_a_clip_s_length_is_its_own_part_s(folder):
    parts = [{}, {"start": 1.95}, {"start": 1.95, "end": 4.15}, {"end": 99.0}, {"start": 99.0}]
    records = [record(n, "whole.mkv", **part) for n, part in enumerate(parts)]
    entries = build_index(records, str(folder), {}, VisualTokens(SAMPLING, LIMITS, LIMITS, RULES), 1)
    assert [one.seconds for one in with_seconds(records, entries)] == pytest.approx([6.0, 4.05, 2.2, 6.0, 0.0])
    assert [entry.cause for entry in entries] == [None, None, None, None, "empty-interval"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": -1}, "field 'start' must be a second of the video, such as 12.5, or null; got -1"),
        ({"end": "0:12"}, "field 'end' must be a second of the video"),
        ({"start": True}, "field 'start' must be a second"),
        ({"start": float("nan")}, "field 'start' must be a second"),
        ({"start": 3, "end": 3}, "field 'end' must be above 'start', got 3 after 3"),
        ({"end": 0}, "field 'end' must be above 'start', got 0 after 0"),
        ({"data_type": "image", "path": "a.png", "end": 3}, "field 'end' is for videos; data_type is 'image'"),
    ],
)
def test_what_is_no_part(changes, words):
    raw = {
        "problem_id": 1, "problem": "?", "data_type": "video", "problem_type": "OCR", "solution": "x", "path": "a.mp4"
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        parse_record(raw | changes)
    assert str(error.value).startswith(words)
    whole = parse_record(json.loads(json.dumps(raw | {"start": None, "end": 2})))
    assert (whole.start, whole.end, whole.further) == (None, 2.0, {"start": None, "end": 2})
