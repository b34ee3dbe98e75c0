"""tools/compile_tpu.py: the real T-GRPO step by the real TPU compiler; small in every run. Nightly the 7B, by the
compiler for GPUs as well."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from step_shapes import SMALL, moved, small_config

from jvr1 import config as settings
from jvr1.chips import CHIPS, chip_named
from jvr1.errors import run_main
from jvr1.model.families import published, to_hf
from jvr1.plan.compiling import compile_all, report
from jvr1.plan.hlo import read_program, totals
from jvr1.plan.memory import phase_memory
from jvr1.plan.planning import changed, largest_bucket
from jvr1.plan.programs import PHASES, chip_bytes, loop_trips, step_shapes
from jvr1.plan.topologies import topology_name, tpu_devices
from jvr1.sharding import make_mesh

pytestmark = pytest.mark.optimised
ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "compile_tpu.py"))
TGRPO, DEEP = (str(ROOT / "configs" / f"tgrpo_{name}.py") for name in ("7b", "qwen3vl_8b"))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("size", "chip", "changes"),
    [
        ("7b", "v5p", {"mesh.fsdp": 8}),
        ("7b", "v6e", {"mesh.fsdp": 16, "mesh.decode_tensor": 4, "batch.micro": 16}),
        ("7b", "h100-80", {"mesh.fsdp": 8}),
        ("7b", "a100-80", {"mesh.fsdp": 16, "mesh.decode_tensor": 4, "batch.micro": 16}),
        ("qwen3-vl-8b", "v5p", {"mesh.fsdp": 8}),
        ("qwen3-vl-8b", "v6e", {"mesh.fsdp": 16, "mesh.decode_tensor": 4, "batch.micro": 16}),
        ("qwen3-vl-8b", "h100-80", {"mesh.fsdp": 8}),
    ],
)
def test_the_whole_step_fits_and_takes_what_was_counted(topology, size, chip, changes):
    config = changed(settings.from_file(TGRPO if size == "7b" else DEEP), changes)
    bucket = largest_bucket(settings.buckets(config))
    shape = settings.mesh_shape(config)
    chips = shape["data"] * shape["fsdp"] * shape["tensor"]
    mesh = make_mesh(shape, topology(topology_name(chip_named(chip), chips)))
    step = step_shapes(config, published(size), mesh)
    counted = phase_memory(step, bucket)
    for one in compile_all(step, bucket):
        print(report(one, step, bucket))
        assert one.peak <= chip_named(chip).memory
        assert sum(counted[one.phase].values()) == pytest.approx(one.peak, rel=0.15), one.phase
        if one.phase == "generation" and not config.mesh.decode_tensor:
            assert sum(size for _, _, size in totals(one.collectives, loop_trips(step, bucket)).values()) < 1e6
    assert chip_bytes(step.state) < chip_named(chip).memory


def small_model(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(to_hf(SMALL, "bfloat16")))
    (folder / "model.safetensors").touch()
    return folder


def test_the_command_compiles_every_phase_of_a_small_model(tmp_path, topology, capsys):
    """`topology`: its precision."""
    arguments = [
        "--config", TGRPO, "--model", str(small_model(tmp_path)), "--topology", "v6e:2x2",
        "--json", f"{tmp_path}/x.json",
        "--config.data.buckets=(('video',2,1,40,24),)", "--config.batch.micro=4", "--config.rl.group=3",
        "--config.rl.shuffled=2", "--config.mesh.decode_tensor=2", "--text", f"{tmp_path}/text",
    ]  # fmt: skip
    TOOL["main"](arguments)
    text = capsys.readouterr().out
    for phase in PHASES:
        assert f"{phase}: compiled in " in text
    assert "mesh {'data': 1, 'fsdp': 4, 'tensor': 1}, bucket video-F2-W1-P40-C24, 4 rows" in text
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    phases, params = figures["phases"], step_shapes(small_config(), SMALL, make_mesh({"fsdp": 4, "data": 2})).params
    assert list(phases) == list(PHASES)
    for phase in ("generation", "reference", "gradients"):
        assert phases[phase]["peak"] > phases[phase]["temporary"] >= 0  # so small, all of it may lie on the chip
    for phase in ("reference", "gradients"):  # weights are gathered a layer at a time, never a stack of them
        found = read_program((tmp_path / "text" / f"{phase}.txt").read_text()).collectives()
        names = moved([one for one in found if one.kind == "all-gather"], params)
        assert any(name.startswith("a layer of text/") for name in names), (phase, names)
        assert not [name for name in names if name.startswith("text/layers")], (phase, names)


@pytest.mark.parametrize("chip", [chip for chip in CHIPS.values() if chip.topologies], ids=lambda chip: chip.name)
def test_the_compiler_knows_the_slices_by_these_names_and_kinds(chip):
    for size in chip.sizes[:2]:
        devices = tpu_devices(chip.topology(size))
        assert len(devices) == size
        assert {device.device_kind for device in devices} <= set(chip.kinds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "8b"], "model '8b' is no folder and names no size; give --model 3b, 7b, 32b, 72b, qwen3-vl-2b, "),
        (["--topology", "v5p:1x2x3"], "topology v5p:1x2x3 does not answer: "),
        (["--remat", "full"], "Unknown command line flag 'remat'"),
        (["--phases", "rollout"], "--phases: there is no phase 'rollout'; there are weights, generation"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["compile_tpu.py", "--config", TGRPO, *arguments])
    with pytest.raises(SystemExit) as end:
        run_main(TOOL["main"])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1
    assert message in error[-1]
