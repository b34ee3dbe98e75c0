"""An error about a setting names it as the command line does."""

from __future__ import annotations

import re

import pytest

from jvr1.config import default
from jvr1.errors import UserError
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.train.optimizer import OptimizerConfig


def missing(message: str) -> list[str]:
    """Of the section.name in a message, those that the schema does not have; one at least is named."""
    names = re.findall(r"\b([a-z]+)\.([a-z]\w*)", message)
    assert names, message
    config = default()
    return [f"{section}.{name}" for section, name in names if section not in config or name not in config[section]]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        *((TGRPOConfig, {name: "other"}) for name in ("gate", "kl", "aggregation", "ratio")),
        *((TGRPOConfig, {name: -1.0}) for name in ("alpha", "temporal_reward", "beta", "std_eps", "clip_high")),
        (TGRPOConfig, {"clip_low": 1.0}),
        (TGRPOConfig, {"std_eps": 0.0}),
        (TGRPOConfig, {"length_min": 9, "length_max": 8}),
        (TGRPOConfig, {"max_length": 0}),
        (OptimizerConfig, {"schedule": "stairs"}),
        (OptimizerConfig, {"b1": 1.0}),
        (OptimizerConfig, {"max_bad_steps": 0}),
    ],
    ids=str,
)
def test_the_setting_named_exists(kind, setting):
    with pytest.raises(UserError) as error:
        kind(**setting)
    assert missing(str(error.value)) == []
    assert all(name in str(error.value) for name in setting)
