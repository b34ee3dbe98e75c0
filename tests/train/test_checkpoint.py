"""Checkpoints: bit-equal on any mesh, whole or absent, the right ones kept, clear refusals."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvr1.errors import SaveError, UserError
from jvr1.optimizers.config import OptimizerConfig
from jvr1.sharding import make_mesh, param_shardings
from jvr1.train.checkpoint import Checkpoints, _reason
from jvr1.train.optimizer import make_optimizer
from jvr1.train.state import TrainState, abstract_state, init_state

TX = make_optimizer(OptimizerConfig(), {})


def make_params(seed: int = 0, width: int = 16):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "text": {"embedding": draw(16, width), "norm": {"scale": draw(8).astype(jnp.bfloat16)}},
        "visual": {"merge_in": {"kernel": draw(8, width), "bias": draw(5)}},
    }


def make_state(params, seed: int = 0):
    """Moments that are not zero, and no parameters: those are saved on their own."""
    state = init_state(TX, params)
    rng = np.random.default_rng(seed + 100)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 9).astype(x.dtype), state)
    return state._replace(params={})


def shapes_on(mesh, params):
    shardings = param_shardings(params, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    return shapes, abstract_state(TX, shapes, mesh)._replace(params={})


def on_one(params):
    return shapes_on(make_mesh({"data": 1}, jax.devices()[:1]), params)


def assert_bit_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@contextmanager
def checkpoints(*args, **kw):
    made = Checkpoints(*args, **kw)
    try:
        yield made
    finally:
        made.close()


def test_restores_bit_equal_from_mesh_to_mesh(tmp_path):
    """2x4 -> 4x2 -> one device, each time saved again and read by a new object."""
    params, state = make_params(), make_state(make_params())
    meta = {"position": [1, {"rows": [3, 4]}], "journal": {"bad.mp4": "truncated"}, "seed": 7}
    wanted = (params, state)
    meshes = [
        make_mesh({"fsdp": 2, "tensor": 4}),
        make_mesh({"data": 2, "fsdp": 2, "tensor": 2}),
        make_mesh({"fsdp": 4, "tensor": 2}),
        make_mesh({"data": 1}, jax.devices()[:1]),
    ]
    for step, mesh in enumerate(meshes):
        with checkpoints(tmp_path) as manager:
            shapes = shapes_on(mesh, params)
            if step == 0:
                placed = jax.device_put(wanted, jax.tree.map(lambda x: x.sharding, shapes))
            else:
                *placed, got_meta = manager.restore(*shapes)
                assert got_meta == meta
                assert_bit_equal(tuple(placed), wanted)
                for x, s in zip(jax.tree.leaves(placed), jax.tree.leaves(shapes), strict=True):
                    assert x.sharding == s.sharding
            manager.save(step, *placed, meta)
    assert isinstance(placed[1], TrainState)
    assert any(isinstance(s, optax.ScaleByAdamState) for s in placed[1].optimizer)


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    params = make_params()
    want = jax.tree.map(np.asarray, params)
    with checkpoints(tmp_path) as manager:
        manager.save(1, params, make_state(params), {})
        jax.jit(lambda p: jax.tree.map(lambda x: x * 0, p), donate_argnums=0)(params)
        assert_bit_equal(manager.restore(*on_one(want))[0], want)


def test_keeps_the_latest_and_the_best(tmp_path):
    params = make_params()
    saved = {1: 0.3, 2: 0.9, 3: 0.5, 4: None, 5: float("nan"), 6: 0.2}
    with checkpoints(tmp_path, keep=2, best_metric="valid/accuracy") as manager:
        assert (manager.latest_step(), manager.best_step()) == (None, None)
        for step, value in saved.items():
            metrics = None if value is None else {"valid/accuracy": value, "valid/length": 3.0}
            manager.save(step, params, make_state(params), {"step": step}, metrics)
        manager.wait()
        assert kept(tmp_path) == [2, 5, 6]
    with checkpoints(tmp_path, keep=2, best_metric="valid/accuracy") as manager:
        assert (manager.latest_step(), manager.best_step()) == (6, 2)
        assert manager.restore(*on_one(params))[2] == {"step": 6}
        assert manager.restore(*on_one(params), step=2)[2] == {"step": 2}
        manager.save(7, params, make_state(params), {}, {"valid/accuracy": 0.9})
        manager.save(8, params, make_state(params), {}, {"train/accuracy": 1.0})
        manager.wait()
        assert manager.best_step() == 7
        assert kept(tmp_path) == [7, 8]
    with checkpoints(tmp_path, keep=1, best_metric="another") as manager:
        manager.save(9, params, make_state(params), {}, {"another": 0.1})
        manager.wait()
        assert manager.best_step() == 9
        assert kept(tmp_path) == [9]


def kept(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_saving_the_last_step_again_does_nothing_and_an_earlier_one_is_refused(tmp_path):
    params = make_params()
    with checkpoints(tmp_path) as manager:
        manager.save(4, params, make_state(params), {"first": True})
        manager.save(4, params, make_state(params), {"first": False})
        assert manager.restore(*on_one(params))[2] == {"first": True}
        with pytest.raises(SaveError, match=r"step 3 cannot be saved: .* already holds step 4; use another workdir"):
            manager.save(3, params, make_state(params), {})


def changed(params, path: str, value):
    *parents, last = path.split("/")
    copy = jax.tree.map(lambda x: x, params)
    node = copy
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "text/norm/scale",
            jnp.ones(8, jnp.float32),
            r"text/norm/scale is bfloat16\[8\] in it and float32\[8\] in this",
        ),
        ("text/embedding", jnp.ones((16, 8)), r"text/embedding is float32\[16,16\] in it and float32\[16,8\] in this"),
        ("text/head", {"kernel": jnp.ones((4, 4))}, r"text/head/kernel is absent in it and float32\[4,4\] in this"),
        ("visual/merge_in/bias", None, r"visual/merge_in/bias is float32\[5\] in it and absent in this run"),
    ],
)
def test_another_model_is_refused_by_its_first_parameter(tmp_path, path, value, message):
    params = make_params()
    with checkpoints(tmp_path) as manager:
        manager.save(1, params, make_state(params), {})
        other = changed(params, path, value)
        with pytest.raises(UserError, match=f"of another model: {message}"):
            manager.restore(*on_one(other))


def test_another_optimizer_is_refused(tmp_path):
    params = make_params()
    with checkpoints(tmp_path) as manager:
        manager.save(1, params, make_state(params), {})
        shapes, state = on_one(params)
        adam = state.optimizer[1]
        wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype, sharding=x.sharding), adam.mu)
        wide = state._replace(optimizer=(state.optimizer[0], adam._replace(mu=wide), *state.optimizer[2:]))
        with pytest.raises(
            UserError, match=r"mu/text/embedding is float32\[16,16\] in it and float32\[2,16,16\] in this run"
        ):
            manager.restore(shapes, wide)


def test_no_checkpoint_and_no_such_step(tmp_path):
    params = make_params()
    with checkpoints(tmp_path) as manager:
        with pytest.raises(UserError, match="holds no checkpoint to resume from"):
            manager.restore(*on_one(params))
        manager.save(3, params, make_state(params), {})
        with pytest.raises(UserError, match="has no step 5; it holds 3"):
            manager.restore(*on_one(params), step=5)


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="keep is 0"):
        Checkpoints(tmp_path, 0, "accuracy")


@contextmanager
def files_of_at_most(size: int):
    """The kernel refuses longer files with an OSError, as it refuses any on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own in `folder`; without the right to mount, yields False."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("noticed_by", ["wait", "save", "close"])
def test_a_failed_write_is_a_clear_error_and_leaves_the_previous_checkpoint_whole(tmp_path, noticed_by, capfd):
    small, large = make_params(), make_params(width=60_000)
    manager = Checkpoints(tmp_path)
    manager.save(1, small, make_state(small), {"step": 1})
    manager.wait()
    with files_of_at_most(100_000):
        manager.save(2, large, make_state(large), {})
        arguments = (3, small, make_state(small), {}) if noticed_by == "save" else ()
        with pytest.raises(SaveError, match=r"step 2 could not be saved: File too large; step 1 is whole$"):
            getattr(manager, noticed_by)(*arguments)
    assert "Traceback" not in capfd.readouterr().err
    if noticed_by == "close":
        manager = Checkpoints(tmp_path)
    assert manager.latest_step() == 1
    assert manager.restore(*on_one(small))[2] == {"step": 1}
    following = 3 if noticed_by == "close" else 2  # of step 2 some thread of the first manager may still be writing
    manager.save(following, small, make_state(small), {"step": following})
    manager.close()
    assert kept(tmp_path) == [1, following]


def test_a_full_disk(tmp_path, capfd):
    """On a real small file system where the tests may mount one, else with a limit on the size of files."""
    small, large = make_params(), make_params(width=60_000)
    with small_disk(tmp_path / "disk", "2m") as mounted, checkpoints(tmp_path / "disk" / "run") as manager:
        manager.save(1, small, make_state(small), {"step": 1})
        manager.wait()
        reason = "No space left on device" if mounted else "File too large"
        with files_of_at_most(1 << 30 if mounted else 100_000):
            manager.save(2, large, make_state(large), {})
            with pytest.raises(SaveError, match=f"step 2 could not be saved: {reason}; step 1 is whole$"):
                manager.wait()
        assert "Traceback" not in capfd.readouterr().err
        params, state, meta = manager.restore(*on_one(small))
        assert meta == {"step": 1}
        assert_bit_equal((params, state), (small, make_state(small)))


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from train.test_checkpoint import Checkpoints, make_params, make_state
manager = Checkpoints({workdir!r}, keep=1)
for step in range(1, 1000):
    params = make_params(step, width=2048)
    manager.save(step, params, make_state(params, step), dict(step=step))
    print(step, flush=True)
"""


def test_kill_9_during_a_save_leaves_a_whole_checkpoint(tmp_path):
    tests = str(Path(__file__).parents[1])
    script = KILLED.format(tests=tests, workdir=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(Path(tests).parent)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if int(line) >= 4:
            break
    time.sleep(0.003)
    process.kill()
    process.wait()
    with checkpoints(tmp_path, keep=1) as manager:
        step = manager.latest_step()
        want = make_params(step, width=2048)
        params, state, meta = manager.restore(*on_one(want))
        assert meta == {"step": step}
        assert_bit_equal((params, state), (want, make_state(want, step)))
        manager.save(step + 1, params, state, {})
        manager.wait()
        assert kept(tmp_path) == [step + 1]


@pytest.mark.parametrize("between", ["", """[tensorstore_spec='{\\"driver\\":\\"zarr\\",\\"shape\\":[]}'] """])
def test_the_reason_is_the_system_s_word_for_it(between):
    """tensorstore may put a page of JSON between its words and the number."""
    long = (
        f'OUT_OF_RANGE: Error writing "a/.zarray": Failed writing: "x": File too large {between}[os_error_code=\'27\']'
    )
    assert _reason(ValueError(long)) == "File too large"
    assert _reason(ValueError("other")) == "ValueError: other"
