"""Floating-point operations of a compiled program's matrix products, whoever computes them: XLA's dots and
convolutions, on GPUs also in Triton's fusions, and calls of cuBLAS, whose operands tell. Pure."""

from __future__ import annotations

import json
import math
import re

import numpy as np

from jvr1.plan.hlo import CompiledProgram, Computation, Instruction, sizes

_CUBLAS = ("__cublas$gemm", "__cublas$lt$matmul")


def product_flops(program: CompiledProgram, unknown: int) -> float:
    """Multiplications and additions of all products on one device, each as often as it runs, `unknown` being the trips
    of a loop that ends when it pleases. Of branches the largest counts; kernels of attention do not."""
    return _flops(program, program.computations[program.entry], unknown)


def _flops(program: CompiledProgram, here: Computation, unknown: int) -> float:
    total = 0.0
    for one in here.instructions.values():
        total += instruction_flops(here, one)
        total += sum(_flops(program, called, unknown) for called in program.called(one))
        total += max((_flops(program, branch, unknown) for branch in program.branches(one)), default=0.0)
    for loop in here.loops:
        total += loop.times(unknown) * _flops(program, program.computations[loop.body], unknown)
    return total


def instruction_flops(here: Computation, one: Instruction) -> float:
    """Of the product that an instruction is; 0 for any other, and for what it calls."""
    if one.opcode == "dot":
        axes = sizes(one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
        return _product(here, one, axes)
    if one.opcode == "convolution":
        left, right = (here.instructions[name].shape for name in one.operands)
        return _convolution(one.shape, left, right, one.rest)
    if is_cublas(one):
        return _product(here, one, _cublas_axes(one))
    return 0.0


def call_target(one: Instruction) -> str:
    """What a custom call calls; '' for any other instruction."""
    return one.attribute(r'custom_call_target="([^"]*)"') if one.opcode == "custom-call" else ""


def is_cublas(one: Instruction) -> bool:
    """Whether it is a product of a GPU's library."""
    return call_target(one).startswith(_CUBLAS)


def _product(here: Computation, one: Instruction, axes: tuple[int, ...]) -> float:
    """axes: those of its left operand that the product sums over."""
    left = here.instructions[one.operands[0]].shape
    return 2.0 * math.prod(one.shape) * math.prod(left[i] for i in axes)


def _cublas_axes(one: Instruction) -> tuple[int, ...]:
    found = re.search(r"backend_config=(\{.*\})", one.rest)
    assert found is not None, one.rest
    config = json.JSONDecoder().raw_decode(found[1])[0]
    numbers = config["gemm_backend_config"]["dot_dimension_numbers"]
    return tuple(int(axis) for axis in numbers["lhs_contracting_dimensions"])


def _convolution(out: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...], rest: str) -> float:
    """Operations of a convolution; on TPUs every product is one. Windows over padding and between dilated values are
    not counted, as in XLA's own analysis."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels is not None, rest
    of_left, of_right, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", rest)
    axes = [axis for axis in of_out if axis.isdigit()]
    given = dict(part.split("=") for part in window[1].split()) if window else {}

    def values(name: str, default: str) -> list[str]:
        return given.get(name, "x".join([default] * len(axes))).split("x") if axes else []

    def integers(name: str) -> list[int]:
        return [int(n) for n in values(name, "1")]

    pads = [tuple(int(n) for n in pad.split("_")) for pad in values("pad", "0_0")]
    total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for axis, size, stride, pad, apart, spread in zip(
        axes, integers("size"), integers("stride"), pads, integers("lhs_dilate"), integers("rhs_dilate"), strict=True
    ):
        at = np.arange(out[of_out.index(axis)])[:, None] * stride + np.arange(size)[None] * spread - pad[0]
        inside = (at >= 0) & (at <= (left[of_left.index(axis)] - 1) * apart) & (at % apart == 0)
        total *= int(inside.sum())
    groups = re.search(r"batch_group_count=(\d+)", rest)
    return total / (int(groups[1]) if groups else 1)
