"""The chips a plan is made for: what one can compute, hold and read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jvr1.errors import UserError
from jvr1.train.metrics import peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """kind: as JAX names the device. memory: bytes a program may use. bandwidth: bytes a second read or written. link:
    bytes a second that a chip sends to others of its slice or host. hosts: shape of a topology by number of chips, for
    the TPU compiler; none for a GPU."""

    name: str
    kind: str
    memory: int
    bandwidth: float
    link: float
    topologies: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """Dense bf16 FLOP/s."""
        peak = peak_flops(self.kind)
        assert peak is not None, self.kind
        return peak

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips of each topology."""
        return tuple(math.prod(int(n) for n in shape.split("x")) for shape in self.topologies)

    def topology(self, chips: int) -> str:
        """The slice of that many chips, such as 'v5p:2x2x2'. Raises UserError when there is none."""
        found = next((t for t, size in zip(self.topologies, self.sizes, strict=True) if size == chips), None)
        if found is None:
            sizes = ", ".join(map(str, self.sizes))
            known = f"slices of {self.name} have {sizes}" if sizes else f"{self.name} is no TPU"
            raise UserError(f"{chips} chips make no slice to compile for; {known}")
        return f"{self.name}:{found}"


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5e", int(15.75 * GIB), 0.819e12, 200e9, _FLAT),
        Chip("v5p", "TPU v5", int(95.74 * GIB), 2.765e12, 600e9, _DEEP),
        Chip("v6e", "TPU v6", int(31.25 * GIB), 1.6e12, 400e9, _FLAT),
        Chip("a100-80", "A100", int(80e9), 2.039e12, 300e9),
        Chip("h100-80", "H100", int(80e9), 3.35e12, 450e9),
        Chip("h200", "H200", int(141e9), 4.8e12, 450e9),
    )
}
"""TPU: memory is what the TPU compiler (libtpu 0.0.42) says is available; bandwidths are those of
docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, link half of the bidirectional interconnect. GPU: NVIDIA's data sheets of
the SXM forms, a GB taken as 10^9 bytes: the driver shows some 7% more, which CUDA and fragmentation take; link is
NVLink in one direction. Peak FLOP/s: `metrics`."""


def chip_named(name: str) -> Chip:
    """Raises UserError for a chip that is not in the table."""
    if name not in CHIPS:
        raise UserError(f"no chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]
