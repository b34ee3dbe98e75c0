"""The chips a run may be on or a plan be made for: what one can compute, hold and read. A chip is a line of CHIPS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jvr1.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What JAX calls a device; two of them where a chip is two.

    kinds: every `device_kind` it is reported under. flops: dense bf16 operations a second, summed up in fp32. memory:
    bytes a program may use. bandwidth: bytes of memory a second, read or written. link: bytes a second that it sends to
    others of its slice or host. topologies: shapes of slices in chips, for the TPU compiler, which knows them as
    `family`; none for a GPU. devices: of each chip of a slice.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: int
    bandwidth: float
    link: float
    topologies: tuple[str, ...] = ()
    family: str = ""
    devices: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices of each topology."""
        return tuple(self.devices * math.prod(int(n) for n in shape.split("x")) for shape in self.topologies)

    def topology(self, devices: int) -> str:
        """The slice of that many, such as 'v5p:2x2x2'. Raises UserError when there is none."""
        found = next((t for t, size in zip(self.topologies, self.sizes, strict=True) if size == devices), None)
        if found is None:
            sizes = ", ".join(map(str, self.sizes))
            known = f"slices of {self.name} have {sizes}" if sizes else f"{self.name} is no TPU"
            raise UserError(f"{devices} chips make no slice to compile for; {known}")
        return f"{self.family or self.name}:{found}"


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, int(30.75 * GIB), 1.2e12, 300e9, _DEEP),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * GIB), 0.819e12, 200e9, _FLAT),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.74 * GIB), 2.765e12, 600e9, _DEEP),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.25 * GIB), 1.6e12, 400e9, _FLAT),
        Chip("v7x", ("TPU7x",), 1153.5e12, int(94.75 * GIB), 3.69e12, 300e9, _DEEP, family="tpu7x", devices=2),
        Chip("rtx3090", ("NVIDIA GeForce RTX 3090",), 71e12, int(24e9), 0.936e12, 32e9),
        Chip("rtx4090", ("NVIDIA GeForce RTX 4090",), 165.2e12, int(24e9), 1.008e12, 32e9),
        Chip("rtx5090", ("NVIDIA GeForce RTX 5090",), 209.5e12, int(32e9), 1.792e12, 64e9),
        Chip("a6000", ("NVIDIA RTX A6000",), 154.8e12, int(48e9), 0.768e12, 32e9),
        Chip("rtx6000-ada", ("NVIDIA RTX 6000 Ada Generation",), 364.2e12, int(48e9), 0.96e12, 32e9),
        Chip("l40s", ("NVIDIA L40S",), 362.05e12, int(48e9), 0.864e12, 32e9),
        Chip("a100-40", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, int(40e9), 1.555e12, 300e9),
        Chip("a100-80", ("NVIDIA A100-SXM4-80GB",), 312e12, int(80e9), 2.039e12, 300e9),
        Chip("a100-80-pcie", ("NVIDIA A100 80GB PCIe",), 312e12, int(80e9), 1.935e12, 300e9),
        Chip("h100-80-pcie", ("NVIDIA H100 PCIe",), 756e12, int(80e9), 2.0e12, 300e9),
        Chip("h100-94-nvl", ("NVIDIA H100 NVL",), 835e12, int(94e9), 3.9e12, 300e9),
        Chip("h100-80", ("NVIDIA H100 80GB HBM3",), 989e12, int(80e9), 3.35e12, 450e9),
        Chip("h200", ("NVIDIA H200",), 989e12, int(141e9), 4.8e12, 450e9),
        Chip("b200", ("NVIDIA B200",), 2250e12, int(180e9), 8.0e12, 900e9),
    )
}
"""TPU: memory is what the TPU compiler (libtpu 0.0.42) says is available; compute, bandwidth and link (half of the
bidirectional interconnect) are those of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, v4's link of Jouppi et
al., arXiv 2304.01433. A v7x chip is two devices to JAX, each with half of it. Names of devices:
`jax/_src/pallas/mosaic/tpu_info.py`.

GPU: NVIDIA's data sheets, FLOP/s without sparsity; the SXM form unless the name says otherwise. A GB is taken as 10^9
bytes: the driver shows some 7% more, which CUDA and fragmentation take. link is one direction of NVLink, or of PCIe x16
where there is none: 5.0 of an RTX 5090, 4.0 of the others; the bridge that two RTX 3090 or A6000 can have is not
counted. B200: an eighth of a DGX B200. Workstation cards: tables of the white papers of their architectures (Ampere
GA102, Ada, Blackwell RTX), BF16 tensor operations with FP32 accumulate, dense. A name that is not here (a laptop's
chip, a part of a GPU by MIG) has no known peak."""


def chip_named(name: str) -> Chip:
    """Raises UserError for a chip that is not in the table."""
    if name not in CHIPS:
        raise UserError(f"no chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX reports as this `device_kind`; None for one that is not in the table."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def table() -> Iterator[str]:
    """The chips as markdown."""
    yield "| chip | `device_kind` | bf16 TFLOP/s | memory GiB | GB/s | link GB/s | slices |"
    yield "|---|---|---|---|---|---|---|"
    for chip in CHIPS.values():
        figures = f"{chip.flops / 1e12:g} | {chip.memory / GIB:.2f} | {chip.bandwidth / 1e9:g} | {chip.link / 1e9:g}"
        slices = f"{chip.topologies[0]} .. {chip.topologies[-1]}" if chip.topologies else ""
        yield f"| {chip.name} | {', '.join(chip.kinds)} | {figures} | {slices} |"
