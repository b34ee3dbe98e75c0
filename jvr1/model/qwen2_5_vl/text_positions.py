"""Positions of text after a video as in training, for `generate` of transformers 5: `as_trained(model)` once.

Goes with every exported folder. jvr1 itself does not use it: it needs torch.
"""

from itertools import groupby, repeat
from typing import Any

import torch


def as_trained(model: Any) -> Any:
    """Text after a video goes on above all its positions, as it did in transformers up to 5.2 and does in vLLM
    and SGLang; from 5.3 on it goes on as if the video were one frame. Changes the model given, and returns it."""
    vision = model.config.vision_config
    merge, rate = vision.spatial_merge_size, vision.tokens_per_second

    def get_rope_index(
        input_ids: Any, mm_token_type_ids: Any, image_grid_thw: Any = None, video_grid_thw: Any = None,
        second_per_grid_ts: Any = None, attention_mask: Any = None, **_: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        positions, deltas = torch.zeros(3, *input_ids.shape, dtype=torch.long), []
        grids = {1: iter(() if image_grid_thw is None else image_grid_thw.tolist())}
        grids[2] = iter(() if video_grid_thw is None else video_grid_thw.tolist())
        seconds = repeat(1.0) if second_per_grid_ts is None else iter(torch.as_tensor(second_per_grid_ts).tolist())
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for row, kinds in enumerate(mm_token_type_ids):
            own, blocks, start = real[row].bool().cpu(), [], 0
            for kind, run in groupby(kinds.cpu()[own].tolist()):  # 0: text, 1: image, 2: video
                if kind == 0:
                    block = torch.arange(len(list(run))).expand(3, -1)
                else:
                    t, h, w = next(grids[kind])
                    block = torch.cartesian_prod(*map(torch.arange, (t, h // merge, w // merge))).T.contiguous()
                    if kind == 2:
                        block[0] = (block[0].float() * next(seconds) * rate).long()
                blocks.append(block + start)
                start = int(blocks[-1].max()) + 1
            positions[:, row, own] = torch.cat(blocks, 1)
            deltas.append([start - int(own.sum())])
        return positions.to(input_ids.device), torch.tensor(deltas, device=input_ids.device)

    model.model.get_rope_index = get_rope_index
    return model
