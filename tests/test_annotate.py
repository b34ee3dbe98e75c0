"""Chains of thought for one's own questions: what is kept, that it trains, kills, refusals."""

from __future__ import annotations

import json
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import TINY

from jvr1.annotate import annotated, chain_of, raw
from jvr1.data.records import load_records, parse_record
from jvr1.questions.replies import Question, reply
from jvr1.rl.rewards import score

INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
FORM = re.compile(rf"<think>{INSIDE}</think>\s*<answer>{INSIDE}</answer>", re.DOTALL)
DRAWN = ("--samples=4", "--temperature=0.7", "--batch=4", "--seed=3", "--max-tokens=24")


def arguments(demo, out: Path, *more: str, data: Path | None = None) -> list[str]:
    return [
        f"--model={demo.exported()}", TINY, f"--data={data or demo.root / 'valid.json'}", f"--root={demo.root}",
        f"--out={out}", "--workers=0", *DRAWN, *more,
    ]  # fmt: skip


def annotate(demo, out: Path, *more: str, **where) -> str:
    return demo.done(["-mjvr1.annotate"], arguments(demo, out, *more, **where))


def answers(out: Path) -> dict[int, dict]:
    lines = (out.parent / f"{out.name}.answers" / "answers.jsonl").read_text().splitlines()
    return {a["problem_id"]: a for a in map(json.loads, lines)}


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory) -> tuple[Path, str]:
    """A cold-start file of all chains above the threshold, and the summary."""
    out = tmp_path_factory.mktemp("annotated") / "own.json"
    return out, annotate(demo, out, "--keep=4")


def test_what_the_reward_finds_right_is_kept_and_nothing_else(demo, made):
    out, summary = made
    records = load_records(out)
    questions = {r["problem_id"]: r for r in json.loads((demo.root / "valid.json").read_text())}
    expected, below = [], 0
    for number, answer in answers(out).items():
        gold, kind = questions[number]["solution"], questions[number]["problem_type"]
        assert len(answer["replies"]) == 4
        formed = [r["completion"] for r in answer["replies"] if FORM.fullmatch(r["completion"].strip())]
        right = dict.fromkeys(c.partition("</think>")[0] + "</think>" for c in sorted(
            (c for c in formed if score(c, gold, kind).accuracy > 0.6), key=lambda c: -score(c, gold, kind).accuracy
        ))  # fmt: skip
        expected += [(number, chain) for chain in right]
        below += bool(formed) and not right
    assert [(r.problem_id, r.process) for r in records] == expected
    assert len(expected) > 3
    assert below > 3
    for record in records:
        assert record.solution == questions[record.problem_id]["solution"]
        assert list(record.options) == questions[record.problem_id]["options"]
    with_one = len({number for number, _ in expected})
    last = summary.splitlines()[-1]
    assert last.startswith(f"{with_one} of 32 questions annotated with {len(expected)} chains of thought; ")
    assert f"{below} without a reward above 0.6; 0 could not be asked. Written to {out}.\n" in summary


def test_the_cold_start_trains_on_it(demo, made, tmp_path):
    out, _ = made
    longer = (("video", 4, 1, 66, 32), ("image", 1, 1, 54, 32))  # what was sampled token by token may be longer
    changes = {"data__train": str(out), "data__buckets": longer, "train__steps": 2, "train__pictures_every": 0}
    process = demo.main("sft", tmp_path / "run", **changes)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert f"{len(load_records(out))} records, {len(load_records(out))} kept, 0 dropped" in stdout


def test_killed_it_goes_on_to_the_same_file_and_asks_nothing_twice(demo, made, tmp_path):
    out, folder = tmp_path / "own.json", tmp_path / "own.json.answers"
    process = demo.start(["-mjvr1.annotate"], arguments(demo, out, "--keep=4"))
    partial = folder / "answers.partial-0.jsonl"
    while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    lines = partial.read_bytes().split(b"\n")
    assert 4 <= len(lines) - 1 < 32
    partial.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][: len(lines[3]) // 2])
    annotate(demo, out, "--keep=4")
    assert out.read_bytes() == made[0].read_bytes()
    assert not partial.exists()

    # finished, it asks nothing: what stands there is taken, whatever is to be kept of it
    kept = folder / "answers.jsonl"
    kept.write_text(kept.read_text().replace("<think>", "<think>kept: "))
    annotate(demo, tmp_path / "own.json", "--threshold=0")
    records = load_records(out)
    assert all(r.process.startswith("<think>kept: ") for r in records)
    assert len({r.problem_id for r in records}) == len(records)  # one a question by default


def test_what_cannot_be_asked_is_counted_and_listed(demo, tmp_path):
    good = json.loads((demo.root / "valid.json").read_text())[:6]
    bad = [{**good[0], "path": "media/none.mp4"}, {**good[1], "problem": ""}, {**good[2], "path": "media/no.mp4"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [bad[0], *good, *bad[1:]]))
    out = tmp_path / "own.jsonl"
    summary = annotate(demo, out, "--threshold=0", data=tmp_path / "mixed.jsonl")
    listed = f"3 could not be asked (2 missing, 1 malformed), see {out}.answers/failed.json. Written to {out}.\n"
    assert summary.endswith(listed)
    assert " of 9 questions annotated with " in summary
    failed = json.loads((tmp_path / "own.jsonl.answers" / "failed.json").read_text())
    assert [(f["index"], f["cause"]) for f in failed] == [(0, "missing"), (7, "malformed"), (8, "missing")]
    assert {r.problem_id for r in load_records(out)} <= {r["problem_id"] for r in good}


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "chain"),
    [
        ("<think>a\nb</think>\n<answer>B</answer>", "<think>a\nb</think>"),
        (" <think>a</think><answer>B</answer>\n", "<think>a</think>"),
        ("<think>a</think>", None),
        ("<answer>B</answer>", None),
        ("so <think>a</think><answer>B</answer>", None),
        ("<think>a</think><answer>B</answer> indeed", None),
        ("<think>a</think><answer>A</answer><answer>B</answer>", None),
        ("<think>a</think><answer>A</answer><think>b</think><answer>B</answer>", None),
        ("<think>a<think>b</think><answer>B</answer>", None),
        ("", None),
    ],
)
def test_a_chain_is_reasoning_and_one_answer(completion, chain):
    assert chain_of(completion) == chain


def record(**changes):
    fields = {
        "problem_id": 1, "problem": "how far?", "data_type": "text", "problem_type": "regression", "options": [],
        "solution": "<answer>10</answer>", "data_source": "own",
    }  # fmt: skip
    return parse_record(fields | changes)


def question(*texts: str, **changes) -> Question:
    one = record(**changes)
    replies = [reply("ordered", i, t, 9, True, one.solution, one.problem_type) for i, t in enumerate(texts)]
    return Question(one, None, tuple(replies))


def thought(name: str, answer: object) -> str:
    return f"<think>{name}</think><answer>{answer}</answer>"


def test_the_best_come_first_each_once_and_the_threshold_is_not_enough():
    asked = question(thought("b", 9), thought("c", 6), thought("a", 10), thought("b", 9), thought("d", 9))
    assert [score(r.completion, "10", "regression").accuracy for r in asked.replies] == pytest.approx(
        [0.9, 0.6, 1.0, 0.9, 0.9]
    )
    exact = score(thought("c", 6), "10", "regression").accuracy

    def chains(threshold: float, most: int) -> list[str]:
        return [row["process"] for row in annotated(asked, "robust", threshold, most)]

    assert chains(exact, 9) == ["<think>a</think>", "<think>b</think>", "<think>d</think>"]
    assert chains(exact - 1e-6, 9)[-1] == "<think>c</think>"
    assert chains(0.0, 1) == ["<think>a</think>"]
    assert annotated(Question(asked.record, "missing"), "robust", 0.0, 1) == []


def test_options_are_known_by_their_texts():
    asked = question(thought("a", "red"), thought("b", "blue"), problem_type="multiple choice",
                     options=["A. red", "B. blue"], solution="A")  # fmt: skip
    assert [row["process"] for row in annotated(asked, "robust", 0.6, 9)] == ["<think>a</think>"]
    assert annotated(asked, "reference", 0.6, 9) == []


def test_a_row_is_its_question_with_the_chain():
    one = record(solution="10", task="distance", dim="speed")
    row = json.loads(json.dumps(raw(one, "<think>a</think>")))
    assert row["solution"] == "<answer>10</answer>"
    assert parse_record(row) == record(
        solution="<answer>10</answer>", process="<think>a</think>", task="distance", dim="speed"
    )
    several = record(data_type="image", path=["a.png", "b.png"])
    assert parse_record(json.loads(json.dumps(raw(several, "<think>a</think>")))).path == ("a.png", "b.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere"], "nowhere does not exist; a model is an HF folder, a hub id"),
        (["--data=none.json"], "--data none.json does not exist"),
        (["--data=DATA/own.txt"], "must be a file ending in .json or .jsonl"),
        (["--data=DATA/empty.json"], "holds no records"),
        (["--out=own.csv"], "--out own.csv must be a file ending in .json or .jsonl"),
        (["--out=DATA/valid.json"], "is the questions' own file; name another"),
        (["--root=nowhere"], "--root nowhere is no folder"),
        (["--threshold=1"], "--threshold is 1.0; it must be at least 0 and below 1"),
        (["--keep=0"], "--keep is 0; it must be at least 1"),
        (["--samples=4", "--temperature=0"], "would all be the same"),
        (["--reward=kind"], "invalid choice: 'kind'"),
        (["--coordinator=host:1"], "--coordinator HOST:PORT, --processes N and --process I go together"),
    ],
)
def test_a_mistake_is_one_line(demo, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "valid.json").write_bytes((demo.root / "valid.json").read_bytes())
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "own.txt").write_text("mine")
    given = [a.replace("DATA", str(tmp_path)) for a in arguments]
    base = {"--model": demo.model, "--data": tmp_path / "valid.json", "--out": tmp_path / "out.json"}
    given += [f"{name}={value}" for name, value in base.items() if not any(a.startswith(name + "=") for a in given)]
    monkeypatch.setattr(sys, "argv", ["annotate", *given])
    monkeypatch.setattr("jvr1.answering.use_compilation_cache", lambda: None)
    monkeypatch.delitem(sys.modules, "jvr1.annotate")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("jvr1.annotate", run_name="__main__")
    stderr = capsys.readouterr().err
    assert end.value.code == 2, stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert message in stderr
    assert not (tmp_path / "out.json").exists()
