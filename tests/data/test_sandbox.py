"""A function in a helper process: results, time limit, crashes, leaks."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import media_files
import numpy as np
import pytest
from media_files import BROKEN, clip, write_broken, write_good
from processes_left import marked, running, soon

from jvr1.data.media import MediaError, load_media
from jvr1.data.sandbox import Sandbox
from jvr1.errors import UserError
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, VideoSampling

ARGUMENTS = (VideoSampling(), PixelLimits(784, 400 * 784), RULES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_good(folder)
    write_broken(folder)
    return folder


def test_the_helper_s_frames_are_the_same_and_writable(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    with Sandbox(load_media, 30.0) as helper:
        media = helper(path, "video", *ARGUMENTS)
        again = helper(path, "video", *ARGUMENTS)
    np.testing.assert_array_equal(media.frames, load_media(path, "video", *ARGUMENTS).frames)
    media.frames[:] = 0
    assert again.frames.any()


def test_a_directory_of_broken_media(folder):
    """Counts match and one helper lives through all of them."""
    with Sandbox(load_media, 30.0) as helper:
        first = helper(folder / "plain.mp4", "video", *ARGUMENTS)
        process = helper._process.pid
        for name, (data_type, cause) in BROKEN.items():
            with pytest.raises(MediaError) as raised:
                helper(folder / name, data_type, *ARGUMENTS)
            assert (name, raised.value.cause) == (name, cause)
        last = helper(folder / "plain.mp4", "video", *ARGUMENTS)
        assert helper._process.pid == process
    np.testing.assert_array_equal(first.frames, last.frames)


def test_a_decoder_that_hangs_is_killed_and_replaced():
    with Sandbox(media_files.hang_on, 0.5) as helper:
        assert helper("a") == "a"
        hanging = helper._process
        with pytest.raises(MediaError) as raised:
            helper("hang")
        assert raised.value.cause == "timeout"
        assert hanging.returncode == -signal.SIGKILL
        assert helper("b") == "b"


def test_a_read_that_blocks_in_the_kernel_is_killed(folder):
    with Sandbox(media_files.wait_in_open, 0.3) as helper:
        with pytest.raises(MediaError) as raised:
            helper(folder / "fifo.mp4")
        assert raised.value.cause == "timeout"
        assert helper(folder / "text.mp4") > 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_is_replaced(number):
    with Sandbox(media_files.crash, 30.0) as helper:
        for _ in range(2):
            with pytest.raises(MediaError, match=f"crashed: .* {-number}"):
                helper(number)


def test_a_helper_that_died_unused_is_replaced():
    with Sandbox(media_files.hang_on, 30.0) as helper:
        assert helper(1) == 1
        helper._process.kill()
        helper._process.wait()
        assert helper(2) == 2


def test_a_fault_of_the_function_is_not_the_medium_s():
    with Sandbox(media_files.fail, 30.0) as helper, pytest.raises(RuntimeError, match="a fault of the function"):
        helper(1)


def test_a_function_that_cannot_be_imported_is_said():
    with Sandbox(_Unloadable(), 30.0) as helper, pytest.raises(RuntimeError, match="no_such_module"):
        helper(1)


class _Unloadable:
    def __reduce__(self):
        return __import__, ("no_such_module",)

    def __call__(self):
        raise AssertionError


def test_helpers_start_light():
    """A helper that imported jax would take seconds and gigabytes; readers must not be inherited."""
    with Sandbox(media_files.process_state, 30.0) as helper:
        _, modules, _, _ = helper(None)
    assert not {"jax", "transformers", "torch", "flax", "decord"} & set(modules)


def test_copies_have_helpers_of_their_own():
    with Sandbox(media_files.process_state, 30.0) as helper:
        first = helper(None)[0]
        with pickle.loads(pickle.dumps(helper)) as copy:
            assert copy(None)[0] != first
        assert helper(None)[0] == first


def own_helper(helper, results):
    results.put(helper(None)[0])


def test_a_fork_has_a_helper_of_its_own():
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with Sandbox(media_files.process_state, 30.0) as helper:
        first = helper(None)[0]
        child = context.Process(target=own_helper, args=(helper, results))
        child.start()
        child.join()
        assert results.get() != first
        assert helper(None)[0] == first


def test_threads_share_a_helper():
    got = []
    with Sandbox(media_files.hang_on, 30.0) as helper:
        threads = [threading.Thread(target=lambda n=n: got.append((n, helper(n)))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == [(n, n) for n in range(8)]


BUSY = """
import media_files
from jvr1.data.sandbox import Sandbox

helper = Sandbox(media_files.hang_on, 60.0)
helper("ready")
print("ready", flush=True)
helper("hang")
"""


def test_a_helper_ends_with_its_parent_whatever_it_does():
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = marked() | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", BUSY], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        assert len(running(environment)) == 2
        time.sleep(0.1)  # it hangs by now
        parent.kill()
    assert soon(lambda: not running(environment), 10)


def test_a_time_limit_must_be_positive():
    with pytest.raises(UserError, match="above 0"):
        Sandbox(load_media, 0.0)


def test_damaged_streams_decode_or_are_named(folder, tmp_path):
    """Bytes flipped anywhere: frames or a MediaError, no hang, no crash."""
    data = (folder / "plain.mp4").read_bytes()
    rng = np.random.default_rng(0)
    results = set()
    with Sandbox(media_files.decode, 30.0) as helper:
        for number in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 1 + number % 8):
                damaged[place] ^= int(rng.integers(1, 256))
            (tmp_path / "clip.mp4").write_bytes(damaged)
            got = helper(tmp_path / "clip.mp4")[0]
            results.add(got if isinstance(got, str) else "frames")
    assert "frames" in results
    assert not results & {"timeout", "crashed"}


def test_no_leak_over_hundreds_of_decodes(folder):
    names = ["plain.mp4", "odd.mp4", "av1.mp4", "zeroed.mp4", "audio.mp4", "text.mp4", "moov-first.mp4", "one.mp4"]
    with Sandbox(media_files.decode, 30.0) as helper:
        used = [helper(folder / names[number % len(names)])[1:] for number in range(320)]
    descriptors, resident = zip(*used, strict=True)
    assert descriptors[-1] == descriptors[80]
    assert resident[-1] - resident[80] < 12_000, "kilobytes grown in 240 decodes"
