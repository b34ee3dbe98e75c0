"""tools/compile_tpu.py: the real 7B by the real TPU compiler (nightly, minutes), and its mistakes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import jax
import pytest

from jvr1.errors import UserError
from jvr1.model.config import published
from jvr1.sharding import make_mesh

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "compile_tpu.py"))


@pytest.mark.nightly
def test_forward_and_gradient_of_the_7b_fit_a_v5p_chip():
    mesh = make_mesh({"fsdp": 8}, TOOL["topology_devices"]("v5p:2x2x2"))
    with jax.default_matmul_precision("default"):  # as in training; the suite's "highest" makes three products of one
        compiled, _ = TOOL["compile_step"](published("7b"), mesh, TOOL["Bucket"](8, 12, 1280, 8, 768))
    memory = compiled.memory_analysis()
    parameters = 2 * 8_292_166_656 / 8
    assert parameters <= memory.argument_size_in_bytes < 1.05 * parameters
    assert memory.temp_size_in_bytes < 20e9
    print(TOOL["report"](compiled))


def test_a_mesh_that_cannot_be_read():
    assert TOOL["read_mesh"]("data=2,fsdp=4") == {"data": 2, "fsdp": 4}
    with pytest.raises(UserError, match="--mesh 'fsdp:8' cannot be read; write for example"):
        TOOL["read_mesh"]("fsdp:8")


def test_an_unknown_size_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compile_tpu.py", "8b"])
    with pytest.raises(SystemExit) as end:
        TOOL["run_main"](TOOL["main"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no published size '8b'; there are 3b, 7b, 32b, 72b\n"
