"""Compiles the real T-GRPO step of a config with XLA's real compiler for GPUs, on a machine without a GPU.

From shapes alone: nothing is allocated, nothing runs. Needs the CUDA compiler, no driver (`pip install -e
.[compile-gpu]`; docs/pods.md). The phases are those of tools/compile_tpu.py. Products are cuBLAS's: which are faster by
Triton, only a GPU says, and whether a kernel of cuDNN takes the shapes that it is called with. Prints memory per chip,
kernels and what they read, write and compute, and collectives.

python tools/compile_gpu.py --config configs/tgrpo_7b.py --topology h100-80:8 [--config.section.name=value ...]
"""

from __future__ import annotations

from collections.abc import Sequence

from jvr1.errors import run_main
from jvr1.plan.compiling import compile_run
from jvr1.plan.topologies import TARGETS


def main(arguments: Sequence[str] | None = None) -> None:
    compile_run(__doc__, "h100-80:8", f"a chip of {', '.join(TARGETS)}, and how many: h100-80:16", arguments)


if __name__ == "__main__":
    run_main(main)
