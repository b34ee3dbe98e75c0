"""The seam between a family and all else: what is asked of it, and that nothing else knows."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from runs import REPOSITORY

from jvr1.errors import UserError
from jvr1.model import families
from jvr1.model.config import ModelConfig
from jvr1.model.families import FAMILIES, from_hf, known, published, published_sizes
from jvr1.model.inputs import Grid
from jvr1.model.parameters import DECODER_PARAMETERS

PACKAGE = REPOSITORY / "jvr1"
FOLDERS = {name: PACKAGE / "model" / name for name in ("qwen2_5_vl", "qwen3_vl")}
NAME_IT = {"model/families.py", "demo/tiny_model.py", "demo/tiny_qwen3_vl.py"}
"""Import a family's own: the registry, and the demo, whose models are of them."""
PIXELS = {14, 28, 14 * 14, 28 * 28, 3 * 14 * 14, 2 * 3 * 14 * 14}
OTHERWISE = {("data/pictures.py", 14), ("data/memory.py", 28), ("data/damage.py", 196), ("demo/scenes.py", 14)}
"""Bits of a picture's values, frames that a decoder holds, a marker of JPEG, rows of a glyph."""


def outside() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        if not any(file.is_relative_to(folder) for folder in FOLDERS.values()):
            yield str(file.relative_to(PACKAGE)), ast.parse(file.read_text())


def test_each_family_has_a_folder():
    assert set(FOLDERS) == set(FAMILIES)
    assert all(folder.is_dir() for folder in FOLDERS.values())


def test_nothing_outside_names_a_family_s_type_or_its_pixels():
    values = {
        (file, node.value)
        for file, tree in outside()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int)
    }
    assert {(file, value) for file, value in values if value in FAMILIES} == set()
    assert {(file, value) for file, value in values if value in PIXELS and not isinstance(value, bool)} == OTHERWISE


def test_nothing_outside_imports_a_family_s_own_but_the_registry():
    own = tuple(f"jvr1.model.{name}" for name in FOLDERS)
    nodes = [(file, node) for file, tree in outside() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {file for file, node in nodes if (node.module or "").startswith(own)} == NAME_IT


def test_an_unknown_type_is_told_which_there_are(monkeypatch):
    own = dataclasses.replace(FAMILIES["qwen2_5_vl"], model_type="own", title="Own")
    monkeypatch.setattr(families, "FAMILIES", {**FAMILIES, "own": own})
    with pytest.raises(UserError) as raised:
        from_hf({"model_type": ["own"]}, "here")
    read = "'qwen2_5_vl' (Qwen2.5-VL), 'qwen3_vl' (Qwen3-VL, dense), 'own' (Own)"
    assert str(raised.value) == f"here: model_type is ['own']; jvr1 reads {read}"


def test_a_size_means_one_model_and_a_path_one_thing():
    assert len(set(published_sizes())) == len(published_sizes())
    for family in FAMILIES.values():
        assert all(published(size).family is family for size in family.published)
        assert all(known(path) == one for path, one in family.parameters.items())
        assert not set(family.parameters) & set(DECODER_PARAMETERS)


@pytest.mark.parametrize("model", [published("7b"), published("qwen3-vl-8b")], ids=lambda m: m.model_type)
def test_a_layout_has_the_windows_and_tokens_that_were_counted(model: ModelConfig):
    vision = model.vision
    for height, width in ((2, 2), (8, 8), (10, 8), (16, 26), (2, 44), (30, 18)):
        layout = model.family.layout(height, width, vision)
        grid = Grid(3, height, width)
        assert layout.hw.shape == (model.family.windows(height, width, vision), vision.slots, 2)
        assert len(layout.unit) == grid.tokens(vision.merge) / 3
        # a token's patches are neighbours, row by row, at its place in the frame
        at = layout.hw.reshape(-1, vision.merge**2, 2)[layout.unit]
        rows, columns = np.divmod(np.arange(len(layout.unit)), width // vision.merge)
        assert (at[:, 0] == np.stack([rows, columns], -1) * vision.merge).all()
        assert (at - at[:, :1] == np.indices((vision.merge,) * 2).reshape(2, -1).T).all()
