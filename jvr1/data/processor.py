"""The files of an export from which `transformers` and vLLM prepare media and sample: as the training did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jvr1.model.config import ModelConfig
from jvr1.model.fields import Fields, parse_object

IMAGE, VIDEO, BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
"""transformers 5 takes what BOTH holds under `image_processor` and `video_processor` before the other two."""
GENERATION = "generation_config.json"


def processor_files(
    carried: Mapping[str, bytes], config: ModelConfig, image: Mapping[str, Any], video: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """The carried files with these fields of the image processor and, where they are known, of the video processor, as
    the `processor` of the model's family gives them.

    Files that a source lacks are made. Raises UserError naming a carried file that is no JSON object.
    """
    known = {name: parse_object(carried[name], name) for name in (IMAGE, VIDEO, BOTH) if name in carried}
    both = known.get(BOTH, {})
    form = config.family.processor
    base = form.base(config.vision)
    out = dict(carried)
    for name, key, kind, fields in (
        (IMAGE, "image_processor", form.image_type, image),
        (VIDEO, "video_processor", form.video_type, video),
    ):
        if fields is None:
            continue
        nested = Fields(both, BOTH).part(key).raw if key in both else {}
        # a video's own fields, such as a number of frames, are all of the run
        before = {**nested, **known.get(name, {})} if name == IMAGE else {}
        out[name] = _bytes(base | before | {f"{key}_type": kind} | dict(fields))
        if BOTH in carried:
            both[key] = (dict(nested) if name == IMAGE else base) | {f"{key}_type": kind} | dict(fields)
    if BOTH in carried:
        out[BOTH] = _bytes(both)
    return out


def extra_ends(carried: Mapping[str, bytes], vocab: int) -> tuple[int, ...]:
    """End tokens that the source's generation_config.json names. Raises UserError."""
    if GENERATION not in carried:
        return ()
    fields = Fields(parse_object(carried[GENERATION], GENERATION), GENERATION)
    if not fields.given("eos_token_id"):
        return ()
    if isinstance(fields.raw["eos_token_id"], list):
        return fields.wholes("eos_token_id", (), most=vocab - 1)
    return (fields.whole("eos_token_id", least=0, most=vocab - 1),)


def penalty(carried: Mapping[str, bytes]) -> float:
    """The repetition penalty that `generate` of transformers would apply; 1 is none. Ours applies none."""
    raw = parse_object(carried[GENERATION], GENERATION) if GENERATION in carried else {}
    value = raw.get("repetition_penalty")
    return 1.0 if value is None else Fields(raw, GENERATION).number("repetition_penalty", 1.0, above=0, most=100)


def generation_file(
    carried: Mapping[str, bytes], ends: Sequence[int], *, temperature: float, top_k: int, top_p: float
) -> dict[str, bytes]:
    """The carried files with a generation_config.json that samples as the training did, ending with the same tokens.

    Of the source's only the ids of other tokens remain.
    """
    before = parse_object(carried[GENERATION], GENERATION) if GENERATION in carried else {}
    kept = {name: before[name] for name in ("bos_token_id", "pad_token_id") if before.get(name) is not None}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {**carried, GENERATION: _bytes(kept | {"eos_token_id": list(ends)} | sampling | {"repetition_penalty": 1.0})}


def _bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
