"""Made-up rollouts and log-probabilities for the tests of T-GRPO."""

import jax.numpy as jnp
import numpy as np

from jvr1.rl.tgrpo import RolloutScores


def make_rollout(seed: int, prompts: int, *, size: int = 8, shuffled: int = 4, graded: bool = False) -> RolloutScores:
    """Groups of every kind: 0/1 or graded accuracy, images and videos, all right, all wrong, few frames, invalid."""
    rng = np.random.default_rng(seed)
    rate = rng.choice([0.0, 0.2, 0.5, 0.75, 0.9, 1.0], (prompts, 1))
    accuracy = rng.random((prompts, size)) < rate
    twin = rng.random((prompts, shuffled)) < np.clip(rate + rng.choice([-0.3, 0, 0.1], (prompts, 1)), 0, 1)
    scale = rng.choice([0.05, 0.1, 0.35, 0.5, 0.8, 1.0], (prompts, size)) if graded else np.ones((prompts, size))
    accuracy = (accuracy * scale).astype(np.float32)
    is_video = rng.random(prompts) < 0.7
    return RolloutScores(
        accuracy=jnp.asarray(accuracy),
        reward=jnp.asarray(accuracy + (rng.random((prompts, size)) < 0.8).astype(np.float32)),
        length=jnp.asarray(rng.choice([1, 100, 319, 320, 400, 512, 513, 768], (prompts, size)), jnp.int32),
        shuffled_accuracy=jnp.asarray(twin, jnp.float32),
        shuffled_valid=jnp.asarray(np.broadcast_to(is_video[:, None], (prompts, shuffled))),
        valid=jnp.asarray(rng.random(prompts) < 0.9),
        is_video=jnp.asarray(is_video),
        distinct_frames=jnp.asarray(rng.choice([1, 3, 4, 16], prompts), jnp.int32),
    )


def make_tokens(seed: int, shape: tuple[int, int, int], spread: float = 0.3):
    """Log-probabilities of policy, old policy and reference, and completion masks of unequal lengths."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.0, shape).astype(np.float32)
    old = logp + spread * rng.standard_normal(shape).astype(np.float32)
    ref = logp + spread * rng.standard_normal(shape).astype(np.float32)
    length = rng.integers(1, shape[2] + 1, shape[:2])
    return logp, old, ref, np.arange(shape[2]) < length[..., None]
