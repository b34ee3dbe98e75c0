"""A supervised step counted as one, and what is suggested where a model is too large for a card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import pytest
from step_shapes import SMALL, small_config

from jvr1 import config as settings
from jvr1.chips import chip_named
from jvr1.commands import plan as tool
from jvr1.commands.plan import main as plan_command
from jvr1.demo.tiny_model import write_tiny_model
from jvr1.model.families import published
from jvr1.plan.planning import Suggestion, changed, largest_bucket, make_plan, named_model, stage_of, suggestions
from jvr1.plan.programs import batch_shapes, chip_bytes, lower_phase, step_shapes
from jvr1.plan.work import useful_flops
from jvr1.sharding import make_mesh
from jvr1.train.flops import sft_flops, trained_of

CONFIGS = Path(__file__).parents[2] / "configs"
ONE = {"mesh.data": 1, "mesh.fsdp": 1}


def plan_of(name: str, size: str, chip: str, stage: str = "rl", **changes):
    config = changed(settings.from_file(str(CONFIGS / f"{name}.py")), ONE | changes)
    return make_plan(config, published(size), chip_named(chip), stage=stage)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("configs/sft_7b.py", "sft"), ("sft_qwen3vl_8b", "sft"), ("configs/tiny.py:sft", "sft"),
        ("configs/tiny.py:grounding_sft", "sft"), ("configs/tgrpo_7b.py", "rl"), ("runs/sft/tgrpo.py", "rl"),
        ("softness.py", "rl"), ("configs/tiny.py:rl", "rl"),
    ],
)  # fmt: skip
def test_a_config_s_name_says_what_it_is_for(name, stage):
    assert stage_of(name) == stage


def test_a_supervised_step_has_no_rollout_no_reference_and_no_group():
    plan = plan_of("sft_7b", "3b", "h200", "sft")
    for phases in plan.memory.values():
        assert list(phases) == ["gradients", "update"]
        assert not {"reference", "generation weights", "prefix", "cache", "rollouts"} & set(phases["gradients"])
    assert list(plan.work) == ["gradients", "update"]
    rl = {"rl.group": 16, "rl.shuffled": 8, "rl.beta": 0.5, "rl.packing": 2, "rl.updates": 3, "rl.slots": 1}
    other = plan_of("sft_7b", "3b", "h200", "sft", **rl)
    assert (other.peak(), other.work) == (plan.peak(), plan.work)  # what RL sets changes nothing


def test_its_operations_are_those_that_training_logs():
    """Of one chip; `again` is what remat computes twice, which useful operations leave out."""
    for on_prompt in (False, True):
        plan = plan_of("sft_7b", "3b", "h200", "sft", **{"sft.loss_on_prompt": on_prompt, "model.remat": "none"})
        step, config = plan.step, plan.step.config
        bucket = largest_bucket(settings.buckets(config))
        trained, micro = trained_of(step.params, step.state.params), config.batch.micro
        logged = sft_flops(step.model, bucket, micro, bucket.completion, on_prompt=on_prompt, trained=trained)
        assert useful_flops(step, bucket) == {"gradients": pytest.approx(logged), "update": 0.0}
        counted = plan.work["gradients"].flops / config.batch.per_step
        assert logged < counted < 1.2 * logged  # the head's logits are made again in any case


def test_its_programs_take_what_is_counted():
    """Compiled for this machine: arguments of the gradients are parameters, their sum, a microbatch and a number."""
    config = small_config(**{"mesh.fsdp": 1})
    step = step_shapes(config, SMALL, make_mesh({"fsdp": 1}, jax.devices()[:1]), stage="sft")
    bucket = largest_bucket(settings.buckets(config))
    (gradients,) = lower_phase(step, "gradients", bucket)
    taken = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(gradients.lowered.in_avals))
    assert taken == 2 * chip_bytes(step.total) + chip_bytes(batch_shapes(step, bucket)) + 4
    (_,) = lower_phase(step, "update", bucket)


@pytest.mark.parametrize(("config", "family"), [("tiny:rl", "qwen2_5_vl"), ("tiny_qwen3vl:rl", "qwen3_vl")])
def test_questions_of_text_alone_are_counted_too(tmp_path, config, family):
    """Their bucket has no window, for which the tower keeps nothing."""
    write_tiny_model(tmp_path, 0, family)
    plan = make_plan(changed(settings.from_file(config), ONE), named_model(str(tmp_path)), chip_named("rtx3090"))
    (text,) = [bucket for bucket in plan.memory if bucket.kind == "text"]
    assert plan.memory[text]["gradients"]["kept"] > 0
    assert plan.fits


def test_the_command_counts_a_supervised_config_as_one(capsys):
    arguments = ["--config", "sft_7b", "--mesh", "fsdp=8", "--chip", "h100-80", "--config.batch.per_step=4"]
    assert plan_command(arguments) == 0
    said = capsys.readouterr().out
    assert "counted as supervised learning (train-sft): no rollout, no reference, no group" in said
    assert "generation" not in said
    assert "answers of 768 tokens" in said
    plan_command([*arguments, "--stage", "rl"])
    assert "keys and values" in capsys.readouterr().out


def test_lora_is_suggested_where_a_full_update_does_not_fit():
    plan = plan_of("tgrpo_7b", "7b", "rtx6000-ada")
    assert not plan.fits
    best = suggestions(plan)[0]
    assert best.plan.fits
    assert best.alters
    assert best.plan.chips == 1
    assert best.changes["lora.rank"] == 32
    batch = best.plan.step.config.batch
    assert batch.micro * batch.per_step == 32  # the same prompts
    assert [one.changes.get("lora.rank") for one in suggestions(plan)].count(32) == 1


def test_the_same_prompts_in_smaller_parts_are_suggested():
    plan = plan_of("tgrpo_7b_lora", "7b", "rtx5090")
    assert not plan.fits
    best = next(one for one in suggestions(plan) if "batch.per_step" in one.changes)
    assert best.plan.fits
    assert not best.alters
    assert best.plan.step.config.batch.micro * best.plan.step.config.batch.per_step == 32
    assert "lora.rank" not in best.changes


def test_a_supervised_run_gets_suggestions_of_its_own():
    plan = plan_of("sft_7b", "7b", "rtx4090", "sft")
    for one in suggestions(plan):
        assert one.plan.step.stage == "sft"
        assert not [name for name in one.changes if name.startswith("rl.")]
    assert suggestions(plan)[0].changes["lora.rank"] == 32


def test_the_table_counts_the_stage(capsys, monkeypatch):
    """By the config's name, or as told."""
    monkeypatch.setattr(tool, "TABLE_CHIPS", ("h100-80",))

    def table(*arguments: str) -> list[str]:
        plan_command(["--config", "sft_7b", "--table", *arguments])
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 7b")]

    (supervised,), (learned,) = table(), table("--stage", "rl")
    assert supervised != learned
    assert "decode_tensor" not in supervised
    _, _, _, chips, mesh, memory, phase, seconds, _, _ = (cell.strip() for cell in supervised.split("|"))
    fsdp = int(mesh.removeprefix("fsdp="))
    assert fsdp == int(chips)
    plan = plan_of("sft_7b", "7b", "h100-80", "sft", **{"mesh.fsdp": fsdp, "batch.micro": fsdp})
    assert memory == f"{plan.peak()[0] / 2**30:.1f} of {plan.chip.memory / 2**30:.1f}"
    assert (phase, seconds) == (plan.peak()[1], f"{plan.seconds:.0f}")


def test_other_prompts_a_step_are_another_training():
    plan = plan_of("sft_7b", "7b", "h100-80", "sft", **{"batch.micro": 4, "batch.per_step": 2})
    for changes, alters in (
        ({"batch.micro": 2}, True), ({"batch.micro": 2, "batch.per_step": 4}, False), ({"model.remat": "dots"}, False),
        ({"batch.per_step": 1}, True), ({"lora.rank": 8}, True),
    ):  # fmt: skip
        config = changed(plan.step.config, changes)
        other = replace(plan, step=replace(plan.step, config=config))
        assert Suggestion(changes, other, 8).alters == alters, changes
    for one in suggestions(plan):
        batch = one.plan.step.config.batch
        assert one.alters or batch.micro * batch.per_step == 8, one.changes


def test_best_of_n_is_said_to_be_counted_as_rl(capsys):
    plan_command(["--config", "bestofn_7b", "--mesh", "fsdp=8", "--chip", "v5p"])
    assert "counted as a step of train-rl; train-bestofn samples alike" in capsys.readouterr().out
