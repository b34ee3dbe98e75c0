"""The table of chips: found by the names JAX reports, its figures, and the page that shows them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from jax._src.pallas.mosaic.tpu_info import chip_version_from_device_kind

from jvr1.chips import CHIPS, GIB, chip_named, chip_of, table
from jvr1.errors import UserError

DOCS = Path(__file__).parents[1] / "docs" / "pods.md"


@pytest.mark.parametrize(
    ("kind", "name", "peak"),
    [
        ("TPU v4", "v4", 275e12), ("TPU v5 lite", "v5e", 197e12), ("TPU v5", "v5p", 459e12),
        ("TPU v5p", "v5p", 459e12), ("TPU v6 lite", "v6e", 918e12), ("TPU7x", "v7x", 2307e12 / 2),
        ("NVIDIA A100-SXM4-80GB", "a100-80", 312e12), ("NVIDIA A100-SXM4-40GB", "a100-40", 312e12),
        ("NVIDIA H100 80GB HBM3", "h100-80", 989e12), ("NVIDIA H100 PCIe", "h100-80-pcie", 756e12),
        ("NVIDIA H200", "h200", 989e12), ("NVIDIA B200", "b200", 36e15 / 8 / 2),
        ("NVIDIA L40S", "l40s", 362.05e12), ("NVIDIA GeForce RTX 4090", "rtx4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090", "rtx3090", 71e12), ("NVIDIA RTX A6000", "a6000", 154.8e12),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada", 364.2e12),
        ("NVIDIA GeForce RTX 5090", "rtx5090", 838e12 / 4),  # sparse with FP16 accumulate
    ],
)  # fmt: skip
def test_a_device_is_found_by_its_kind(kind, name, peak):
    chip = chip_of(kind)
    assert chip is CHIPS[name]
    assert chip.flops == pytest.approx(peak, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "TPU v3",
        "TPU7",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40",
        "NVIDIA RTX 6000",
        "NVIDIA GeForce RTX 3090 Ti",
    ],
)
def test_a_device_that_only_sounds_alike_has_no_peak(kind):
    assert chip_of(kind) is None


def test_no_kind_is_of_two_chips_and_jax_knows_those_of_tpus():
    kinds = Counter(kind for chip in CHIPS.values() for kind in chip.kinds)
    assert set(kinds.values()) == {1}
    for chip in CHIPS.values():
        if chip.topologies:
            versions = {str(chip_version_from_device_kind(kind)).removeprefix("v") for kind in chip.kinds}
            assert versions == {chip.name.removeprefix("v")}


def test_figures_are_in_their_units():
    for chip in CHIPS.values():
        assert 50e12 < chip.flops < 3000e12
        assert 10 * GIB < chip.memory < 200 * GIB
        assert 10e9 < chip.link < chip.bandwidth < 10e12


def test_a_slice_is_named_as_the_compiler_names_it():
    assert chip_named("v5p").topology(128) == "v5p:4x4x8"
    assert chip_named("v7x").topology(8) == "tpu7x:2x2x1"  # 4 chips
    with pytest.raises(UserError, match="12 chips make no slice to compile for; slices of v5e have 4, 8"):
        chip_named("v5e").topology(12)


def test_the_page_shows_the_table():
    """Written by `jvr1 plan --chips`."""
    assert "\n".join(table()) in DOCS.read_text()
