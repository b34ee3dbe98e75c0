"""What a disk or a hand does to files: a run goes on from what is whole, to the bit, or says which file is not."""

from __future__ import annotations

import re
import shutil
import sys

import jax
import numpy as np
import oracle
import pytest
from damage import HARMS, flip, harmed
from etils import epath
from train.test_checkpoint import assert_bit_equal, checkpoints, make_params, make_state, on_one

from jvr1 import config as settings
from jvr1.answering import config_of, parse_options
from jvr1.commands import export
from jvr1.errors import UserError, run_main
from jvr1.evaluate import options
from jvr1.model import hf
from jvr1.model.families import from_hf
from jvr1.opening import checksums
from jvr1.opening.models import open_model, save_model
from jvr1.opening.restore import newest_whole, read_meta, restore_checkpoint
from jvr1.opening.staging import appearing
from jvr1.sharding import make_mesh

pytestmark = pytest.mark.slow

UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""What orbax writes when a checkpoint is whole, and no value is read from."""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Steps 1 and 2, of other values."""
    root = tmp_path_factory.mktemp("damage") / "run"
    with checkpoints(root, best_metric="accuracy") as manager:
        for step in (1, 2):
            params = make_params(step)
            manager.save(step, params, make_state(params, step), {"step": step}, {"accuracy": 0.5})
    return root


def assert_restores(workdir, step):
    want = make_params(step)
    got = restore_checkpoint(epath.Path(workdir / "checkpoints" / str(step)), *on_one(want))
    assert_bit_equal(got, (want, make_state(want, step)))
    assert read_meta(workdir, step) == {"step": step}


def refusal(call) -> str | None:
    """The line of a UserError, or None."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def test_every_file_of_a_checkpoint_harmed_in_every_way(workdir, tmp_path, capsys):
    """The other step is taken, to the bit, or this one where nothing that is read was harmed; the file is named."""
    taken: dict[int, int] = {1: 0, 2: 0}
    for file, harm, copy in harmed(workdir, "checkpoints/2", tmp_path / "copy"):
        step = newest_whole(copy)
        taken[step] += 1
        said = capsys.readouterr().err
        inside = file.removeprefix("checkpoints/2/")
        if step == 1:
            assert f"checkpoints/2 is damaged: {inside} " in said, (file, harm, said)
            assert (copy / "damaged" / "2").is_dir()
            assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["1"]
        else:
            assert file.endswith(UNREAD) or (inside, harm) == (checksums.CHECKSUMS_FILE, "deleted"), (file, harm)
            assert_restores(copy, 2)
            with checkpoints(copy, best_metric="accuracy") as manager:
                assert manager.latest_step() == 2
    assert taken[1] > 60
    assert taken[2] > 10
    shutil.copytree(workdir, tmp_path / "copy")
    flip(next((tmp_path / "copy" / "checkpoints" / "2" / "params" / "ocdbt.process_0" / "d").iterdir()))
    assert newest_whole(tmp_path / "copy") == 1
    assert_restores(tmp_path / "copy", 1)


def test_without_checksums_what_cannot_be_read_is_named(workdir, tmp_path):
    """A checkpoint of an older version: orbax' own errors become a line."""
    for file, harm, copy in harmed(workdir, "checkpoints/2/params", tmp_path / "copy"):
        (copy / "checkpoints" / "2" / checksums.CHECKSUMS_FILE).unlink()
        if harm == "flipped" or file.endswith((*UNREAD, "_sharding", "process_0")):
            continue
        assert newest_whole(copy) == 2
        said = refusal(lambda copy=copy: assert_restores(copy, 2))
        assert said is None or re.fullmatch(r".*checkpoint .*/2 (cannot be read: .*; move it away.*|is of .*)", said)


@pytest.mark.parametrize("missing", ["params", "optimizer", "meta", "all"])
def test_a_checkpoint_without_a_part_and_an_empty_folder_are_put_aside(workdir, tmp_path, capsys, missing):
    shutil.copytree(workdir, tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    if missing == "all":
        (steps / "999").mkdir()
    else:
        shutil.copytree(steps / "2", steps / "999")
        shutil.rmtree(steps / "999" / missing)
    assert newest_whole(tmp_path / "run") == 2
    assert (
        f"checkpoints/999 is damaged: {'params' if missing == 'all' else missing} is missing" in capsys.readouterr().err
    )
    assert_restores(tmp_path / "run", 2)


def test_where_no_checkpoint_is_whole_all_are_named_and_none_is_moved(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    for step in ("1", "2"):
        flip(tmp_path / "run" / "checkpoints" / step / "meta" / "metadata")
    with pytest.raises(
        UserError, match=r"no whole checkpoint \(step 2: meta/metadata is not .*; step 1: meta/metadata"
    ):
        newest_whole(tmp_path / "run")
    assert not (tmp_path / "run" / "damaged").exists()
    assert newest_whole(tmp_path / "new") is None


def test_a_second_damaged_checkpoint_of_a_step_is_kept_too(workdir, tmp_path):
    for _ in range(2):
        shutil.copytree(workdir, tmp_path / "run", dirs_exist_ok=True)
        flip(tmp_path / "run" / "checkpoints" / "2" / "meta" / "metadata")
        assert newest_whole(tmp_path / "run") == 1
    assert sorted(p.name for p in (tmp_path / "run" / "damaged").iterdir()) == ["2", "2-1"]


# --- models

CONFIG = from_hf(oracle.raw_config(num_hidden_layers=2, vision_depth=2))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model, converted and as an export."""
    root = tmp_path_factory.mktemp("models")
    _, params = oracle.random_model(CONFIG)
    save_model(root / "converted", params, CONFIG, {"generation_config.json": b"{}"})
    with appearing(root / "exported") as folder:
        hf.save(params, CONFIG, folder, carried={}, dtype="float32", shard_bytes=200_000)
    return root, params


@pytest.mark.parametrize("form", ["converted", "exported"])
def test_every_file_of_a_model_folder_harmed_in_every_way(models, tmp_path, form):
    root, params = models
    mesh, refused = make_mesh({}, jax.devices()[:1]), 0
    for file, harm, copy in harmed(root / form, ".", tmp_path / "copy"):
        opened: list = []
        said = refusal(lambda to=opened, copy=copy: to.append(open_model(copy, mesh, param_dtype="float32")))
        if said is None:
            assert file.endswith(UNREAD) or (file, harm) == (checksums.CHECKSUMS_FILE, "deleted"), (file, harm)
            jax.tree.map(np.testing.assert_array_equal, opened[0].params, params)
        else:
            assert f"{copy} is damaged: {file} " in said, (file, harm, said)
            assert "\n" not in said
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(models, tmp_path, value):
    _, params = models
    params = jax.tree.map(np.array, params)
    params["text"]["layers"]["mlp"]["down"]["kernel"][1, 3, 4] = value
    save_model(tmp_path / "bad", params_on_one(params), CONFIG, {})
    with pytest.raises(UserError, match=r"bad: text/layers/mlp/down/kernel, layer 1 is not finite"):
        open_model(tmp_path / "bad", make_mesh({"fsdp": 2}, jax.devices()[:2]))


def test_an_export_of_weights_that_are_no_numbers_ends_with_2_and_leaves_nothing(models, tmp_path, monkeypatch, capsys):
    _, params = models
    params = jax.tree.map(np.array, params)
    params["text"]["norm"]["scale"][5] = np.nan
    save_model(tmp_path / "bad", params_on_one(params), CONFIG, {})
    monkeypatch.setattr(sys, "argv", ["export.py", str(tmp_path / "bad"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        run_main(export.main)
    assert end.value.code == 2
    assert f"error: {tmp_path / 'bad'}: text/norm/scale is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_workdir_s_config_harmed_in_every_way_is_named_when_its_model_is_asked(models, tmp_path):
    root, _ = models
    shutil.copytree(root / "converted", tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    config = settings.default()
    config.model.source, config.data.train = "a", ("a.json",)
    config.data.buckets = (("image", 1, 1, 54, 6),)
    (tmp_path / "run" / "config.json").write_text(settings.to_json(config))
    for harm in HARMS.values():
        (tmp_path / "run" / "config.json").write_text(settings.to_json(config))
        args = parse_options(options(), [f"--model={tmp_path / 'run'}", "--suite=a.json", "--data=.", "--out=out"])
        assert config_of(args, ("a.json",), ".")[0].model.source == str(tmp_path / "run")
        harm(tmp_path / "run" / "config.json")
        with pytest.raises(UserError, match=r"config\.json (is not of this version|is missing)") as error:
            config_of(args, ("a.json",), ".")
        assert "\n" not in str(error.value)


def params_on_one(params):
    return jax.device_put(params, jax.devices()[0])


def test_a_folder_appears_whole_or_not_at_all_and_can_be_made_again(tmp_path):
    out = tmp_path / "out"

    def interrupted() -> None:
        with appearing(out) as folder:
            (folder / "a").mkdir(parents=True)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(out.iterdir()) == []
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "of a killed attempt").write_text("")
    with appearing(out) as folder:
        folder.mkdir()
        (folder / "weights").write_text("1")
    assert sorted(p.name for p in out.iterdir()) == [checksums.CHECKSUMS_FILE, "weights"]
    assert not left.exists()
    with pytest.raises(UserError, match="is not empty"), appearing(out):
        pass
