"""The settings of an optimizer, whichever it is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields

from jvr1.errors import UserError
from jvr1.optimizers import OPTIMIZERS
from jvr1.setting import check_section, no_pattern, setting


@dataclass(frozen=True)
class OptimizerConfig:
    """One of `jvr1.optimizers`, with decoupled decay times the learning rate as torch's AdamW has it.

    Settings that not all read (b1, b2, eps, momentum, moment_dtype) must be as they are by default where one does not.
    schedule: after a linear rise over `warmup_steps`, constant, or falling to 0 at `steps` linearly or as a cosine
    (HF `get_scheduler`). moment_dtype: of first moments and momentum; second moments stay in fp32, because with
    b2 = 0.999 their changes are below bf16's resolution. Errors: UserError for a value that is not possible.
    """

    name: str = setting("adamw", "The optimizer (docs/optimizers.md)", one_of=OPTIMIZERS, resume="fixed")
    learning_rate: float = setting(1e-6, "After warm-up", above=0)
    schedule: str = setting(
        "constant", "The latter two fall to 0 at steps, after warm-up", one_of=("constant", "linear", "cosine")
    )
    warmup_steps: int = setting(0, "Updates of a linear rise from 0", least=0)
    steps: int = setting(1000, "Updates until the schedule reaches 0; at least those of the run")
    weight_decay: float = setting(0.0, "Decoupled, times the learning rate; not on norms and biases", least=0)
    b1: float = setting(0.9, "Decay of the first moment (adamw, muon)", least=0, below=1)
    b2: float = setting(0.999, "Decay of the second moment (adamw, muon)", least=0, below=1)
    eps: float = setting(1e-8, "Added to the root of the second moment (adamw, muon)", above=0)
    momentum: float = setting(0.95, "Of the matrices (muon)", least=0, below=1)
    clip_norm: float | None = setting(1.0, "Bound on the global gradient norm; none: no clipping", above=0)
    freeze: tuple[str, ...] = setting(
        (), "Patterns that match whole parameter paths to leave as they are: ('visual/.*',)", wrong=no_pattern
    )
    moment_dtype: str = setting(
        "float32", "Of the first moment and the momentum (adamw, muon)", one_of=("float32", "bfloat16")
    )
    max_bad_steps: int = setting(
        5, "Steps in a row with a non-finite gradient that end the run; each is skipped", least=1
    )

    def __post_init__(self) -> None:
        check_section(self, "optimizer.")
        if self.schedule != "constant" and self.warmup_steps >= self.steps:
            raise UserError(
                f"optimizer.warmup_steps is {self.warmup_steps}; it must lie between 0 and "
                f"optimizer.steps, {self.steps}"
            )
        for field in fields(self):
            if field.name in read_by(*OPTIMIZERS) - read_by(self.name) and getattr(self, field.name) != field.default:
                raise UserError(
                    f"optimizer.{field.name} is {getattr(self, field.name)!r}, which optimizer.name={self.name!r} does "
                    f"not read; leave it at {field.default!r}"
                )


def read_by(*names: str) -> set[str]:
    """Settings that not all optimizers have, read by any of these."""
    return {keyword for name in names for keyword in inspect.signature(OPTIMIZERS[name]).parameters}
