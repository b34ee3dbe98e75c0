"""What a resumed run trains and measures from is what it began with, whatever became of its source since."""

from __future__ import annotations

import re
import shutil

import huggingface_hub.constants
import jax
import numpy as np
import oracle
import pytest
from etils import epath
from train.test_checkpoint import checkpoints

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.model import hf
from jvr1.model.families import from_hf
from jvr1.opening import values
from jvr1.opening.holder import release_all
from jvr1.opening.models import locate, save_model
from jvr1.opening.values import fingerprint, not_finite
from jvr1.sharding import make_mesh, param_shardings, path_name
from jvr1.train.loop import Loop
from jvr1.train.metrics import Tally
from jvr1.train.setup import open_run
from jvr1.train.state import check_last_steps
from jvr1.train.workdir import Begun, find_run, open_weights

CONFIG = from_hf(oracle.raw_config(num_hidden_layers=1, vision_depth=1, vision_fullatt_block_indexes=[0]))


@pytest.fixture(scope="module")
def params():
    """Of two models."""
    return [oracle.random_model(CONFIG, seed=seed)[1] for seed in (1, 2)]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture
def source(params, tmp_path):
    """A workdir whose run has come to step 3."""
    save_model(tmp_path / "source" / "model", params[0], CONFIG, {})
    go_on(tmp_path / "source", 3, params[0])
    return tmp_path / "source"


def go_on(workdir, step, params) -> None:
    with checkpoints(workdir, keep=1) as manager:
        manager.save(step, params, {"count": np.zeros(1)}, {"step": step})


def rl(source, **changes):
    config = settings.default()
    config.model.source, config.model.param_dtype, config.model.dtype = str(source), "float32", "float32"
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return config


def opened(config, workdir, mesh, origin=None):
    begun = None if origin is None else Begun(7, "rl", None, origin)
    return open_weights(config, epath.Path(workdir), begun, mesh, "rl")


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# --- what KL is measured from


def test_the_reference_stays_at_the_step_it_began_from(source, params, mesh, tmp_path):
    model, origin = opened(rl(source), tmp_path / "run", mesh)
    assert origin.pinned == str(source / "checkpoints" / "3")
    assert_same(model.params, params[0])
    shutil.copytree(source, tmp_path / "before")
    with checkpoints(source, keep=2) as manager:
        manager.save(12, params[1], {"count": np.zeros(1)}, {"step": 12})
    model, again = opened(rl(source), tmp_path / "run", mesh, origin)
    assert again == origin
    assert_same(model.params, params[0])
    shutil.rmtree(source / "checkpoints" / "3")  # as when it trains on
    with pytest.raises(UserError, match=r"checkpoints/3.* KL is measured from what .*/3 was when .*: bring it back"):
        opened(rl(source), tmp_path / "run", mesh, origin)


def test_a_folder_that_was_changed_in_its_place_is_refused(params, mesh, tmp_path):
    hf.save(params[0], CONFIG, tmp_path / "hf", carried={}, dtype="float32")
    _, origin = opened(rl(tmp_path / "hf"), tmp_path / "run", mesh)
    shutil.rmtree(tmp_path / "hf")
    save_model(tmp_path / "hf", params[0], CONFIG, {})  # another form, the same weights
    opened(rl(tmp_path / "hf"), tmp_path / "run", mesh, origin)
    shutil.rmtree(tmp_path / "hf")
    hf.save(params[1], CONFIG, tmp_path / "hf", carried={}, dtype="float32")
    with pytest.raises(UserError, match=rf"hf has other weights than when this run began .*was {origin.fingerprint}"):
        opened(rl(tmp_path / "hf"), tmp_path / "run", mesh, origin)


def test_a_hub_id_stays_at_its_commit(params, mesh, tmp_path, monkeypatch):
    """A hub's cache as huggingface_hub keeps it, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    for commit, one in zip(("a" * 40, "b" * 40), params, strict=True):
        hf.save(one, CONFIG, repository / "snapshots" / commit, carried={}, dtype="float32")
        (repository / "refs" / "main").write_text(commit)
        if commit[0] == "a":
            model, origin = opened(rl("some/model"), tmp_path / "run", mesh)
    assert origin.pinned == f"some/model@{'a' * 40}"
    assert locate("some/model").folder.name == "b" * 40
    model, _ = opened(rl("some/model"), tmp_path / "run", mesh, origin)
    assert_same(model.params, params[0])
    shutil.rmtree(repository / "snapshots" / ("a" * 40))
    with pytest.raises(UserError, match="bring it back"):
        opened(rl("some/model"), tmp_path / "run", mesh, origin)


@pytest.mark.parametrize("changes", [{"rl__beta": 0.0}, {"lora__rank": 2}])
def test_what_needs_no_source_does_not_read_it(source, mesh, tmp_path, changes):
    config = rl(source, **changes)
    model, origin = opened(config, tmp_path / "run", mesh)
    shutil.copytree(source / "model", tmp_path / "run" / "model")
    shutil.rmtree(source)
    again, kept = opened(config, tmp_path / "run", mesh, origin)
    assert kept == origin
    shapes = {path_name(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(model.params)}
    assert shapes == {path_name(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(again.params)}
    assert jax.tree.map(lambda x: x.sharding, again.params) == param_shardings(model.params, mesh)


def test_a_fingerprint_follows_from_values_alone(params, mesh, monkeypatch):
    """On any mesh, by numpy or compiled; one bit, or two numbers that change places, make another."""
    one, two = ({"text": {name: p["text"][name] for name in ("embedding", "norm")}} for p in params)
    split = jax.device_put(one, param_shardings(one, make_mesh({"fsdp": 2, "tensor": 4})))
    want = fingerprint(one)
    assert fingerprint(split) == want != fingerprint(two)
    assert not_finite(split) is None
    monkeypatch.setattr(values, "SMALL", 0)
    assert fingerprint(split) == want
    assert not_finite(split) is None
    monkeypatch.setattr(values, "SMALL", 2**26)
    for change in (lambda x: x.view(np.uint32).__ixor__(1), lambda x: x.__setitem__(slice(2), x[1::-1].copy())):
        other = jax.tree.map(np.array, one)
        change(other["text"]["norm"]["scale"][3:5])
        assert fingerprint(jax.tree.map(jax.numpy.asarray, other)) != want


# --- runs of the demo's model


def begin(demo, stage, workdir, **changes) -> Loop:
    """A run in this process up to its first step, on eight devices."""
    changes = {"batch__micro": 8, "train__validate_every": 0, "data__workers": 0} | changes
    config, folder, *_ = settings.parse([stage, *demo.arguments(stage, workdir, **changes)])
    return Loop(open_run(config, folder, targets=stage == "sft"), {})


def end(loop: Loop, step: int = 1) -> None:
    """Saves as of that step."""
    loop._step = step
    loop.save()
    loop.checkpoints.close()
    loop.writer.close()
    release_all()


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("changes", [{"optimizer__freeze": ("visual/.*",), "rl__beta": 0.0}, {"lora__rank": 2}])
def test_frozen_weights_come_from_the_checkpoint(demo, tmp_path, changes):
    """The source is another model when the run goes on."""
    shutil.copytree(demo.model, tmp_path / "source")
    changes = changes | {"model__source": tmp_path / "source"}
    loop = begin(demo, "rl", tmp_path / "run", **changes)
    want = named(loop.run_.frozen)
    assert want
    end(loop)
    weights = tmp_path / "source" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-400_000:] = bytes(400_000)
    weights.write_bytes(content)
    loop = begin(demo, "rl", tmp_path / "run", **changes)
    got = named(loop.run_.frozen)
    end(loop)
    assert set(got) == set(want)
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x)
        np.testing.assert_array_equal(named(loop.run_.params)[name], x)  # what KL is measured from under adapters


def test_a_run_that_is_done_and_one_of_the_other_stage_leave_a_workdir_as_it_is(demo, tmp_path):
    end(begin(demo, "sft", tmp_path / "run", train__steps=2), step=2)
    before = (tmp_path / "run" / "config.json").read_bytes()
    loop = begin(demo, "sft", tmp_path / "run", train__steps=2, optimizer__learning_rate=0.5)
    assert loop._finished
    loop.checkpoints.close()
    loop.writer.close()
    release_all()
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    message = r"holds a run of jvr1.train_sft; jvr1.train_rl needs another workdir, .* model.source=.*run"
    with pytest.raises(UserError, match=message):
        begin(demo, "rl", tmp_path / "run", train__steps=4)
    begun = find_run(epath.Path(tmp_path / "run"))
    assert begun is not None
    assert (begun.step, begun.stage) == (2, "sft")
    (tmp_path / "run" / "config.json").unlink()  # the checkpoint knows it
    with pytest.raises(UserError, match=re.escape("seed: 0 -> 1")):
        begin(demo, "sft", tmp_path / "run", seed=1)


@pytest.mark.parametrize("where", ["gradients", "weights"])
def test_a_run_that_goes_wrong_ends_with_an_error_before_its_last_checkpoint_is_harmed(demo, tmp_path, where):
    """Two steps of five that may be bad."""
    loop = begin(demo, "sft", tmp_path / "run", train__steps=2, train__save_every=1, train__step_limit=0)
    broken = jax.tree.map(lambda x: jax.numpy.full_like(x, np.nan), loop.state.params)

    gradients = jax.tree.map(lambda x: x + 0, broken)

    def step_of(step, _):
        if where == "weights" and step == 1:
            loop.state = loop.state._replace(params=broken)
        return Tally().add(loop.update(gradients, has_rows=where == "gradients")), None

    said = "the last 2 steps up to the end" if where == "gradients" else "step 2: params/.* is not finite"
    with pytest.raises(UserError, match=said):
        loop.run(step_of)
    release_all()
    begun = find_run(epath.Path(tmp_path / "run"))
    assert begun is not None
    assert begun.step == (2 if where == "gradients" else 1)


def test_a_run_that_ends_in_steps_without_effect_is_no_success():
    check_last_steps(9, 0)
    with pytest.raises(UserError, match="not finite in the last 2 steps up to the end, step 3"):
        check_last_steps(3, 2)
