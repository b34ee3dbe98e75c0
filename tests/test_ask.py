"""`ask` as a new user runs it: the answers of an evaluation, the frames that were seen, its refusals."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import TINY

from jvr1.ask import labelled, options, placed, record_of
from jvr1.errors import UserError


def ask(demo, *arguments: object) -> tuple[str, str]:
    process = demo.start(["-mjvr1.ask"], [str(a) for a in arguments])
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout, stderr


def questions(demo, kind: str, problem_type: str) -> list[tuple[dict, str]]:
    """Of the evaluation, each with the answer to its ordered frames."""
    lines = (demo.evaluated() / "answers.jsonl").read_text().splitlines()
    answers = {a["problem_id"]: a["replies"][0]["completion"] for a in map(json.loads, lines)}
    records = json.loads((demo.root / "valid.json").read_text())
    chosen = [r for r in records if (r["data_type"], r["problem_type"]) == (kind, problem_type)]
    return [(record, answers[record["problem_id"]]) for record in chosen]


def test_a_video_is_answered_as_in_an_evaluation_and_its_frames_are_shown(demo, tmp_path):
    import av

    record, answer = questions(demo, "video", "multiple choice")[0]
    clip = demo.root / record["path"]
    arguments = (record["problem"], "--type=multiple-choice", "--options", *record["options"])
    frames = tmp_path / "frames"
    stdout, stderr = ask(demo, f"--model={demo.exported()}", TINY, "--video", clip, *arguments, "--frames-out", frames)
    assert stdout == answer + "\n"
    assert stderr == ""
    with av.open(str(clip)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    files = sorted(frames.iterdir())
    assert len(files) == 8
    for file, frame in zip(files, shown, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), frame)


def test_an_image_to_a_workdir_in_the_way_it_was_trained(demo, tmp_path):
    record, answer = questions(demo, "image", "free-form")[0]
    workdir, sheet = demo.finished("sft").workdir, tmp_path / "sheet.png"
    picture = demo.root / record["path"]
    stdout, _ = ask(demo, f"--model={workdir}", f"--image={picture}", record["problem"], f"--frames-out={sheet}")
    assert stdout == answer + "\n"
    assert Image.open(sheet).size[0] > 112


def test_text_alone_and_an_answer_that_is_cut(demo):
    """Drawn: the same seed the same answer, another seed another."""
    drawn = [
        ask(demo, f"--model={demo.model}", "which letter?", "--max-tokens=12", "--temperature=1", f"--seed={seed}")
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(stderr == "cut off after 12 tokens; --max-tokens allows more\n" for _, stderr in drawn)


# --- the command line -------------------------------------------------------------------------------------------------


def test_files_of_several_folders_have_one_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert placed(["a/b.png"]) == (str(tmp_path / "a"), ("b.png",))
    assert placed(["a/b.png", "a/c/d.png"]) == (str(tmp_path / "a"), ("b.png", "c/d.png"))
    assert placed(["../x.png", "a/b.png"]) == (str(tmp_path.parent), ("x.png", f"{tmp_path.name}/a/b.png"))
    assert placed(["gs://bucket/a/b.mp4"]) == ("gs://bucket/a", ("b.mp4",))
    assert placed(["gs://bucket/a/b.png", "gs://bucket/c.png"]) == ("gs://bucket", ("a/b.png", "c.png"))


def test_options_get_letters_where_they_have_none():
    assert labelled(["red", "a cat", "blue"]) == ("A. red", "B. a cat", "C. blue")
    assert labelled(["A. red", "B. blue"]) == ("A. red", "B. blue")
    assert labelled(["(A) red", "(B) blue"]) == ("(A) red", "(B) blue")
    # names that look like labels, and letters in another order than the options', are no letters of options
    assert labelled(["E. coli", "S. aureus"]) == ("A. E. coli", "B. S. aureus")
    assert labelled(["B. blue", "A. red"]) == ("A. B. blue", "B. A. red")
    assert labelled(["A", "B", "C"]) == ("A", "B", "C")
    assert labelled([str(n) for n in range(26)])[-1] == "Z. 25"
    with pytest.raises(UserError, match="has 27 options; a letter names one, so there can be 26"):
        labelled([str(n) for n in range(27)])


def test_several_images_are_one_question():
    given = ["--model=m", "--image=/a/b.png", "--image=/a/c.png", "what differs?", "--type=free-form"]
    record, root = record_of(options().parse_args(given))
    assert (record.data_type, record.path, root) == ("image", ("b.png", "c.png"), "/a")


VIDEO = ["--video=CLIP", "what happens?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*VIDEO, "--model=nowhere"], "nowhere does not exist; a model is an HF folder, a hub id"),
        ([*VIDEO, "--model=DATA"], "config.json does not exist; a model folder holds one"),
        ([*VIDEO, "--model=OTHER"], "model_type is 'llama'; jvr1 reads 'qwen2_5_vl'"),
        (["--video=DATA/none.mp4", "what?"], "the question cannot be asked: missing: "),
        (["--video=DATA/text.mp4", "what?"], "the question cannot be asked: not-a-video: "),
        (["--video=DATA/cut.mp4", "what?"], "the question cannot be asked: truncated: "),
        (["--video=DATA/empty.mp4", "what?"], "empty.mp4 has no bytes"),
        (["--video=DATA", "what?"], "the question cannot be asked: not-a-file: "),
        (["--image=DATA/text.mp4", "what?"], "the question cannot be asked: not-an-image: "),
        (["--video=CLIP", ""], "the question is empty"),
        (["--video=CLIP", "  "], "the question is empty"),
        (["--video=CLIP"], "the question is empty"),
        (["--video=CLIP", "what\udcff?"], "field 'QUESTION' holds \\udcff, half of a character"),
        ([*VIDEO, "--image=CLIP"], "--video and --image do not go together"),
        ([*VIDEO, "--options", "red", "blue"], "--type multiple-choice and --options go together"),
        ([*VIDEO, "--type=multiple-choice"], "--type multiple-choice and --options go together"),
        ([*VIDEO, "--type=essay"], "invalid choice: 'essay'"),
        ([*VIDEO, "--colour=red"], "unrecognized arguments: --colour=red; jvr1 ask --help"),
        (["what?", "--frames-out=frames"], "--frames-out has no frames to show"),
        ([*VIDEO, "--frames-out=CLIP/frames"], "cannot be written"),
        ([*VIDEO, "--frames=5"], "--frames is 5; use an even number"),
        ([*VIDEO, "--temperature=-1"], "temperature >= 0"),
        ([*VIDEO, "--max-tokens=0"], "--max-tokens is 0"),
        ([*VIDEO, "--mesh=fsdp"], "--mesh fsdp is not of the form"),
    ],
)
def test_a_mistake_is_one_line(demo, tmp_path, monkeypatch, capsys, arguments, message):
    clip = next((demo.root / "media").rglob("*.mp4"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:900])
    (tmp_path / "empty.mp4").write_bytes(b"")
    given = list(arguments)
    for name, place in {"OTHER": tmp_path / "other", "DATA": tmp_path, "CLIP": clip}.items():
        given = [a.replace(name, str(place)) for a in given]
    if not any(a.startswith("--model=") for a in given):
        given.append(f"--model={demo.model}")
    monkeypatch.setattr(sys, "argv", ["ask", *given])
    monkeypatch.setattr("jvr1.opening.places.use_compilation_cache", lambda: None)
    monkeypatch.delitem(sys.modules, "jvr1.ask")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("jvr1.ask", run_name="__main__")
    stdout, stderr = capsys.readouterr()
    assert (end.value.code, stdout) == (2, "")
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert message in stderr
    assert not Path("frames").exists()
