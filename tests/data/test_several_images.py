"""Records of several images of different shapes: sized one by one, and to the model what transformers makes of them."""

import itertools
import json

import jax
import numpy as np
import oracle
import pytest
import torch
from cases import encoder, record
from media_files import pictures
from PIL import Image
from test_encode import ROUNDING, hf_positions, pixel_values, processor, question

from jvr1.data.batch import choose_bucket, make_buckets
from jvr1.data.cache import MediaCache, MediaReader
from jvr1.data.fitting import fit_buckets, in_buckets, need_of
from jvr1.data.index import build_index
from jvr1.data.media import load_media
from jvr1.data.prompts import PromptStyle
from jvr1.model import hf, vision_language
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.sharding import make_mesh, param_shardings

SIZES = (
    (480, 640), (640, 480), (720, 1280), (1280, 720), (768, 1024), (336, 336), (84, 1120), (1120, 84), (600, 850),
    (200, 200), (375, 500), (1100, 850), (400, 1200), (28, 28), (1000, 1000),
)  # fmt: skip
"""(height, width)"""
LIMITS = PixelLimits(4 * 784, 40 * 784)
BUCKETS = make_buckets([("image", 2, 60, 800, 24)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for height, width in SIZES:
        Image.fromarray(pictures(1, 28, 28)[0]).resize((width, height)).save(folder / f"{height}x{width}.png")
    return folder


@pytest.fixture(scope="module")
def reading(folder, config, tokenizer):
    """An encoder with Video-R1's prompt over the files."""
    reader = MediaReader(MediaCache(str(folder)))
    how = {"style": PromptStyle(), "video": VideoSampling(), "image_limits": LIMITS, "targets": False}
    one = encoder(config, tokenizer, reader, buckets=BUCKETS, timeout=60.0, root=folder, **how)
    yield one
    one.read.close()


def name(size):
    return "{}x{}.png".format(*size)


@pytest.mark.slow
def test_every_pair_of_usual_sizes_can_be_asked(reading, folder):
    """As the training's index measures it, and as evaluation and `ask` do, whose buckets are made for the question."""
    pairs = list(itertools.combinations_with_replacement(SIZES, 2))
    records = [record(n, (name(a), name(b)), "image") for n, (a, b) in enumerate(pairs)]
    entries = build_index(records, str(folder), reading.fingerprint(), reading.measure, 1)
    assert [[(m.height, m.width) for m in entry.media] for entry in entries] == [list(pair) for pair in pairs]
    needs = [need_of(entry) for entry in entries]
    assert {entry.bucket for entry in in_buckets(entries, BUCKETS, reading.model)} == {BUCKETS[0].name}
    fitted = fit_buckets(needs, 8, reading.model.vision.units)
    frames = {size: load_media(folder / name(size), "image", VideoSampling(), LIMITS, RULES).frames for size in SIZES}
    for one, pair, entry, need in zip(records, pairs, entries, needs, strict=True):
        sides = [frames[size].shape[1:3] for size in pair]
        assert need.windows == max(-(-h // 56) * -(-w // 56) for h, w in sides)  # windows are 56 x 56 here
        assert need.steps == 2
        bucket, _ = choose_bucket(need, fitted, reading.model)
        arrays, error = reading.try_encode(one, bucket, np.random.default_rng(0))
        assert error is None
        assert arrays.prompt.mask.sum() == entry.prompt_tokens
        assert (arrays.prompt.visual_index >= 0).sum() == sum(h * w // 784 for h, w in sides)


CHOSEN = [((720, 1280), (480, 640)), ((336, 336), (84, 1120)), ((1120, 84), (28, 28))]


def inputs_of(folder, hf_processor, sizes, one):
    media = [{"type": "image"} for _ in sizes]
    chat = [{"role": "user", "content": [*media, {"type": "text", "text": question(one)}]}]
    text = hf_processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    images = [Image.open(folder / name(size)) for size in sizes]
    return hf_processor(text=[text], images=images, return_tensors="np")


@pytest.fixture(scope="module")
def models(folder_of_tokenizer, tmp_path_factory):
    """transformers' model with random weights, and ours with the same."""
    raw = json.loads((folder_of_tokenizer / "config.json").read_text())
    theirs = oracle.torch_model(raw)
    saved = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(saved)
    graphdef, shapes = vision_language.abstract(hf.read_config(saved))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    params = hf.load(saved, hf.read_config(saved), shapes, param_shardings(shapes, mesh))

    @jax.jit
    def logits(prompt, visual):
        model = vision_language.merge(graphdef, params)
        return model.logits(model(prompt, visual))

    return raw, theirs, logits


@pytest.mark.parametrize("sizes", CHOSEN, ids=str)
def test_two_images_of_different_shapes_are_what_transformers_sees(reading, folder, folder_of_tokenizer, models, sizes):
    one = record(0, tuple(name(size) for size in sizes), "image")
    arrays = reading.encode(one, BUCKETS[0], np.random.default_rng(0))
    inputs = inputs_of(folder, processor(folder_of_tokenizer), sizes, one)
    t = inputs["input_ids"].shape[1]
    np.testing.assert_array_equal(arrays.prompt.ids[:t], inputs["input_ids"][0])
    assert arrays.prompt.mask.sum() == t
    visual = np.flatnonzero(arrays.prompt.visual_index >= 0)
    grids = inputs["image_grid_thw"]
    assert grids[0].tolist() != grids[1].tolist()
    assert [(hw.reshape(-1, 2).max(0) + 1).tolist() for hw in arrays.visual.hw] == grids[:, 1:].tolist()
    ours = pixel_values(arrays, visual)
    assert np.abs(ours - inputs["pixel_values"]).max() < 5 * ROUNDING

    raw, theirs, logits = models
    positions = hf_positions(raw, inputs)
    np.testing.assert_array_equal(arrays.prompt.positions[:, :t], positions)
    with torch.no_grad():  # of the same pixels, so that rounding of the resize is no part of the comparison
        want = theirs(
            input_ids=torch.tensor(inputs["input_ids"]).long(),
            position_ids=torch.tensor(positions).long()[:, None],
            pixel_values=torch.tensor(ours.astype(np.float32)),
            image_grid_thw=torch.tensor(grids),
        ).logits[0]
    got = logits(*jax.tree.map(lambda x: np.asarray(x)[None], (arrays.prompt, arrays.visual)))[0]
    np.testing.assert_allclose(np.asarray(got)[:t], want.numpy(), rtol=1e-4, atol=1e-4)
