"""tools/compile_gpu.py: the real T-GRPO step by XLA's compiler for GPUs; the 7B nightly, in test_compile_tpu.py."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from step_shapes import SMALL

from jvr1.chips import CHIPS
from jvr1.errors import UserError, run_main
from jvr1.model.families import to_hf
from jvr1.plan.topologies import TARGETS, gpu_devices, topology_name

pytestmark = pytest.mark.optimised
ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "compile_gpu.py"))
TGRPO = str(ROOT / "configs" / "tgrpo_7b.py")


def test_the_command_compiles_gradients_of_a_small_model(tmp_path, topology, capsys):
    """`topology`: its precision. The others: test_programs.py, and nightly."""
    (tmp_path / "config.json").write_text(json.dumps(to_hf(SMALL, "bfloat16")))
    (tmp_path / "model.safetensors").touch()
    arguments = [
        "--config", TGRPO, "--model", str(tmp_path), "--topology", "h100-80:4", "--json", f"{tmp_path}/x.json",
        "--config.data.buckets=(('video',2,1,40,24),)", "--config.batch.micro=4", "--config.rl.group=3",
        "--phases", "gradients", "--tokens", "12.5",
    ]  # fmt: skip
    TOOL["main"](arguments)
    text = capsys.readouterr().out
    assert "h100-80:4, mesh {'data': 1, 'fsdp': 4, 'tensor': 1}, bucket video-F2-W1-P40-C24, 4 rows" in text
    said = json.loads((tmp_path / "x.json").read_text())
    assert said["tokens"] == 12.5
    (phase,) = said["phases"].values()
    assert phase["peak"] > phase["temporary"] > 0
    assert phase["moved"] > phase["arguments"]
    layers = SMALL.text.layers  # of each a call for the prompt and one for the completions
    kernels = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
    forward = {name: 2 * layers for name in kernels}  # each again in the backward pass
    assert phase["calls"] == forward | {f"{name}Backward": layers for name in kernels}
    assert f"  {kernels[0]}Backward: called {layers} times" in text


@pytest.mark.parametrize("chip", TARGETS)
def test_the_compiler_knows_the_chips_by_these_kinds(topology, chip):
    for count, hosts in ((1, 1), (8, 1), (64, 8)):
        devices = topology(topology_name(CHIPS[chip], count))
        assert len(devices) == count
        assert {device.platform for device in devices} == {"gpu"}
        assert {device.device_kind for device in devices} <= set(CHIPS[chip].kinds)
        assert len({device.process_index for device in devices}) == hosts


@pytest.mark.parametrize("chip", TARGETS)
def test_a_description_is_of_the_chip_in_the_table(chip):
    """Two sources: what a driver reads, and data sheets."""
    target, known = TARGETS[chip], CHIPS[chip]
    assert target.bandwidth == pytest.approx(known.bandwidth, rel=0.05)
    assert 1.05 * known.memory < target.memory < 1.08 * known.memory
    assert target.shared - target.block == 1024  # what a block of the largest size leaves to the system


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100:8", "topology h100:8: GPUs that can be compiled for are a100-40, a100-80, h100-80, h200, b200"),
        ("h200:12", "topology h200:12: say how many, as h200:8; up to 8, or in 8s to 64"),
        ("h200:many", "say how many"),
        ("b200:128", "say how many"),
        ("b200:0", "say how many"),
    ],
)
def test_devices_that_cannot_be(name, message):
    with pytest.raises(UserError, match=message):
        gpu_devices(name)


def test_without_the_compiler_a_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JVR1_GPU_COMPILER", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["compile_gpu.py", "--config", TGRPO])
    with pytest.raises(SystemExit) as end:
        run_main(TOOL["main"])
    assert end.value.code == 2
    assert re.fullmatch(
        r"error: compiling for GPUs needs XLA's compiler for CUDA: install jvr1 with its extra \[compile-gpu\], .*\n",
        capsys.readouterr().err,
    )
