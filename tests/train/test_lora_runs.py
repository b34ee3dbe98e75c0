"""Training with adapters: only they change, KL is measured from the base, a run stops, goes on and is a model."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from oracle import random_model
from runs import Demo, scalars, without_times
from step_cases import make_rows, make_scores
from train.test_microbatches import CONFIG

from jvr1.data.batch import stack_examples
from jvr1.errors import UserError
from jvr1.model.lora import ADAPTERS, LoRAConfig, without_adapters
from jvr1.model.vision_language import merge
from jvr1.opening.models import LORA, open_base, open_model, save_model
from jvr1.optimizers.config import OptimizerConfig
from jvr1.rl import tgrpo
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.losses import token_scores
from jvr1.train.optimizer import make_optimizer, partition
from jvr1.train.reference import open_reference
from jvr1.train.state import apply_gradients, init_state
from jvr1.train.steps import PolicyBatch, make_advantages, make_policy_gradients, make_reference_scores
from jvr1.train.trees import zeros_like

ADAPTED = LoRAConfig(4, 8.0, ("text/layers/.*", "visual/blocks/qkv"))


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def one_device():
    return make_mesh({"data": 1}, jax.devices()[:1])


# --- a step


@pytest.fixture(scope="module")
def stepped():
    """Two updates of adapters: base before and after, adapters before and after, state, statistics of the first."""
    graphdef, params = random_model(CONFIG, seed=3, lora=ADAPTED)
    params = jax.device_put(params, param_shardings(params, one_device()))
    trainable, frozen = partition(params, (r"visual/.*",), ADAPTERS)
    before = jax.tree.map(np.array, (trainable, frozen))
    algorithm, (scores, ids), arrays = tgrpo.TGRPOConfig(), make_scores(), stack_examples(make_rows(CONFIG))
    reference = open_reference(graphdef, params, "float32", adapters=True)
    score = make_reference_scores(reference.graphdef, one_device(), temperature=0.9, chunk=4)
    gradients = make_policy_gradients(
        graphdef, algorithm, param_shardings(trainable, one_device()), temperature=0.9, chunk=4
    )
    result, mask, denominator, _ = make_advantages(algorithm, one_device())(scores, scores.length, ids)
    tx = make_optimizer(OptimizerConfig(learning_rate=0.01, weight_decay=0.1), trainable)
    state = jax.jit(lambda p: init_state(tx, p))(trainable)
    apply = jax.jit(lambda state, total: apply_gradients(tx, state, total)[0])
    first = None
    for _ in range(2):
        zero = jnp.zeros(ids.shape, jnp.float32)
        anchor = score(reference.params, arrays, ids)
        batch = PolicyBatch(arrays, ids, anchor, zero, zero, np.bool_(True), result.advantage, mask, denominator)
        total, _, statistics, _, logprobs = gradients(state.params, frozen, zeros_like(trainable), batch)
        first = first or (jax.device_get(statistics), np.asarray(logprobs), jax.device_get(total))
        state = apply(state, total)
    base_graph, base = without_adapters(graphdef, params)
    anchors = jax.jit(
        lambda base, arrays, ids: token_scores(
            merge(base_graph, base).head_kernel(),
            merge(base_graph, base).complete(arrays.prompt, arrays.visual, ids), ids, temperature=0.9, chunk=4,
        ).logprobs
    )(base, arrays, ids)  # fmt: skip
    return before, (state.params, frozen), state, first, (np.asarray(anchors), np.asarray(mask), algorithm)


def test_gradients_and_moments_are_of_adapters_only(stepped):
    _, (adapters, _), state, (_, _, total), _ = stepped
    want = {f"text/layers/{m}/lora_{x}" for m in ("q", "k", "v", "o", "mlp/gate", "mlp/up", "mlp/down") for x in "ab"}
    assert set(named(adapters)) == set(named(total)) == want  # of the vision tower's, optimizer.freeze took them out
    adam = next(s for s in state.optimizer if hasattr(s, "mu"))
    assert set(named(adam.mu)) == set(named(adam.nu)) == want
    count = sum(x.size for x in jax.tree.leaves(adapters))
    assert sum(x.size for x in jax.tree.leaves(state.optimizer)) - 2 * count <= 4  # counters
    assert all(np.linalg.norm(x) > 0 for x in named(total).values())


def test_the_base_stays_to_the_bit_and_all_adapters_move(stepped):
    (adapters, base), (new, frozen), *_ = stepped
    for name, x in named(base).items():
        np.testing.assert_array_equal(named(frozen)[name], x)
    assert all(not np.array_equal(named(new)[name], x) for name, x in named(adapters).items())


def test_kl_is_measured_from_the_base(stepped):
    """k3 between what the step scored and what the base gives, by its definition."""
    _, _, _, (statistics, logprobs, _), (anchors, mask, algorithm) = stepped
    x = np.clip(anchors - logprobs, -algorithm.kl_clip, algorithm.kl_clip)
    want = ((np.exp(x) - x - 1) * mask).sum() / mask.sum()
    assert want > 1e-3
    assert float(statistics["kl_token"].total) / float(statistics["kl_token"].weight) == pytest.approx(want, rel=1e-3)


# --- models with adapters on disk


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A workdir's forms of a model with adapters, and its parameters."""
    root = tmp_path_factory.mktemp("stored")
    _, params = random_model(CONFIG, seed=4, lora=ADAPTED)
    save_model(root / "converted", params, CONFIG, {}, ADAPTED)
    (root / "run" / "model").mkdir(parents=True)
    for name in ("config.json", LORA):
        (root / "run" / "model" / name).write_bytes((root / "converted" / name).read_bytes())
    with ocp.CheckpointManager(root / "run" / "checkpoints") as manager:
        manager.save(3, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    return root, params


@pytest.mark.parametrize("form", ["converted", "run", "run/checkpoints/3"])
def test_a_model_opens_with_its_adapters(stored, form):
    root, params = stored
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = open_model(root / form, mesh, param_dtype="bfloat16")
    assert model.lora == ADAPTED
    for name, x in named(params).items():
        want = x if "lora_" in name else x.astype("bfloat16")  # adapters keep their own
        np.testing.assert_array_equal(named(model.params)[name], want)
    assert jax.tree.map(lambda x: x.sharding, model.params) == param_shardings(params, mesh)


@functools.cache
def opened(source, lora, seed=0):
    return open_base(
        source, one_device(), lora=lora, seed=seed, dtype=jnp.float32, param_dtype=jnp.float32, remat="none"
    )


def scored(model) -> np.ndarray:
    arrays, ids = stack_examples(make_rows(CONFIG)), make_scores()[1]
    score = jax.jit(lambda p, a, ids: merge(model.graphdef, p).complete(a.prompt, a.visual, ids))
    return np.asarray(score(model.params, arrays, ids))


def test_a_run_from_a_model_with_adapters_starts_from_their_sum(stored):
    """With new adapters beside it or none, it gives what that model gave."""
    root, _ = stored
    before = open_model(root / "run", one_device(), dtype=jnp.float32, param_dtype=jnp.float32)
    plain, again = opened(root / "run", None), opened(root / "run", replace(ADAPTED, rank=2))
    assert plain.lora is None
    assert not any("lora_" in name for name in named(plain.params))
    assert {x.shape[-1] for name, x in named(again.params).items() if name.endswith("lora_a")} == {2}
    want = scored(before)
    for model in (plain, again):
        np.testing.assert_allclose(scored(model), want, atol=2e-4 * np.abs(want).max())
    _, base = without_adapters(before.graphdef, before.params)
    without = replace(plain, params=base)
    assert np.abs(scored(without) - want).max() > 0.1 * np.abs(want).max()


def test_a_description_that_cannot_be_read_is_said(stored, tmp_path):
    root, _ = stored
    for text in ("{", "[]", '{"rank": 4}', '{"rank": 4, "alpha": 8.0, "patterns": [".*"], "more": 1}'):
        (tmp_path / "config.json").write_bytes((root / "converted" / "config.json").read_bytes())
        (tmp_path / LORA).write_text(text)
        with pytest.raises(UserError, match=r"lora\.json does not describe adapters: "):
            open_model(tmp_path, one_device())


# --- a run

LORA_RUN = {
    "data__max_dropped": 1.0, "data__buckets": (("video", 4, 1, 66, 6),),
    "lora__rank": 4, "lora__alpha": 8.0, "lora__patterns": "('text/layers/.*','visual/blocks/(qkv|proj)')",
    "train__validate_every": 8, "optimizer__warmup_steps": 0, "optimizer__learning_rate": 3e-3,
}  # fmt: skip
STEPS = 8


def finish(process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def run(demo: Demo, tmp_path_factory):
    """The workdir of a run that was stopped half way and went on, and that of one that nothing disturbed."""
    root = tmp_path_factory.mktemp("lora_runs")
    finish(demo.main("rl", root / "stopped", train__steps=STEPS // 2, **LORA_RUN))
    out = finish(demo.main("rl", root / "stopped", train__steps=STEPS, **LORA_RUN))
    assert f"resumed at step {STEPS // 2} " in out
    finish(demo.main("rl", root / "whole", train__steps=STEPS, **LORA_RUN))
    return root


def test_a_stopped_run_goes_on_to_the_same_numbers(run):
    got, want = (without_times(scalars(run / name)) for name in ("stopped", "whole"))
    assert [step for step, _ in want["loss"]] == list(range(1, STEPS + 1))
    assert got == want


def test_the_run_departs_from_its_base_and_kl_says_so(run):
    logged = scalars(run / "whole")
    kl = [value for _, value in logged["loss/kl"]]
    assert abs(kl[0]) < 1e-6  # before the first update it is the base
    assert kl[-1] > 1e-5
    assert max(value for _, value in logged["loss/logprob_gap_max"]) < 1e-3  # sampled as it is scored: with adapters


def test_its_checkpoint_holds_the_base_as_it_was_and_moments_of_adapters_only(demo, run):
    base = named(open_model(demo.model, one_device(), param_dtype="float32").params)
    model = open_model(run / "stopped", one_device(), param_dtype="float32")
    assert model.lora == LoRAConfig(4, 8.0, ("text/layers/.*", "visual/blocks/(qkv|proj)"))
    after = named(model.params)
    adapters = {name for name in after if "lora_" in name}
    assert set(after) - adapters == set(base)
    assert all(np.array_equal(after[name], base[name]) for name in base)
    assert all(np.any(after[name]) for name in adapters)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(run / "stopped" / "checkpoints" / str(STEPS) / "optimizer").item_metadata.tree
    is_leaf = lambda x: hasattr(x, "shape")  # noqa: E731
    moments = [x for x in jax.tree.leaves(tree, is_leaf=is_leaf) if tuple(x.shape)]
    assert len(moments) == 2 * len(adapters)
    assert sum(np.prod(x.shape) for x in moments) == 2 * sum(after[name].size for name in adapters)


def test_its_workdir_evaluates_as_its_validation_did(demo, run, tmp_path):
    arguments = [
        "--suite=valid.json",
        "--variants=ordered,shuffled",
        f"--data={demo.root}",
        f"--out={tmp_path / 'out'}",
        f"--model={run / 'stopped'}",
    ]
    finish(demo.start(["-mjvr1.evaluate"], arguments))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    logged = scalars(run / "whole")
    asked = {tag.split("/")[1] for tag in logged if tag.startswith("valid/")}  # about clips: it has no other bucket
    assert asked & set(report["tasks"]) >= {"order", "motion"}
    for task in asked & set(report["tasks"]):
        summary = report["tasks"][task]
        for name in ("ordered", "shuffled", "format", "length"):
            if summary[name] is not None:
                assert dict(logged[f"valid/{task}/{name}"])[STEPS] == pytest.approx(summary[name], rel=1e-6)


def test_its_peft_folder_names_the_model_it_began_with(demo, run, tmp_path):
    finish(demo.start(["-mjvr1", "export"], [str(run / "stopped"), str(tmp_path / "peft"), "--peft"]))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(demo.model), 4, 8.0)


def test_sft_trains_adapters_too_and_from_the_run_before(demo, run, tmp_path):
    settings = {"lora__rank": 2, "train__steps": 2, "train__validate_every": 0, "model__source": run / "stopped"}
    finish(demo.main("sft", tmp_path / "sft", **settings))
    losses = [value for _, value in scalars(tmp_path / "sft")["loss"]]
    assert len(losses) == 2
    model = open_model(tmp_path / "sft", one_device(), param_dtype="float32")
    merged = open_base(
        run / "stopped", one_device(), lora=None, seed=0, dtype=jnp.float32, param_dtype=jnp.float32, remat="none"
    )
    for name, x in named(merged.params).items():
        np.testing.assert_allclose(named(model.params)[name], x, atol=1e-6)
    assert model.lora == LoRAConfig(2, 32.0, ("text/layers/.*",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora__patterns": "text/layers/qq"}, "lora.patterns: 'text/layers/qq' matches no linear map; they are text/"),
        ({"optimizer__freeze": ".*/lora_."}, "matches all that is trained; nothing is left to train"),
        ({"lora__rank": 5}, "lora.rank: 4 -> 5"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(demo, run, changes, message):
    process = demo.main("rl", run / "stopped", train__steps=STEPS, **(LORA_RUN | changes))
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
