"""What docs/extending.md shows is so: its diffs apply to the code as it is and do what it says."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import REPOSITORY, scalars
from scipy.stats import kendalltau

from jvr1 import config, train_bestofn
from jvr1.config_page import settings_table
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.setting import settings_of

TEXT = (REPOSITORY / "docs" / "extending.md").read_text()


def changed(name: str, folder: Path) -> Path:
    """A copy of a file in `folder`, with the page's diff of it."""
    (diff,) = re.findall(rf"```diff\n(--- a/{name}\n.*?)```", TEXT, re.DOTALL)
    copy = folder / name
    copy.parent.mkdir(parents=True)
    copy.write_text((REPOSITORY / name).read_text())
    done = subprocess.run(["git", "apply"], input=diff, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert copy.read_text() != (REPOSITORY / name).read_text()
    return copy


def loaded(file: Path, patch: pytest.MonkeyPatch) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"changed_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_main_it_shows_is_the_one_there_is():
    assert f"```python\n{inspect.getsource(train_bestofn.main)}```" in TEXT


def test_its_objective_is_one_file_and_the_same_in_the_package(tmp_path, monkeypatch):
    """What the page shows is what `tests/rl/test_objectives.py` compares with torch, by both ways to name it."""
    own = (REPOSITORY / "tests" / "rl" / "own_objective.py").read_text()
    (shown,) = re.findall(r"```python\n# my_objectives.py.*?\n(.*?)```", TEXT, re.DOTALL)
    assert own.endswith(shown)
    module = loaded(changed("jvr1/rl/objectives.py", tmp_path), monkeypatch)
    rng = np.random.default_rng(0)
    logp, old = (rng.normal(-2, 0.5, (2, 3, 5)).astype(np.float32) for _ in range(2))
    advantage, mask = rng.normal(size=(2, 3)).astype(np.float32), np.arange(5) < rng.integers(1, 6, (2, 3))[..., None]

    def gradient(objective):
        algorithm = module.ObjectiveConfig(objective=objective, clip_low=0.1, clip_high=0.1)
        return jax.value_and_grad(
            lambda x: module.policy_loss(x, old, None, advantage, mask, np.float32(6.0), algorithm)[0]
        )(logp)

    (value, got), (same, want) = gradient("gppo"), gradient("rl.own_objective:gppo")
    assert float(value) == float(same)
    np.testing.assert_array_equal(got, want)
    assert (np.abs(got)[mask] > 0).all()  # clipped tokens learn too


def test_its_setting_is_one_as_all_others_are(tmp_path, monkeypatch):
    """On the command line, in the page, on resume, refused by its name, and in the reward: 0.5 accuracy + format."""
    run = loaded(changed("jvr1/config_sections.py", tmp_path), monkeypatch).RunSettings()
    monkeypatch.setattr(config, "SETTINGS", {one.name: one for one in settings_of(run)})
    assert config.SETTINGS["reward.accuracy_weight"].about.resume == "tunable"
    row = "\n| `reward.accuracy_weight` | `1.0` | a number, at least 0 | told | Weight of accuracy beside"
    assert row in settings_table(run)
    argv = ["x", f"--config={REPOSITORY}/configs/tiny.py", "--workdir=w", "--config.model.source=m"]
    with pytest.raises(UserError, match=r"^reward\.accuracy_weight is -1\.0; it must be at least 0$"):
        config.parse([*argv, "--config.reward.accuracy_weight=-1"])
    told = config.parse([*argv, "--config.reward.accuracy_weight=0.5"]).config

    judge = loaded(changed("jvr1/rl/judge.py", tmp_path), monkeypatch).make_judge(told, [])
    record = Record(0, "?", "text", "multiple choice", (), "<answer>B</answer>", None, None, "own")
    micro = SimpleNamespace(
        rows=[SimpleNamespace(record=record, error=None)],
        arrays=SimpleNamespace(valid=np.array([True]), distinct=np.array([1])),
        bucket=SimpleNamespace(kind="text"),
    )
    texts = [["<think>a</think><answer>B</answer>", "<think>a</think><answer>C</answer>", "B"]]
    judged = judge(micro, texts, SimpleNamespace(length=np.full((1, 3), 5)), (3,))
    np.testing.assert_array_equal(judged.rollout.reward, [[1.5, 1.0, 0.0]])


def test_its_problem_kind_is_kendall_s_tau(tmp_path, monkeypatch):
    kinds = loaded(changed("jvr1/problems/kinds.py", tmp_path), monkeypatch).KINDS
    rng = np.random.default_rng(0)
    for _ in range(50):
        said, right = ([*map("ABCDE".__getitem__, rng.permutation(5))] for _ in range(2))
        tau = kendalltau([said.index(c) for c in "ABCDE"], [right.index(c) for c in "ABCDE"]).statistic
        for mode in ("robust", "eval-reference"):
            got = kinds["ordering"].accuracy(", ".join(said), " ".join(right), (), mode)
            assert got == pytest.approx((1 + tau) / 2)
    assert kinds["ordering"].accuracy("A, B", "B, C", (), "robust") == 0


def test_its_mesh_axis_splits_the_batch(demo, tmp_path):
    """A run on two devices of the new axis has the losses of a run on one: three files, as a user would change them."""
    (diff,) = re.findall(r"```diff\n(--- a/jvr1/model/layers.py\n.*?)```", TEXT, re.DOTALL)
    assert len(re.findall(r"^--- ", diff, re.MULTILINE)) == 3
    shutil.copytree(REPOSITORY / "jvr1", tmp_path / "jvr1", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply"], input=diff, cwd=tmp_path, text=True, check=True)
    losses = []
    for devices, code in ((1, REPOSITORY), (2, tmp_path)):
        workdir = tmp_path / f"run{devices}"
        settings = {"train__steps": 2, "batch__micro": 2, "batch__per_step": 1, "mesh__fsdp": 1}
        axis = {"mesh__slice": 2} if devices == 2 else {}
        command = [sys.executable, "-mjvr1.train_sft", *demo.arguments("sft", workdir, **settings, **axis)]
        environment = demo.environment | {"PYTHONPATH": str(code), "JAX_NUM_CPU_DEVICES": str(devices)}
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses.append([value for _, value in scalars(workdir)["loss"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_its_hook_writes_every_tenth_step(demo, tmp_path):
    main, workdir = changed("jvr1/train_rl.py", tmp_path), tmp_path / "run"
    settings = {"train__steps": 12, "train__save_every": 100, "train__validate_every": 0}
    process = demo.start([str(main)], demo.arguments("rl", workdir, **settings))
    _, err = process.communicate()
    assert process.returncode == 0, err
    logged = scalars(workdir)
    assert [step for step, _ in logged["loss"]] == list(range(1, 13))
    ((step, value),) = logged["reward_std"]
    rows = [json.loads(line) for file in (workdir / "rollouts").iterdir() for line in file.read_text().splitlines()]
    rewards = [row["reward"] for row in rows if row["step"] == 10 and row["reward"] is not None]
    assert step == 10
    assert value == pytest.approx(np.std(rewards), rel=1e-5)
