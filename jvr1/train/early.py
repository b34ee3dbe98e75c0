"""Mistakes that cost nothing to find, found before weights are fetched, read and sharded: minutes on a large model."""

from __future__ import annotations

import json

from etils import epath
from ml_collections import ConfigDict

from jvr1.data.json_file import json_values
from jvr1.errors import UserError
from jvr1.rl.user_values import UserValues, open_user_values
from jvr1.train.metrics import check_wandb


def check_early(config: ConfigDict, stage: str) -> UserValues | None:
    """Looks for the data files, for wandb where it is to be used, and loads the user's own rewards, which it returns.

    Raises UserError with the first thing that is wrong.
    """
    check_data_files(config)
    check_wandb(config.train.wandb)
    wanted = stage != "sft" or config.reward.user_accuracy
    return open_user_values(config) if wanted else None


EARLY_BYTES = 64 * 2**20
"""Larger files take long enough to be read once, after the weights."""


def check_data_files(config: ConfigDict) -> None:
    """Raises UserError for one of data.train and data.valid that is not there, or is small and no JSON."""
    root, files = epath.Path(config.data.root), dict.fromkeys(config.data.train, "data.train")
    if config.train.validate_every:
        files |= dict.fromkeys(config.data.valid, "data.valid")
    for file, setting in files.items():
        if not (root / file).exists():
            where = f"data.root {root}" if config.data.root else "this folder: data.root is empty"
            raise UserError(f"{setting} names {file}, which is not in {where}")
        if file.endswith(".json") and (root / file).stat().length <= EARLY_BYTES:
            try:
                json.loads((root / file).read_bytes())
            except json.JSONDecodeError:
                for _ in json_values(str(root / file)):  # JSONL is no mistake; anything else is told with its place
                    pass
            except (ValueError, RecursionError):
                continue  # damaged texts are told when the records are read
