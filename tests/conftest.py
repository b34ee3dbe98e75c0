"""Strict settings for every test: 8 simulated devices, full matmul precision, no silent rank promotion.

Programs are compiled once for all tests, their child processes and later runs on this machine, without XLA's
optimisations: nearly all of the suite's time would be compiling. A module whose subject is what the optimised program
gives, or what stands in it, says `pytestmark = pytest.mark.optimised`.
"""

import os
import sys
from pathlib import Path

import compiled

os.environ |= compiled.environment()
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two test runs may compile for TPUs at a time
}

os.environ.setdefault("JVR1_GPU_COMPILER", str(Path(sys.prefix) / "gpu-compiler"))

import jax
import pytest
import torch
from filelock import FileLock

# torchvision has no CPU build: its CUDA build imports without its library once these operators have a schema
_SCHEMAS = torch.library.Library("torchvision", "DEF")
_SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

FIRST = (
    "test_resume", "test_parity", "test_runs", "test_gradients", "test_programs", "test_ask", "test_evaluate",
    "test_generate", "test_lora_runs", "test_bfloat16_runs", "test_queue", "test_annotate", "test_microbatches",
)  # fmt: skip
"""The longest files, begun first: two workers then end together."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        compiled.prune()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; what starts runs of the mains, or compiles for TPUs or GPUs, is slow."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    for item in items:
        if {"demo", "topology"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _optimised(request):
    if request.node.get_closest_marker("optimised") is None:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion; optax does not pass it, so it is asked for where our pure code runs."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def topology():
    """topology(name) -> chips the compilers for TPUs and GPUs compile for, as in training: the suite's "highest"
    precision would make three products of each."""
    from jvr1.plan.topologies import topology_devices

    with jax.default_matmul_precision("default"):
        yield topology_devices


@pytest.fixture(scope="session")
def demo(tmp_path_factory, worker_id):
    """Small demo data, a tiny model, and runs of the mains on them (tests/runs.py), shared by pytest's workers."""
    from runs import Demo, make_demo

    if worker_id == "master":
        return make_demo(tmp_path_factory.mktemp("demo_runs"))
    root: Path = tmp_path_factory.getbasetemp().parent / "demo_runs"
    with FileLock(f"{root}.lock"):
        return Demo(root) if root.exists() else make_demo(root)
