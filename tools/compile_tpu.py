"""Compiles the real T-GRPO step of a config with the real TPU compiler, on a machine without a TPU.

From shapes alone: nothing is allocated, nothing runs. Needs libtpu (`pip install -e .[tpu]`). Weights laid out for
generation, generation, scoring by the reference, gradients, update: the programs that jvr1.train_rl jits, for the
bucket with the most tokens. Prints memory per chip, kernels and what they read, write and compute, and collectives.

python tools/compile_tpu.py --config configs/tgrpo_7b.py --topology v5p:2x2x2 [--config.section.name=value ...]
"""

from __future__ import annotations

from collections.abc import Sequence

from jvr1.errors import run_main
from jvr1.plan.compiling import compile_run


def main(arguments: Sequence[str] | None = None) -> None:
    compile_run(__doc__, "v5p:2x2x2", "such as v5e:4x4, v5p:2x2x2, v6e:4x8, tpu7x:2x2x1", arguments)


if __name__ == "__main__":
    run_main(main)
