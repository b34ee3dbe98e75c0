"""Settings of a run's config that do not go together, each pair refused by its names and before anything is read."""

from __future__ import annotations

from ml_collections import ConfigDict

from jvr1.errors import UserError


def check_together(config: ConfigDict) -> None:
    """Raises UserError for settings that do not go together."""
    if config.data.weights and len(config.data.weights) != len(config.data.train):
        raise UserError(
            f"data.weights has {len(config.data.weights)} numbers for {len(config.data.train)} files of data.train"
        )
    if config.rl.shuffled == 0 and config.rl.gate != "none":
        raise UserError(
            f"rl.gate={config.rl.gate!r} compares with shuffled completions; set rl.shuffled > 0 or rl.gate='none'"
        )
    if config.model.rollout_dtype and config.rl.rollout_correction == "none":
        raise UserError(
            f"model.rollout_dtype={config.model.rollout_dtype!r} samples from other weights than are trained; set "
            "rl.rollout_correction, such as 'token_truncate'"
        )
    if config.batch.per_step % config.rl.minibatches:
        raise UserError(
            f"rl.minibatches={config.rl.minibatches} does not divide batch.per_step={config.batch.per_step}"
        )
    if config.rl.reference_every and (config.rl.beta == 0 or config.lora.rank or config.model.reference == "host"):
        raise UserError(
            f"rl.reference_every={config.rl.reference_every} renews a copy that KL is measured from; it needs "
            "rl.beta > 0, lora.rank 0 and model.reference 'device'"
        )
    if config.lora.rank and config.model.reference == "host":
        raise UserError(
            "model.reference is 'host' and lora.rank is set: frozen weights are the reference; use 'device'"
        )
    for name in ("user_weights", "user_accuracy"):
        if config.reward[name] and not config.reward.user:
            raise UserError(f"reward.{name} is set and reward.user is empty; name your own rewards")
    if config.train.validate_every and not config.data.valid:
        raise UserError("train.validate_every is set and data.valid is empty; name the held-out questions")
    if config.train.stop_metric and not config.train.validate_every:
        raise UserError("train.stop_metric is set and train.validate_every is 0; nothing would measure it")
