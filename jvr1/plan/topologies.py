"""Chips that are not there, as a compiler knows them: slices of TPUs by libtpu, GPUs by XLA's CUDA plugin and a
description of the chip. What is compiled for them is what a machine with them would run; nothing runs here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jaxlib import _jax as _xla
from jaxlib import xla_client

from jvr1.chips import CHIPS, Chip
from jvr1.errors import UserError

EXTRA, FOLDER = "compile-gpu", "JVR1_GPU_COMPILER"
"""The compiler for GPUs: an extra of pyproject.toml, and the variable that names a folder with its packages instead.
Where they lie among JAX's, every process on a machine without a driver says so at its start."""
HOST = 8
"""GPUs of a host; more are several hosts."""
LARGEST = 64
_PLUGIN, _NVCC = "jax_plugins/xla_cuda12/xla_cuda_plugin.so", "nvidia/cuda_nvcc"
CUDNN = (9, 8, 0)
"""The version that programs are compiled for: its kernels of attention are called by name, and are not looked for."""


@dataclass(frozen=True)
class Target:
    """A GPU as XLA describes one. capability: of CUDA. cores: multiprocessors. lanes: fp32 units of a core. shared,
    block: bytes of shared memory of a core, and the most that a block may ask for. cache: bytes of the second level.
    memory: bytes, all of it. bandwidth: bytes a second. clock: GHz."""

    capability: tuple[int, int]
    cores: int
    lanes: int
    shared: int
    block: int
    cache: int
    memory: int
    bandwidth: int
    clock: float

    def text(self, name: str) -> str:
        """XLA's GpuTargetConfigProto."""
        major, minor = self.capability
        features = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""  # sm_90a, sm_100a
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  core_count: {self.cores}  fpus_per_core: {self.lanes}  clock_rate_ghz: {self.clock}
  shared_memory_per_block: 49152  shared_memory_per_core: {self.shared}  shared_memory_per_block_optin: {self.block}
  l2_cache_size: {self.cache}  device_memory_size: {self.memory}  memory_bandwidth: {self.bandwidth}
  cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""


_AMPERE, _LATER = (167936, 166912), (233472, 232448)
TARGETS = {
    "a100-40": Target((8, 0), 108, 64, *_AMPERE, 41943040, 42331013120, 1555200000000, 1.41),
    "a100-80": Target((8, 0), 108, 64, *_AMPERE, 41943040, 85100068864, 2039040000000, 1.41),
    "h100-80": Target((9, 0), 132, 128, *_LATER, 52428800, 84942979072, 3352320000000, 1.98),
    "h200": Target((9, 0), 132, 128, *_LATER, 52428800, 151397597184, 4800000000000, 1.98),
    "b200": Target((10, 0), 148, 128, *_LATER, 132644864, 191514411008, 7672320000000, 1.965),
}
"""Chips of `jvr1.chips` that can be compiled for. The figures are what the chips tell a driver of themselves, as XLA
publishes them (github.com/openxla/xla, xla/backends/gpu/target_config/specs: a100_sxm_40, a100_sxm_80, h100_sxm, h200,
b200); limits that are the same for all are of the CUDA C++ Programming Guide, "Compute Capabilities"."""


def topology_name(chip: Chip, devices: int) -> str:
    """So many of a chip: 'v5p:2x2x2', 'h100-80:8'. Raises UserError where no compiler here knows them."""
    if not chip.topologies and chip.name not in TARGETS:
        raise UserError(f"there is no compiler here for {chip.name}; it is counted, leave out --compile")
    return chip.topology(devices) if chip.topologies else f"{chip.name}:{devices}"


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of 'v5p:2x2x2', of which JAX makes a mesh; of 'h100-80:8', as many GPUs. Raises UserError for what no
    compiler here knows."""
    return gpu_devices(name) if name.partition(":")[0] in TARGETS else tpu_devices(name)


def tpu_devices(name: str) -> list[jax.Device]:
    """The chips of a slice as the TPU compiler knows them. Raises UserError for an unknown one."""
    # read by libtpu when it is loaded: there is no TPU to ask, so none to share
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # as JAX runs a v4 chip: its two cores as one device
    how = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices)
    except Exception as error:  # whatever libtpu raises
        raise UserError(f"topology {name} does not answer: {str(error).splitlines()[0][:200]}") from None


def gpu_devices(name: str) -> list[jax.Device]:
    """GPUs, of 'h100-80:8' eight, in hosts of eight. Raises UserError for others, and without the compiler."""
    chip, _, count = name.partition(":")
    if chip not in TARGETS:
        raise UserError(f"topology {name}: GPUs that can be compiled for are {', '.join(TARGETS)}")
    n = int(count) if count.isdigit() else 0
    if not 0 < n <= LARGEST or n % min(n, HOST):
        raise UserError(f"topology {name}: say how many, as {chip}:8; up to {HOST}, or in {HOST}s to {LARGEST}")
    hosts = f"1x{n // HOST}x{HOST}" if n > HOST else f"1x1x{n}"
    how = {"target_config": TARGETS[chip].text(CHIPS[chip].kinds[0]), "topology": hosts}
    _load_plugin()
    try:
        return list(_xla.get_default_c_api_topology("cuda", name, how)._make_compile_only_devices())
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name} does not answer: {str(error).splitlines()[0][:200]}") from None


def compiler_options(device: jax.Device) -> dict[str, Any] | None:
    """What a program for it is compiled with; None: as the compiler would by itself. On a GPU XLA tries for each
    product which kernel of cuBLAS or Triton is fastest; there being none to try on, all products are cuBLAS's."""
    if device.platform != "gpu":
        return None
    return {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_cuda_data_dir": str(_found(_NVCC)),
    }


@contextmanager
def lowering(device: jax.Device) -> Iterator[None]:
    """Within, programs for the device are traced as on a machine that has it: JAX asks the cuDNN there for its version
    before it calls one of its kernels."""
    if device.platform != "gpu":
        yield
        return
    asked = fused_attention_stablehlo.check_cudnn_version
    major, minor, patch = CUDNN
    fused_attention_stablehlo.check_cudnn_version = lambda: 10000 * major + 100 * minor + patch
    try:
        yield
    finally:
        fused_attention_stablehlo.check_cudnn_version = asked


def _load_plugin() -> None:
    """Raises UserError where it is not installed."""
    library, _ = _found(_PLUGIN), _found(_NVCC)
    jax.devices("cpu")  # JAX loads the plugins that it finds by itself, and would not find one loaded already
    if not xla_client.pjrt_plugin_loaded("cuda"):
        xla_client.load_pjrt_plugin_dynamically("cuda", str(library))
    if not xla_client.pjrt_plugin_initialized("cuda"):
        xla_client.initialize_pjrt_plugin("cuda")


def _found(name: str) -> Path:
    """A file or folder of the compiler's packages. Raises UserError where they are not installed."""
    own = os.environ.get(FOLDER)
    places = [Path(place) for place in ([own] if own else sys.path)]
    found = next((place / name for place in places if (place / name).exists()), None)
    if found is None:
        raise UserError(
            f"compiling for GPUs needs XLA's compiler for CUDA: install jvr1 with its extra [{EXTRA}], or "
            f"those packages into a folder of their own that {FOLDER} names (the docs' page pods)"
        )
    return found
