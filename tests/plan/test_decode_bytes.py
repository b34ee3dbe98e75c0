"""tools/decode_bytes.py: what the compiled decode step reads for a token, beside the least, as a table."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from step_shapes import SMALL

from jvr1.errors import run_main
from jvr1.model.families import to_hf

pytestmark = pytest.mark.optimised
ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "decode_bytes.py"))
TGRPO = str(ROOT / "configs" / "tgrpo_7b.py")


def test_the_table_and_what_is_copied(tmp_path, topology, capsys, monkeypatch):
    """`topology`: its precision. In MB: a small model's GB would all be 0.00."""
    monkeypatch.setitem(TOOL["row"].__globals__, "GB", 1e6)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(SMALL, "bfloat16")))
    (tmp_path / "model.safetensors").touch()
    arguments = [
        "--config", TGRPO, "--model", str(tmp_path), "--topology", "h100-80:2", "--prompts", "4",
        "--config.data.buckets=(('video',2,1,40,24),)", "--config.batch.micro=2", "--config.rl.group=3",
        "--config.rl.shuffled=2", "--decode_tensor", "1",
    ]  # fmt: skip
    TOOL["main"](arguments)
    lines = capsys.readouterr().out.splitlines()
    head, _, row = (line.strip("| ").split(" | ") for line in lines[2:5])
    assert row[:3] == ["h100-80:2", "1", "10"]  # 4 prompts of 3 + 2 rows on 2 chips
    text = SMALL.text
    heads = (text.heads + 2 * text.kv_heads) * text.head_size
    layer = text.hidden * (heads + text.heads * text.head_size + 3 * text.intermediate) + heads + 2 * text.hidden
    weights = 2 * (text.layers * layer + text.hidden + text.hidden * text.vocab)
    caches = 2 * 2 * text.layers * text.kv_heads * text.head_size * 2 * (2 * 40 + 5 * 25 / 2)  # 2 prompts a chip
    assert head[3:7] == ["weights GB", "of it least", "keys and values GB", "of it least"]
    assert [row[4], row[6]] == [f"{weights / 1e6:.2f}", f"{caches / 1e6:.2f}"]
    # every matrix is read once, where it lies, and none is copied
    assert float(row[3]) == pytest.approx(weights / 1e6, abs=0.02)
    assert "decode_tensor 1, 10 rows a chip, copied for each token, GB:" in lines
    assert not any(line.startswith("  text/") for line in lines)


@pytest.mark.parametrize("option", ["--prompts", "--decode_tensor"])
def test_a_mistake_is_one_line(monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["decode_bytes.py", "--config", TGRPO, option, "8,many"])
    with pytest.raises(SystemExit) as end:
        run_main(TOOL["main"])
    assert end.value.code == 2
    assert f"error: {option}: '8,many' is no list of numbers, such as 8,32\n" in capsys.readouterr().err
