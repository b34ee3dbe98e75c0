"""T-GRPO of Qwen2.5-VL-7B on Video-R1-260k, our defaults: --config configs/tgrpo_7b.py --config.data.root=DIR

DIR holds Video-R1-260k.json and its media (jvr1 prepare-data). Start from the cold start:
--config.model.source=WORKDIR_OF_SFT. Memory by mesh and chip: jvr1 plan.
"""

from ml_collections import ConfigDict

from jvr1.config import default

COMPLETION = 768
# Frames of 128 tokens have 8 windows in 16:9 and 9:16, 12 in 4:3 and 3:2, 14 at most; pictures of 256 tokens have 16
# to 20, very wide ones 21 or 26. 5 steps: clips of five seconds. tools/bench.py data says how much is padding.
BUCKETS = (
    ("image", 1, 20, 448, COMPLETION),
    ("image", 1, 21, 576, COMPLETION),
    ("image", 1, 26, 832, COMPLETION),
    ("video", 5, 12, 896, COMPLETION),
    ("video", 8, 8, 1216, COMPLETION),
    ("video", 8, 12, 1344, COMPLETION),
    ("video", 8, 14, 1536, COMPLETION),
)


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "Video-R1/Qwen2.5-VL-7B-COT-SFT"
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    config.data.train = ("Video-R1-260k.json",)
    config.data.buckets = BUCKETS
    config.batch.update({"micro": 8, "per_step": 4})
    config.sampling.update({"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    config.rl.update({"group": 8, "shuffled": 4, "alpha": 0.3, "beta": 0.04, "length_reward": 0.2})
    config.optimizer.update(
        {
            "learning_rate": 1e-6,
            "schedule": "cosine",
            "steps": 1200,
            "warmup_steps": 20,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        }
    )
    config.train.update({"steps": 1200, "save_every": 50})
    return config
