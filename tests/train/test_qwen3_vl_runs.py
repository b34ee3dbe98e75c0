"""The demo's tiny Qwen3-VL: two steps of T-GRPO as a user starts them, exported, asked in transformers."""

from __future__ import annotations

import sys

import av
import jax
import numpy as np
import pytest
import torch
from runs import REPOSITORY, scalars
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from jvr1 import config as settings
from jvr1.commands import export
from jvr1.data.records import load_records
from jvr1.demo.tiny_model import write_tiny_model
from jvr1.errors import run_main
from jvr1.model import vision_language
from jvr1.opening.data import make_encoder
from jvr1.opening.models import open_model, read_tokenizer
from jvr1.sharding import make_mesh
from tests.model.test_parity import greedy_ours

pytestmark = pytest.mark.slow
TOKENS = 6
BUCKETS = (("video", 4, 1, 98, TOKENS), ("image", 1, 1, 52, TOKENS))


def test_it_is_trained_exported_and_answers_alike_in_transformers(demo, tmp_path, monkeypatch, capsys):
    """With the prompt that transformers writes today."""
    write_tiny_model(tmp_path / "tiny", 1, "qwen3_vl")
    changes = {
        "model__source": tmp_path / "tiny",
        "train__steps": 2,
        "train__validate_every": 0,
        "data__buckets": BUCKETS,
    }
    own = ["--config.data.prompt_form=nested", f"--config.data.index={tmp_path / 'index'}"]
    arguments = [*demo.arguments("rl", tmp_path / "run", **changes), *own]
    arguments[0] = f"--config={REPOSITORY / 'configs' / 'tiny_qwen3vl.py'}:rl"
    demo.done(["-mjvr1.train_rl"], arguments)
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == [1, 2]

    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype=float32"])
    with pytest.raises(SystemExit) as end:
        run_main(export.main)
    told = capsys.readouterr()
    assert end.value.code == 0, told.err
    assert "transformers up to 5.9 writes 'release'" in told.out
    theirs, said = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    config = settings.from_json((tmp_path / "run" / "config.json").read_text(), "run")
    model = open_model(tmp_path / "run", make_mesh({}, jax.devices()[:1]), dtype="float32", param_dtype="float32")
    encoder = make_encoder(config, model.config, read_tokenizer(tmp_path / "out"), targets=False)
    record = next(one for one in load_records(str(demo.root / "rl.json")) if one.data_type == "video")
    arrays = encoder.encode(record, encoder.buckets[0], np.random.default_rng(0))
    encoder.read.close()

    with av.open(str(demo.root / record.paths[0])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    text = encoder.tokenizer.decode(arrays.prompt.ids[arrays.prompt.mask])
    asked = text.partition("<|vision_end|><|vision_end|>")
    chat = f"{text.partition('<|vision_start|>')[0]}<|vision_start|><|video_pad|><|vision_end|>{asked[2]}"
    metadata = VideoMetadata(total_num_frames=len(frames), fps=2.0, frames_indices=list(range(len(frames))))
    inputs = processor(
        text=[chat], videos=[torch.tensor(frames).permute(0, 3, 1, 2)], video_metadata=[metadata], return_tensors="pt"
    )
    np.testing.assert_array_equal(inputs["input_ids"][0], arrays.prompt.ids[arrays.prompt.mask])
    want = theirs.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)[
        0, -TOKENS:
    ].tolist()
    prompt, visual = jax.tree.map(lambda x: np.asarray(x)[None], (arrays.prompt, arrays.visual))
    ends = {encoder.tokenizer.convert_tokens_to_ids(name) for name in model.config.family.ends}
    module = vision_language.merge(model.graphdef, model.params)
    with jax.default_matmul_precision("highest"):
        got = greedy_ours(module, *jax.tree.map(jax.numpy.asarray, (prompt, visual)), TOKENS)
    upto = next((i for i, token in enumerate(got) if token in ends), TOKENS)
    assert got[:upto] == want[:upto]
