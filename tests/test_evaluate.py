"""The evaluation's command line, as a user runs it: validation's numbers, kills, devices, broken questions, refusals,
and the same greedy answers as transformers from the exported folder."""

from __future__ import annotations

import json
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Item
from PIL import Image
from runs import ALL, STEPS, TINY, scalars
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from jvr1.data.vision import frame_pairs
from jvr1.model.hf import read_config
from jvr1.model.inputs import Grid
from jvr1.model.qwen2_5_vl.positions import mrope_positions

LONGEST = 24
"""New tokens, as the buckets of that config say."""
FILES = ("answers.jsonl", "report.json", "report.md", "report.html")


def command(demo, out, *arguments: str, suite: str = "valid.json", data: Path | None = None):
    base = [f"--suite={suite}", f"--data={data or demo.root}", f"--out={out}", "--workers=0"]
    return ["-mjvr1.evaluate"], [*base, *arguments]


def start(demo, out, *arguments: str, **where):
    return demo.start(*command(demo, out, *arguments, **where))


def evaluate(demo, out, *arguments: str, **where) -> str:
    return demo.done(*command(demo, out, *arguments, **where))


def read(out) -> tuple[dict, list[dict]]:
    answers = [json.loads(line) for line in (Path(out) / "answers.jsonl").read_text().splitlines()]
    return json.loads((Path(out) / "report.json").read_text()), answers


@pytest.fixture
def exported(demo) -> Path:
    return demo.exported()


@pytest.fixture
def undisturbed(demo) -> Path:
    return demo.evaluated()


def test_a_workdir_evaluates_as_its_own_validation_did(demo, tmp_path):
    workdir = demo.finished("rl").workdir
    stdout = evaluate(demo, tmp_path / "out", f"--model={workdir}", "--variants=ordered,shuffled")
    report, answers = read(tmp_path / "out")
    logged = scalars(workdir)
    for task, summary in report["tasks"].items():
        for name in ("ordered", "shuffled", "format", "length", "questions"):
            if summary[name] is not None:
                assert dict(logged[f"valid/{task}/{name}"])[STEPS] == pytest.approx(summary[name], rel=1e-6)
    questions = json.loads((demo.root / "valid.json").read_text())
    assert [a["problem_id"] for a in answers] == [q["problem_id"] for q in questions]
    for question, answer in zip(questions, answers, strict=True):
        variants = ["ordered", "shuffled"] if question["data_type"] == "video" else ["ordered"]
        assert [r["variant"] for r in answer["replies"]] == variants
    assert "| order |" in stdout
    assert f"Rests on {len(questions)} of {len(questions)} questions." in stdout
    assert report["settings"]["batch"] == 3
    assert report["settings"]["primary_mode"] == "robust"


def test_a_killed_evaluation_goes_on_to_the_same_report(demo, exported, undisturbed, tmp_path):
    out = tmp_path / "out"
    arguments = (f"--model={exported}", TINY, ALL, "--batch=2")
    process = start(demo, out, *arguments)
    partial = out / "answers.partial-0.jsonl"
    while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    lines = partial.read_bytes().split(b"\n")
    assert 4 <= len(lines) - 1 < len(read(undisturbed)[1])
    assert not (out / "report.json").exists()
    partial.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][: len(lines[3]) // 2])  # torn within a microbatch
    evaluate(demo, out, *arguments)
    for name in FILES:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not partial.exists()

    # a finished one is not asked again: what stands there is taken
    answers = out / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"completion": "', '"completion": "kept: ', 1))
    evaluate(demo, out, *arguments)
    assert "kept: " in read(out)[1][0]["replies"][0]["completion"]

    process = start(demo, out, *arguments, "--seed=5")
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr == f"error: {out} holds answers to other settings (seed: 0 -> 5); name another --out\n"


def index_lines(file: Path) -> list[str]:
    """Of an index, but for when it was made."""
    return re.sub(r'"began": [\d.]+', "", file.read_text()).split("\n")


def test_eight_devices_and_a_shared_index_give_the_same_answers(demo, exported, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    evaluate(demo, tmp_path / "out", f"--model={exported}", TINY, ALL, "--batch=8", f"--index={tmp_path / 'index'}")
    for made in (undisturbed / "index").iterdir():  # of media, and of questions
        assert index_lines(tmp_path / "index" / made.name) == index_lines(made)
    assert len(list((tmp_path / "index").iterdir())) == 2
    assert not (tmp_path / "out" / "index").exists()
    assert read(tmp_path / "out")[0]["settings"]["devices"].startswith("8 x ")
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (undisturbed / "answers.jsonl").read_bytes()


def test_what_cannot_be_asked_costs_only_itself(demo, exported, undisturbed, tmp_path):
    """Faulty records, missing and broken media among good questions."""
    good = json.loads((demo.root / "valid.json").read_text())[:10]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "media").symlink_to(demo.root / "media")
    (tmp_path / "data" / "cut.mp4").write_bytes((demo.root / _video(good)["path"]).read_bytes()[:900])
    (tmp_path / "data" / "text.mp4").write_text("no video")
    bad = [
        {**good[0], "problem": ""},
        {**good[1], "path": "media/none.mp4"},
        "no record",
        {**good[2], "path": "../out"},
        {**_video(good), "path": "cut.mp4"},
        {**_video(good), "path": "text.mp4"},
        {**good[4], "problem": "which? " * 400},
    ]
    mixed = [x for pair in zip(good, [*bad, None, None, None], strict=True) for x in pair if x is not None]
    (tmp_path / "data" / "mixed.json").write_text(json.dumps(mixed))
    arguments = (f"--model={exported}", TINY, ALL, "--batch=2")
    stdout = evaluate(demo, tmp_path / "out", *arguments, suite="mixed.json", data=tmp_path / "data")
    assert "Rests on 10 of 17 questions; 7 could not be asked." in stdout
    report, answers = read(tmp_path / "out")
    assert (report["questions"], report["answered"]) == (17, 10)
    assert report["failure_causes"] == {
        "malformed": 3, "missing": 1, "truncated": 1, "not-a-video": 1,
        "too many prompt tokens": 1,
    }  # fmt: skip
    assert [f["index"] for f in report["failures"]] == [2 * i + 1 for i in range(7)]
    before = {a["problem_id"]: a["replies"] for a in read(undisturbed)[1]}
    for answer in answers:
        if answer["error"] is None:
            assert answer["replies"] == before[answer["problem_id"]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('data-verdict="failed"') == 7


def _video(records: list[dict]) -> dict:
    return next(r for r in records if r["data_type"] == "video")


def test_a_video_that_breaks_after_it_was_measured(demo, exported, undisturbed, tmp_path):
    """The index knows it as good; its answer fails, the company it was decoded in does not."""
    (tmp_path / "data").mkdir()
    questions = json.loads((demo.root / "valid.json").read_text())
    for question in questions:
        target = tmp_path / "data" / question["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((demo.root / question["path"]).read_bytes())
    (tmp_path / "data" / "valid.json").write_text(json.dumps(questions))
    arguments = (f"--model={exported}", TINY, ALL, "--batch=2")
    data = tmp_path / "data"
    evaluate(demo, tmp_path / "first", *arguments, data=data)
    (tmp_path / "second" / "index").mkdir(parents=True)
    for file in (tmp_path / "first" / "index").iterdir():
        (tmp_path / "second" / "index" / file.name).write_bytes(file.read_bytes())
    broken = _video(questions)
    (data / broken["path"]).write_text("no video any more")
    evaluate(demo, tmp_path / "second", *arguments, data=data)
    report, answers = read(tmp_path / "second")
    assert (report["answered"], report["failure_causes"]) == (len(questions) - 1, {"not-a-video": 1})
    for answer, before in zip(answers, read(undisturbed)[1], strict=True):
        if answer["problem_id"] == broken["problem_id"]:
            assert answer["replies"] == []
        else:
            assert answer["replies"] == before["replies"]


def test_a_model_without_settings_is_asked_as_the_reference_asks(demo, tmp_path):
    """Buckets come from the questions; samples are many and drawn anew for each question."""
    arguments = ("--frames=4", "--max-pixels=3136", "--max-tokens=8", "--samples=3", "--dtype=float32", "--batch=4")
    evaluate(demo, tmp_path / "out", f"--model={demo.model}", *arguments)
    report, answers = read(tmp_path / "out")
    settings = report["settings"]
    assert "as if you were a human pondering deeply" in settings["template"]
    assert "between the <think> and </think> tags" in settings["template"]
    assert settings["video"]["max_frames"] == 4
    assert settings["video_pixels"]["max_pixels"] == 3136
    assert (settings["temperature"], settings["samples"], settings["max_tokens"]) == (1.0, 3, 8)
    assert settings["primary_mode"] == "eval-reference"
    assert all(name.endswith("-C8") for name in settings["buckets"])
    assert {name.partition("-")[0] for name in settings["buckets"]} == {"video", "image"}
    assert all(len(a["replies"]) == 3 and a["error"] is None for a in answers)
    texts = {r["completion"] for a in answers for r in a["replies"]}
    assert len(texts) > 2 * len(answers)
    group = report["benchmarks"]["valid"]
    assert group["majority"]["robust"]["n"] == len(answers)
    assert group["accuracy"]["robust"]["interval"] == "bootstrap"


# --- transformers -----------------------------------------------------------------------------------------------------


def media_of(root: Path, question: dict) -> Item:
    """A demo question's frames in the oracle's form: 56x56, at the size the model takes, decoded by PyAV."""
    import av

    item = Item.__new__(Item)
    item.video = question["data_type"] == "video"
    seconds = 0.0
    if item.video:
        with av.open(str(root / question["path"])) as container:
            rate = float(container.streams.video[0].average_rate)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 8
        seconds = 2 / rate
    else:
        frames = [np.asarray(Image.open(root / question["path"]).convert("RGB"))]
    item.frames = np.stack(frames)
    assert item.frames.shape[1:] == (56, 56, 3)
    item.grid = Grid(len(frame_pairs(len(frames))), 4, 4, seconds)
    return item


def prompt_of(question: dict, tokens: int) -> str:
    """The demo's prompt, spelt out."""
    pad = "video" if question["data_type"] == "video" else "image"
    text = question["problem"]
    if question["problem_type"] == "multiple choice":
        text += "Options:\n" + "".join(f"{option}\n" for option in question["options"])
    visual = "<|vision_start|>" + f"<|{pad}_pad|>" * tokens + "<|vision_end|>"
    return f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{visual}{text}<|im_end|>\n<|im_start|>assistant\n"


def greedy(model, ids: np.ndarray, item: Item, config, ends: list[int]) -> list[int]:
    """The best token each time, positions told at every step: the library's own continue after a video by another rule
    than the one the model was trained with."""
    t, h, w, *_ = item.grid
    positions, following = mrope_positions(ids, [item.grid], config)
    names = ("pixel_values_videos", "video_grid_thw") if item.video else ("pixel_values", "image_grid_thw")
    media = dict(zip(names, (torch.tensor(item.pixel_values()), torch.tensor([[t, h, w]])), strict=True))
    step = {"input_ids": torch.tensor(ids)[None], "position_ids": torch.tensor(positions).long()[:, None]} | media
    made: list[int] = []
    cache = None
    while len(made) < LONGEST and not set(made) & set(ends):
        out = model(**step, past_key_values=cache, use_cache=True)
        out.logits[..., list(config.visual_tokens)] = -torch.inf
        made.append(int(out.logits[0, -1].argmax()))
        cache = out.past_key_values
        position = torch.full((3, 1, 1), following + len(made) - 1)
        step = {"input_ids": torch.tensor([made[-1:]]), "position_ids": position}
    return made


def test_the_exported_folder_answers_alike_in_transformers(demo, exported, undisturbed):
    """Greedy decoding by the library, from the folder as it was written."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    config = read_config(exported)
    ours = {a["problem_id"]: a["replies"][0] for a in read(undisturbed)[1]}
    seen = set()
    for question in json.loads((demo.root / "valid.json").read_text()):
        item = media_of(demo.root, question)
        t, h, w, *_ = item.grid
        ids = np.asarray(tokenizer(prompt_of(question, t * h * w // 4))["input_ids"])
        with torch.no_grad():
            made = greedy(model, ids, item, config, ends)
        assert tokenizer.decode(made, skip_special_tokens=True) == ours[question["problem_id"]]["completion"]
        assert len(made) == ours[question["problem_id"]]["length"]
        seen.add(tuple(made))
    assert len(seen) >= 8  # the answers depend on what is asked and shown


# --- a new user's mistakes --------------------------------------------------------------------------------------------


def in_process(arguments: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and stderr; these end before anything is compiled."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    monkeypatch.setattr("jvr1.answering.use_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("jvr1.evaluate", run_name="__main__")
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere"], "nowhere does not exist; a model is an HF folder, a hub id"),
        (["--model=DATA"], "config.json does not exist; a model folder holds one"),
        (["--model=OTHER"], "model_type is 'llama'; jvr1 reads 'qwen2_5_vl'"),
        (["--suite=nosuch"], "there is no suite 'nosuch'; use vsibench, videommmu, mmvu, mvbench, tempcompass"),
        (["--suite=none.json"], "none.json does not exist"),
        (["--suite=vsibench"], "eval_vsibench.json does not exist"),
        (["--suite=empty.json"], "record 0: field 'problem' must be a non-empty string, got an empty string"),
        (["--data=nowhere"], "--data nowhere is no folder"),
        (["--out=FILE/out"], "is a file"),
        (["--variants=ordered,sideways"], "there is no variant 'sideways'"),
        (["--samples=4", "--temperature=0"], "would all be the same"),
        (["--frames=5"], "--frames is 5; use an even number"),
        (["--max-pixels=100"], "--max-pixels is 100; one visual token takes"),
        (["--max-tokens=0"], "--max-tokens is 0"),
        (["--batch=3"], "--batch=3 rows cannot be split 8 ways"),
        (["--mesh=fsdp"], "--mesh fsdp is not of the form data=1,fsdp=4,tensor=2"),
        (["--prompt=loud"], "argument --prompt: invalid choice: 'loud'"),
        (["--colour=red"], "unrecognized arguments: --colour=red; jvr1 evaluate --help lists what there is"),
        (["--workers=-1"], "--workers is -1; it must be at least 0"),
        (["--processes=2"], "--coordinator HOST:PORT, --processes N and --process I go together"),
        (["--config=none.py"], "config file none.py does not exist"),
    ],
)
def test_a_mistake_is_one_line(demo, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "empty.json").write_text(
        json.dumps([json.loads((demo.root / "valid.json").read_text())[0] | {"problem": ""}])
    )
    (tmp_path / "valid.json").write_bytes((demo.root / "valid.json").read_bytes())
    places = {"OTHER": tmp_path / "other", "FILE": tmp_path / "file", "DATA": tmp_path}
    given = [*arguments]
    for name, place in places.items():
        given = [a.replace(name, str(place)) for a in given]
    base = {"--model": demo.model, "--suite": "valid.json", "--data": tmp_path, "--out": tmp_path / "out"}
    given += [f"{name}={value}" for name, value in base.items() if not any(a.startswith(name + "=") for a in given)]
    code, stderr = in_process(given, monkeypatch, capsys)
    assert code == 2, stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert message in stderr
    assert not (tmp_path / "out" / "report.json").exists()


def test_media_that_are_all_missing_are_a_wrong_root(demo, tmp_path):
    (tmp_path / "valid.json").write_bytes((demo.root / "valid.json").read_bytes())
    process = start(demo, tmp_path / "out", f"--model={demo.model}", TINY, data=tmp_path)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "error: no question of valid.json can be asked (32 missing), the first: missing: " in stderr
