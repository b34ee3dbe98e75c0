"""Optimizers by name. One of your own is a module with a function as below, and a line in `OPTIMIZERS`.

The function takes as keywords, by their names, those settings of `OptimizerConfig` that it reads; with it no other
that only some optimizers have may be set. It returns the optax transformation from clipped gradients to the direction
of the step, before decay and learning rate, which are the same for all. Gradients and parameters come to it in fp32
whatever the parameters' dtype. Its state may have any shapes: what lies in it under a parameter's path, of its shape or
its shape without some axes, is split over the mesh as the parameter is, anything else is on every device
(`jvr1.train.state.abstract_state`).
"""

from __future__ import annotations

from collections.abc import Callable

import optax

from jvr1.optimizers.adafactor import adafactor
from jvr1.optimizers.adamw import adamw
from jvr1.optimizers.muon import muon

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "muon": muon,
}
