"""An evaluation in two processes: the answers of one, written once."""

from __future__ import annotations

import json

from runs import ALL, TINY, free_port, piped


def test_two_processes_give_the_answers_and_the_report_of_one(demo, tmp_path):
    coordinator = f"localhost:{free_port()}"
    arguments = [
        f"--model={demo.exported()}", "--suite=valid.json", f"--data={demo.root}", f"--out={tmp_path / 'out'}", TINY,
        ALL, "--batch=2", "--workers=0", f"--coordinator={coordinator}", "--processes=2",
    ]  # fmt: skip
    processes = [piped(["-mjvr1.evaluate", *arguments, f"--process={i}"], demo.environment) for i in range(2)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    alone = demo.evaluated()
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()
    assert len({json.loads(line)["replies"][0]["completion"] for line in (alone / "answers.jsonl").open()}) >= 8
    got, want = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "out", alone))
    assert got["settings"].pop("devices") == "2 x cpu"
    assert got["settings"].pop("mesh") == {"data": 2, "fsdp": 1, "tensor": 1}
    assert want["settings"].pop("devices") == "1 x cpu"
    assert want["settings"].pop("mesh") == {"data": 1, "fsdp": 1, "tensor": 1}
    assert got == want
    assert "Rests on 32 of 32 questions." in ends[0][0]
    assert "Rests on" not in ends[1][0]  # said once
    assert not list((tmp_path / "out").glob("answers.partial*"))
