"""How the processes of a run end: alike, soon, and with the cause in every log."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes.ends import ROWS, play
from runs import REPOSITORY, STEPS, free_port

from jvr1.processes.ends import Watch
from jvr1.processes.peers import different


@pytest.fixture(scope="module")
def played():
    """All rows: most of their time is waiting, so some are played at once."""
    with ThreadPoolExecutor(3) as pool:
        seen = pool.map(lambda row: play(row, f"localhost:{free_port()}"), ROWS)
        return {row.deed: one for row, one in zip(ROWS, seen, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.deed)
def test_all_end_with_the_documented_code_and_the_cause(row, played):
    seen = played[row.deed]
    assert seen.codes == row.codes, seen.said
    for line, text in zip(row.said, seen.said, strict=True):
        assert line in text
        assert ("Traceback" in text) == line.startswith("ValueError"), text


@pytest.mark.parametrize("limit", [1.0, 2.0, 3.0, 100.0])
def test_within_any_limit_there_is_a_beat_more_than_once(limit):
    watch = Watch(lambda *_: None, lambda *_: None, limit)
    assert 4 * watch._every <= limit / 4


def test_the_documented_table_has_each_row_as_it_is_tried():
    page = (REPOSITORY / "docs" / "launch.md").read_text()
    for row in ROWS:
        names = ["stays" if code is None else str(code if code >= 0 else 128 - code) for code in row.codes]
        assert f"| {row.what} | {names[0]} | {names[1]} |" in page


def other_rows(demo, folder: Path) -> Path:
    """The demo's data with one question less."""
    folder.mkdir()
    for path in demo.root.iterdir():
        if path.name in ("media", "valid.json"):
            (folder / path.name).symlink_to(path)
    (folder / "sft.json").write_text(json.dumps(json.loads((demo.root / "sft.json").read_text())[1:]))
    return folder


def test_a_training_begun_otherwise_on_one_process_does_not_begin(demo, tmp_path):
    ends = []
    for changes in (
        {"seed": 1, "optimizer__learning_rate": 0.5, "train__steps": 7},
        {"data__root": other_rows(demo, tmp_path / "data")},
    ):
        where = ["--processes=2", f"--coordinator=localhost:{free_port()}"]
        commands = [demo.arguments("sft", tmp_path / "run", **own) for own in ({}, changes)]
        both = [demo.start(["-mjvr1.train_sft"], [*own, *where, f"--process={i}"]) for i, own in enumerate(commands)]
        ends.append([(process.communicate(timeout=120)[1], process.returncode) for process in both])
    settings, data = ends
    assert [code for _, code in [*settings, *data]] == [2] * 4
    assert settings[0] == settings[1]
    assert data[0] == data[1]
    told = ["optimizer.learning_rate: 0.001 -> 0.5", "seed: 0 -> 1", f"train.steps: {STEPS} -> 7"]
    assert settings[0][0] == (
        f"error: process 1 was started otherwise than process 0: {'; '.join(told)}. "
        "All processes need the same command, code and files\n"
    )
    assert data[0][0].startswith("error: process 1 was started otherwise than process 0: sft.json: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


def two(demo, stage: str, workdir: Path, limits=(None, None), **changes):
    """Two processes of a run, with limits (KB) on the files they can write."""
    where = ["--processes=2", f"--coordinator=localhost:{free_port()}"]
    arguments = [*demo.arguments(stage, workdir, **changes), *where]
    return [demo.start([f"-mjvr1.train_{stage}"], [*arguments, f"--process={i}"], limits[i]) for i in range(2)]


@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_for_one_process_ends_both_at_once_with_its_name(demo, tmp_path, full):
    limits = tuple(200 if i == full else None for i in range(2))
    processes = two(demo, "sft", tmp_path / "run", limits, train__steps=9, train__save_every=1, batch__micro=4)
    ends = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], ends
    said = f"{tmp_path / 'run' / 'checkpoints'}: step 1 could not be saved: File too large"
    assert f"error: {said}\n" in ends[full][1]
    assert f"error: process {1 - full} of 2 ends: process {full} did ({said})\n" in ends[1 - full][1]
    assert all("Traceback" not in err for _, err in ends)


def test_a_notice_before_the_first_step_is_left_by_with_the_code_to_start_again(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("JVR1_EXIT_ON_PREEMPTION", "75")
    alone = demo.main("sft", tmp_path / "alone")
    while not (tmp_path / "alone" / "holder.json").exists():
        time.sleep(0.02)
    processes = [alone, *two(demo, "sft", tmp_path / "run", batch__micro=4, data__index=tmp_path / "index")]
    alone.send_signal(signal.SIGTERM)
    line = processes[1].stdout.readline()
    while "records," not in line:  # indexed: the others wait for process 0 no more
        assert line
        line = processes[1].stdout.readline()
    processes[2].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75, 75], ends
    assert "told to stop: ends here" in ends[0][1]
    assert not list(tmp_path.rglob("holder.json"))


def test_the_first_differences_are_named():
    first = {"a": 1, "b": [1], "c": None, "d": "x", "e": 1, "f": 1}
    assert different(first, first) == []
    assert different(first, first | {"b": [2]}) == ["b: [1] -> [2]"]
    assert different(first, {"a": 1}) == ["b: [1] -> None", "d: x -> None", "e: 1 -> None", "f: 1 -> None"]
    assert different(first, {n: 0 for n in first})[-1] == "and 2 more"
