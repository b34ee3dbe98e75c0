"""Preprocessing gives the patches of the HF processors; windows hold every patch once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as hf_smart_resize

from jvr1.data.vision import frame_pairs, window_patches
from jvr1.errors import UserError
from jvr1.model.qwen2_5_vl.config import VisionConfig
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD, smart_resize
from jvr1.model.qwen2_5_vl.layout import window_layout

CONFIG = VisionConfig(hidden=1280)
LIMITS = {"factor": 28, "min_pixels": 56 * 56, "max_pixels": 256 * 28 * 28}
SIZES = [
    (480, 640),
    (640, 480),
    (1080, 1920),
    (17, 23),
    (1, 1),
    (30, 1900),
    (1500, 31),
    (1800, 2400),
    (84, 84),
    (20, 2000),
]
ROUNDING = 2.01 / 255 / min(IMAGE_STD)  # two levels of a pixel


def picture(height: int, width: int, frames: int = 1) -> np.ndarray:
    """Smooth colours with a little noise, as resizing is judged on photographs and not on white noise."""
    rng = np.random.default_rng(height * 10007 + width)
    y, x, t = np.meshgrid(np.arange(height), np.arange(width), np.arange(frames), indexing="ij")
    waves = [np.sin(x / (7 + c) + t) + np.cos(y / (11 - c)) for c in range(3)]
    values = 128 + 40 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, frames, 3))
    return np.moveaxis(np.clip(values, 0, 255).astype(np.uint8), 2, 0)


def in_hf_order(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Our patches of resized frames in the order and normalisation of the HF processors: [patches, 3, 2, 14, 14]."""
    resized = np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BICUBIC)) for f in frames])
    layout = window_layout(size[0] // 14, size[1] // 14, CONFIG)
    patches = window_patches(resized, layout, CONFIG.patch)
    tokens = patches.reshape(len(frames), -1, 4, 588)[:, layout.unit]
    pairs = tokens[frame_pairs(len(frames))].reshape(-1, 2, len(layout.unit) * 4, 3, 14, 14)
    pixels = np.moveaxis(pairs, 1, 3).reshape(-1, 3, 2, 14, 14) / 255
    shape = (1, 3, 1, 1, 1)
    return (pixels - np.reshape(IMAGE_MEAN, shape)) / np.reshape(IMAGE_STD, shape)


@pytest.mark.parametrize("size", SIZES)
def test_images_equal_the_hf_image_processor(size):
    image = picture(*size)
    limits = {"shortest_edge": LIMITS["min_pixels"], "longest_edge": LIMITS["max_pixels"]}
    theirs = Qwen2VLImageProcessorPil(size=limits)(Image.fromarray(image[0]), return_tensors="np")
    resized = smart_resize(*size, **LIMITS)
    assert theirs["image_grid_thw"].tolist() == [[1, resized[0] // 14, resized[1] // 14]]
    want = theirs["pixel_values"].reshape(-1, 3, 2, 14, 14)
    np.testing.assert_allclose(in_hf_order(image, resized), want, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("size", "frames"), [((480, 640), 4), ((1920, 1080), 2), ((40, 700), 3), ((60, 80), 6)])
def test_videos_equal_the_hf_video_processor(size, frames):
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    video = picture(*size, frames)
    limits = {"factor": 28, "min_pixels": 16 * 28 * 28, "max_pixels": 128 * 28 * 28}
    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}, cap_pixels_per_frame=False
    )
    metadata = VideoMetadata(total_num_frames=frames, fps=2.0, frames_indices=list(range(frames)))
    theirs = processor(videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="np")
    resized = smart_resize(*size, **limits)
    steps = (frames + 1) // 2
    assert theirs["video_grid_thw"].tolist() == [[steps, resized[0] // 14, resized[1] // 14]]
    want = np.asarray(theirs["pixel_values_videos"]).reshape(-1, 3, 2, 14, 14)
    np.testing.assert_allclose(in_hf_order(video, resized), want, rtol=0, atol=ROUNDING)


def test_sizes_equal_hf_over_all_aspects():
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(np.log(15), np.log(5000), (3000, 2))).astype(int).tolist():
        limits = LIMITS | {"max_pixels": int(rng.integers(4, 1280)) * 784}
        if max(height, width) / min(height, width) <= 200:
            assert smart_resize(height, width, **limits) == hf_smart_resize(height, width, **limits), (height, width)


@pytest.mark.parametrize(
    ("size", "image", "frame"),
    [
        ((10, 1000), (28, 1008), (56, 3192)),
        ((1000, 10), (1008, 28), (3192, 56)),
        ((14, 2800), (28, 2800), (28, 4480)),
        ((7, 300), (28, 308), (56, 2100)),
        ((5, 999), (28, 1008), (28, 4480)),
        ((2000, 10), (1988, 28), (4480, 28)),
        ((12, 90), (28, 168), (140, 868)),
        ((1, 150), (28, 140), (28, 3892)),
        ((13, 14), (56, 84), (308, 336)),
        ((15, 14), (84, 56), (336, 308)),
        ((1, 1), (56, 56), (336, 336)),
    ],
)
def test_sides_up_to_14_pixels_equal_qwen_vl_utils(size, image, frame):
    """What `smart_resize` of qwen-vl-utils 0.0.14 gave, under the limits of an image and of a video's frame."""
    assert smart_resize(*size, **LIMITS) == image
    assert smart_resize(*size, factor=28, min_pixels=128 * 784, max_pixels=int(1.05 * 128 * 784)) == frame


def test_a_side_never_vanishes():
    assert smart_resize(4000, 20, **LIMITS | {"max_pixels": 56 * 56}) == (784, 28)


def test_extreme_aspect_ratio_is_refused():
    with pytest.raises(UserError, match="aspect ratio of 5000x10 is above 200"):
        smart_resize(10, 5000, **LIMITS)


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (2, 36), (36, 2), (10, 50), (14, 36), (18, 32)])
def test_windows_hold_every_patch_once_and_pad_in_whole_units(grid):
    layout = window_layout(*grid, CONFIG)
    assert layout.hw.shape == (-(-grid[0] // 8) * -(-grid[1] // 8), 64, 2)
    real = layout.hw[layout.hw[..., 0] >= 0]
    assert sorted(map(tuple, real.tolist())) == list(np.ndindex(*grid))
    padded = (layout.hw[..., 0] < 0).reshape(-1, 4)
    assert (padded.all(1) | ~padded.any(1)).all()
    units = layout.hw.reshape(-1, 4, 2)
    corners = units[layout.unit, 0]  # tokens in row-major order
    assert corners.tolist() == [[r, c] for r in range(0, grid[0], 2) for c in range(0, grid[1], 2)]
    for window in layout.hw:
        rows = window[window[:, 0] >= 0] // 8
        assert (rows == rows[0]).all()


def test_padded_slots_hold_zeros_and_an_odd_last_frame_repeats():
    layout = window_layout(2, 6, CONFIG)
    patches = window_patches(np.full((3, 28, 84, 3), 255, np.uint8), layout, 14)
    assert (patches[:, layout.hw[..., 0] < 0] == 0).all()
    assert (patches[:, layout.hw[..., 0] >= 0] == 255).all()
    assert frame_pairs(5).tolist() == [[0, 1], [2, 3], [4, 4]]
    assert frame_pairs(1).tolist() == [[0, 0]]
