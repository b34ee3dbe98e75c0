"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), as torch has it."""

from __future__ import annotations

import optax


def adamw(*, b1: float, b2: float, eps: float, moment_dtype: str) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps), both without bias. moment_dtype: of the first moment, m; v stays in fp32."""
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)
