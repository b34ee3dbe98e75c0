"""The exported folder in transformers, by the lines that docs/serving.md and docs/weights.md give: jvr1's answers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from oracle import Item, tokens
from transformers import AutoTokenizer

from jvr1.model.families import from_hf
from jvr1.model.hf import read_config
from jvr1.model.qwen2_5_vl.positions import mrope_positions
from jvr1.model.qwen2_5_vl.text_positions import as_trained

ROOT = Path(__file__).parents[1]
LONGEST, ASKED = 24, 8


def snippet(file: str) -> str:
    """The lines of Python of a document that load an exported folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "as_trained" in block]
    return found


def kinds_of(ids: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.where(ids == oracle.IMAGE, 1, np.where(ids == oracle.VIDEO, 2, 0)))


@pytest.fixture(scope="module")
def model():
    return as_trained(oracle.torch_model(oracle.raw_config()))


def test_positions_by_hand(model):
    """Three temporal steps of 2x2 merged tokens, 4 positions apart in time: text goes on at 1 + 8 + 1."""
    ids = np.array([5, oracle.START, *[oracle.VIDEO] * 12, oracle.END, 6])
    grid, kinds = torch.tensor([[3, 4, 4]]), kinds_of(ids)[None]
    got, delta = model.model.get_rope_index(
        torch.tensor(ids)[None], kinds, video_grid_thw=grid, second_per_grid_ts=torch.tensor([2.0])
    )
    time = [0, 1, *[2] * 4, *[6] * 4, *[10] * 4, 11, 12]
    row = [0, 1, *[2, 2, 3, 3] * 3, 11, 12]
    column = [0, 1, *[2, 3, 2, 3] * 3, 11, 12]
    assert got[:, 0].tolist() == [time, row, column]
    assert delta.tolist() == [[13 - len(ids)]]
    theirs, _ = type(model.model).get_rope_index(
        model.model, torch.tensor(ids)[None], kinds, video_grid_thw=grid, second_per_grid_ts=[2.0]
    )
    assert theirs[:, 0, -2:].tolist() == [[4, 5]] * 3  # what it is for: from transformers 5.3 on


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_a_padded_batch_equal_those_of_training(model, side):
    rng = np.random.default_rng(0)
    config = from_hf(oracle.raw_config())
    items = [
        [Item(rng, 8, 4, 6, 0.7), Item(rng, 1, 6, 4)],
        [Item(rng, 1, 4, 4), Item(rng, 5, 4, 4, 1 / 3), Item(rng, 6, 8, 4, 2.25)],
    ]
    rows = [tokens(rng, 3, *own, 5) for own in items]
    length = max(map(len, rows))
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    for i, row in enumerate(rows):
        at = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    every = [item for own in items for item in own]
    videos, images = [i.grid for i in every if i.video], [i.grid for i in every if not i.video]
    got, deltas = model.model.get_rope_index(
        torch.tensor(ids),
        kinds_of(ids),
        image_grid_thw=torch.tensor([g[:3] for g in images]),
        video_grid_thw=torch.tensor([g[:3] for g in videos]),
        second_per_grid_ts=[g.seconds_per_step for g in videos],
        attention_mask=torch.tensor(mask),
    )
    for i, (row, own) in enumerate(zip(rows, items, strict=True)):
        want, following = mrope_positions(row, [item.grid for item in own], config)
        np.testing.assert_array_equal(got[:, i, mask[i] == 1], want)
        assert deltas[i].tolist() == [following - len(row)]


def test_the_lines_of_the_documents(demo, monkeypatch):
    """Questions about videos, greedily: every answer is jvr1's; without `as_trained` some are not."""
    assert snippet("docs/serving.md") == snippet("docs/weights.md")
    folder = demo.exported()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "text_positions", raising=False)
    given: dict = {}
    exec(snippet("docs/serving.md").replace("hf_folder", str(folder)), given)
    model, processor = given["model"].float(), given["processor"]
    ours = {
        a["problem_id"]: a["replies"][0]["completion"]
        for a in map(json.loads, (demo.evaluated() / "answers.jsonl").read_text().splitlines())
    }
    questions = json.loads((demo.root / "valid.json").read_text())
    questions = [q for q in questions if q["data_type"] == "video"][:ASKED]
    config = read_config(folder)
    asked = [(q["problem_id"], inputs_of(demo.root, q, processor)) for q in questions]
    with torch.no_grad():
        for number, inputs in asked:
            assert answer(model, processor, inputs, config) == ours[number]
        del model.model.get_rope_index
        assert sum(answer(model, processor, inputs, config) == ours[n] for n, inputs in asked) < len(questions)


def answer(model, processor, inputs, config) -> str:
    banned = list(config.visual_tokens)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST, suppress_tokens=banned)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def inputs_of(root: Path, question: dict, processor) -> dict:
    """A demo question by the exported processor, its media decoded by PyAV and Pillow."""
    from test_evaluate import media_of

    item = media_of(root, question)
    text = question["problem"]
    if question["problem_type"] == "multiple choice":
        text += "Options:\n" + "".join(f"{option}\n" for option in question["options"])
    kind = "video" if item.video else "image"
    content = [{"type": kind}, {"type": "text", "text": text}]
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if not item.video:
        return processor(text=[prompt], images=[item.frames[0]], return_tensors="pt")
    count = len(item.frames)
    metadata = {"total_num_frames": count, "fps": 2 / item.grid.seconds_per_step, "frames_indices": list(range(count))}
    return processor(text=[prompt], videos=[item.frames], video_metadata=[metadata], return_tensors="pt")


def test_the_tokenizer_and_template_of_the_export_load(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo.exported())
    assert tokenizer.chat_template
