"""jvr1 plan as it is called: fits, does not and says what to turn, mistakes in one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from jvr1 import config as settings
from jvr1.chips import CHIPS, GIB, chip_named
from jvr1.commands import plan as tool
from jvr1.errors import UserError, run_main
from jvr1.model.families import published, to_hf
from jvr1.plan.planning import changed, faster, make_plan, named_model, read_mesh, smallest, suggestions
from jvr1.plan.programs import PHASES
from jvr1.plan.work import decode_steps, mean_read

ROOT = Path(__file__).parents[2]
TGRPO = str(ROOT / "configs" / "tgrpo_7b.py")


def plan_7b(chip: str, **changes):
    config = changed(settings.from_file(TGRPO), {"mesh.fsdp": 8, "mesh.decode_tensor": 1} | changes)
    return make_plan(config, published("7b"), chip_named(chip))


def test_the_7b_on_eight_v5p(capsys):
    code = tool.main(["--config", TGRPO, "--mesh", "data=1,fsdp=8", "--chip", "v5p"])
    text = capsys.readouterr().out
    assert code == 0
    assert "8.29 B parameters on 8 x v5p, mesh data=1 fsdp=8 tensor=1; generation 2 x tensor=4" in text
    assert re.search(r"parameters +(3\.86 +){4}3\.86\n", text)
    assert re.search(r"generation weights +3\.86 +3\.86", text)
    assert text.count("kept for the backward pass") == 7  # a line a bucket
    assert re.search(r"fits: \d+\.\d GiB left of 95\.74 at the peak", text)
    peak = re.search(r"peak +([\d. ]+)\n", text)
    assert peak is not None
    assert len(peak[1].split()) == 5


def test_what_does_not_fit_says_by_how_much_and_what_to_turn(capsys):
    code = tool.main(["--config", TGRPO, "--mesh", "data=1,fsdp=8", "--chip", "h100-80", "--model", "72b"])
    text = capsys.readouterr().out
    assert code == 1
    over = re.search(r"does not fit: ([\d.]+) GiB too much of 74\.51 at the peak, (\w+) of video-F8", text)
    assert over is not None
    turned = text[text.index("which setting to turn") :].splitlines()[1:]
    assert any("mesh.fsdp=16" in line for line in turned)
    assert "by itself JAX takes 75% of a GPU's memory" in turned[-1]


def test_suggestions_are_counted_anew_and_ranked():
    plan = plan_7b("v6e")
    found = suggestions(plan)
    assert found
    for one in found:
        again = make_plan(changed(plan.step.config, one.changes), plan.step.model, plan.chip)
        assert again.peak() == one.plan.peak()
        assert one.plan.peak()[0] < plan.peak()[0]
    assert [one.plan.fits for one in found] == sorted([one.plan.fits for one in found], reverse=True)
    fitting = [one.alters for one in found if one.plan.fits]
    assert fitting == sorted(fitting)  # first what leaves the training as it is


def test_faster_settings_fit_and_leave_the_training_as_it_is():
    plan = plan_7b("h100-80")
    found = faster(plan)
    assert found
    assert [one.plan.expected for one in found] == sorted(one.plan.expected for one in found)
    for one in found[:3]:
        again = make_plan(changed(plan.step.config, one.changes), plan.step.model, plan.chip)
        assert again.fits
        assert again.expected == one.plan.expected < plan.expected
        assert not one.alters
        batch = again.step.config.batch
        assert batch.micro * batch.per_step == 32  # the same prompts
    assert found[0].changes["mesh.decode_tensor"] == 4  # as many as there are key and value heads


def test_decoding_lasts_as_long_as_the_longest_and_as_prompts_wait():
    """768 tokens of a ring read in parts of 96, 192, 384 and 768: 96 x 96 + 96 x 192 + 192 x 384 + 384 x 768."""
    assert mean_read(768, 768, "xla") == (96 * 96 + 96 * 192 + 192 * 384 + 384 * 768) / 768
    assert mean_read(768, 96, "splash") == 96
    assert mean_read(768, 768, "cudnn") == 128 * (1 + 2 + 3 + 4 + 5 + 6) / 6  # blocks of 128
    assert mean_read(768, 192, "cudnn") == (128 * 128 + 64 * 256) / 192
    of_all, of_some = (plan_7b("h100-80", **{"rl.slots": slots}).step for slots in (0, 8))
    assert decode_steps(of_all, 768, 385) == 768
    assert decode_steps(of_some, 768, 385) == 768 + 3 * 385


def test_the_weights_of_generation_are_split_where_they_do_not_fit():
    """Whole 7B weights beside training's state leave a v6e chip no room; split over 4 chips they do."""
    whole, split = plan_7b("v6e"), plan_7b("v6e", **{"mesh.decode_tensor": 4})
    bucket = whole.peak()[2]
    before, after = (sum(plan.memory[bucket]["generation"].values()) for plan in (whole, split))
    assert before - after == pytest.approx(0.75 * 15.45 * GIB, rel=0.2)
    assert not whole.fits


def test_smallest_grows_until_it_fits():
    config = settings.from_file(TGRPO)
    plan = smallest(config, published("7b"), chip_named("v5p"), CHIPS["v5p"].sizes)
    assert plan is not None
    assert plan.fits
    fewer = [size for size in CHIPS["v5p"].sizes if size < plan.chips]
    assert smallest(config, published("7b"), chip_named("v5p"), fewer) is None


def test_more_chips_take_less_time_and_memory():
    few, many = plan_7b("h200"), plan_7b("h200", **{"mesh.fsdp": 16, "batch.micro": 16, "batch.per_step": 2})
    assert many.peak()[0] < few.peak()[0]
    assert many.seconds < few.seconds  # the same 32 prompts


def test_shorter_completions_take_less_time():
    config = changed(settings.from_file(TGRPO), {"mesh.fsdp": 8})
    times = [make_plan(config, published("7b"), chip_named("h200"), tokens).work for tokens in (None, 384, 768)]
    assert times[0] == times[2]
    assert times[1]["decode"].flops < 0.51 * times[0]["decode"].flops


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--mesh", "fsdp=8", "--chip", "b300"],
            "no chip 'b300'; there are v4, v5e, v5p, v6e, v7x, rtx3090, rtx4090, rtx5090, a6000, "
            "rtx6000-ada, l40s, a100-40",
        ),
        (["--mesh", "fsdp:8", "--chip", "v5p"], "--mesh 'fsdp:8' cannot be read; write for example"),
        (["--mesh", "model=8", "--chip", "v5p"], "axis 'model' is unknown; the axes are data, fsdp, tensor"),
        (["--mesh", "fsdp=0", "--chip", "v5p"], "fsdp=0 must be at least 1"),
        (["--mesh", "fsdp=2,tensor=8", "--chip", "v5p"], r"tensor=8 cannot split 28 query heads"),
        (["--mesh", "fsdp=6", "--chip", "v5p"], "batch.micro=8 rows cannot be split 6 ways"),
        (["--mesh", "fsdp=8,decode_tensor=3", "--chip", "v5p"], "decode_tensor=3 cannot split 8 devices"),
        (["--mesh", "fsdp=8", "--chip", "l40s", "--compile"], "no compiler here for l40s; it is counted"),
        (
            ["--mesh", "fsdp=1", "--chip", "v5p", "--compile"],
            "1 chips make no slice to compile for; slices of v5p have 4",
        ),
        (["--mesh", "fsdp=8", "--chip", "v5p", "--model", "14b"], "model '14b' is no folder and names no size"),
        (["--mesh", "fsdp=8"], "--mesh data=N,fsdp=N and --chip NAME are needed, or --table"),
        (
            ["--mesh", "fsdp=8", "--chip", "v5p", "--config.batch.mikro=8"],
            "there is no setting 'batch.mikro'; did you mean 'batch.micro'",
        ),
        (["--mesh", "fsdp=8", "--chip", "v5p", "--remat", "full"], "Unknown command line flag 'remat'"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["jvr1 plan", "--config", TGRPO, *arguments])
    with pytest.raises(SystemExit) as end:
        run_main(tool.main)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_model_is_the_one_the_config_names(tmp_path):
    assert named_model("Video-R1/Qwen2.5-VL-7B-COT-SFT") == published("7b")
    assert named_model("Qwen/Qwen2.5-VL-72B-Instruct") == published("72b")
    with pytest.raises(UserError, match="names no size"):
        named_model("Qwen/Qwen2.5-14B")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(published("3b"), "bfloat16")))
    (tmp_path / "model.safetensors").touch()
    assert named_model(str(tmp_path)) == published("3b")


def test_counts_beside_compiled_figures_as_a_table(tmp_path, capsys):
    said = {
        "config": "configs/tgrpo_7b.py", "settings": [], "model": "7b", "topology": "v5p:2x2x2",
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1}, "bucket": "video-F8-W14-P1536-C768",
        "phases": {
            "update": {"peak": 20 * GIB, "products": 5e11, "seconds": 9, "collectives": {"all-reduce": (1, 2, 3e9)}}
        },
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(said))
    assert tool.main(["--against", f"{tmp_path}/x.json"]) == 0
    _, _, line, *_, moved = capsys.readouterr().out.splitlines()
    assert moved == "| 7b | v5p:2x2x2 | update | 9 | all-reduce: 2, 3.00 |"
    assert re.fullmatch(
        r"\| 7b \| v5p:2x2x2 \| fsdp=8 \| update \| 17\.\d\d \| 20\.00 \| -1[23]\.\d% \| 0\.0 \| 0\.5 \|", line
    ), line


def test_the_count_is_within_15_percent_of_the_compilers():
    """What tools/compile_tpu.py and compile_gpu.py wrote; compiled anew in test_compile_tpu.py. For GPUs the count of
    whole layers that are gathered is too high: 18% where they are as large as the 72B's."""
    files = sorted((ROOT / "docs" / "compiled").glob("*.json"))
    seen = []
    for file in files:
        said = json.loads(file.read_text())
        for phase, counted, _ in tool.beside(said):
            compiled, most = said["phases"][phase]["peak"], 0.18 if said["topology"] == "h100-80:64" else 0.15
            assert counted == pytest.approx(compiled, rel=most), (file.name, phase)
        assert list(said["phases"]) == list(PHASES)
        seen.append((said["model"], said["topology"]))
    assert {("3b", "v5p:2x2x1"), ("3b", "v6e:4x4"), ("7b", "v5p:2x2x2"), ("7b", "v6e:4x4")} <= set(seen)
    assert {topology.partition(":")[0] for _, topology in seen} >= {"a100-80", "h100-80", "h200", "b200"}


def test_a_mesh_is_read():
    assert read_mesh("fsdp=8,decode_tensor=4") == {"data": 1, "fsdp": 8, "tensor": 1, "decode_tensor": 4}
