"""Runs a training main and writes down what XLA was asked to compile until each step: python driver.py LOG STAGE ..."""

import json
import sys
from collections import Counter
from pathlib import Path

import jax

from jvr1 import config, train_rl, train_sft
from jvr1.train.metrics import MetricsWriter

log, stage = Path(sys.argv[1]), sys.argv[2]
sys.argv = [stage, *sys.argv[3:]]
compiled: Counter[str] = Counter()
seen = []


def note(event: str, seconds: float, fun_name: str = "?", **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiled[fun_name] += 1


jax.monitoring.register_event_duration_secs_listener(note)
scalars = MetricsWriter.scalars


def write(self, step, values):
    seen.append((step, dict(compiled)))
    scalars(self, step, values)


MetricsWriter.scalars = write
code = {"sft": train_sft, "rl": train_rl}[stage].main(config.parse(sys.argv))
log.write_text(json.dumps(seen))
sys.exit(code)
