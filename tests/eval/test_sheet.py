"""The frames that a model saw, as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jvr1.data.media import Media
from jvr1.errors import UserError
from jvr1.eval.sheet import FRAME_CAPTION, FRAME_GAP, FRAMES_A_ROW, contact_sheet, write_frames


def clip(count: int, height: int = 28, width: int = 56) -> Media:
    """Frames of noise, half a second apart."""
    frames = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)
    return Media(frames, 1.0, np.arange(count) / 2, np.arange(count) / 2)


def image(height: int, width: int) -> Media:
    return Media(clip(1, height, width).frames, 0.0, np.zeros(1), np.zeros(1))


def test_a_folder_holds_each_frame_to_the_pixel(tmp_path):
    video = clip(11)
    write_frames(str(tmp_path / "new" / "frames"), [video])
    files = sorted((tmp_path / "new" / "frames").iterdir())
    assert [f.name for f in files] == [f"frame-{i:03d}-{i / 2:.2f}-s.png" for i in range(11)]
    for file, frame in zip(files, video.frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), frame)


def test_a_sheet_holds_all_frames_in_rows_small_ones_larger(tmp_path):
    video = clip(FRAMES_A_ROW + 3)
    write_frames(str(tmp_path / "sheet.PNG"), [video])
    sheet = np.asarray(Image.open(tmp_path / "sheet.PNG"))
    for i, frame in enumerate(video.frames):
        left, top = (
            FRAME_GAP + i % FRAMES_A_ROW * (112 + FRAME_GAP),
            FRAME_GAP + i // FRAMES_A_ROW * (56 + FRAME_GAP + FRAME_CAPTION),
        )
        place = sheet[top + FRAME_CAPTION : top + FRAME_CAPTION + 56, left : left + 112]
        np.testing.assert_array_equal(place[::2, ::2], frame)
        assert sheet[top : top + FRAME_CAPTION, left : left + 112].min() < 100  # something is written above it
    assert sheet.shape == (
        2 * (56 + FRAME_GAP + FRAME_CAPTION) + FRAME_GAP,
        FRAMES_A_ROW * (112 + FRAME_GAP) + FRAME_GAP,
        3,
    )


def test_images_of_different_sizes_share_a_sheet():
    media = [image(28, 140), image(84, 112)]
    sheet = np.asarray(contact_sheet(media))
    assert sheet.shape == (84 + FRAME_CAPTION + 2 * FRAME_GAP, 2 * (140 + FRAME_GAP) + FRAME_GAP, 3)
    np.testing.assert_array_equal(sheet[FRAME_GAP + FRAME_CAPTION :][:28, FRAME_GAP:][:, :140], media[0].frames[0])
    np.testing.assert_array_equal(
        sheet[FRAME_GAP + FRAME_CAPTION :][:84, 2 * FRAME_GAP + 140 :][:, :112], media[1].frames[0]
    )


@pytest.mark.parametrize("name", ["file/sheet.png", "file", "folder.png"])
def test_where_nothing_can_be_written(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"--frames-out .* cannot be written"):
        write_frames(str(tmp_path / name), [clip(2)])
