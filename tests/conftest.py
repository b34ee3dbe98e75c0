"""Strict settings for every test: 8 simulated devices, full matmul precision, no silent rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # two test runs may compile for TPUs at a time

import jax
import pytest
import torch

# torchvision has no CPU build: its CUDA build imports without its library once these operators have a schema
_SCHEMAS = torch.library.Library("torchvision", "DEF")
_SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion; optax does not pass it, so it is asked for where our pure code runs."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def topology():
    """topology(name) -> chips the TPU compiler compiles for, as in training: the suite's "highest" precision would
    make three products of each."""
    from jax.experimental import topologies

    def devices(name: str) -> list[jax.Device]:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)

    with jax.default_matmul_precision("default"):
        yield devices


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Small demo data, a tiny model, and runs of the mains on them (tests/runs.py)."""
    from runs import make_demo

    return make_demo(tmp_path_factory.mktemp("demo_runs"))
