"""The rewards that docs/extending.md shows, with the settings it shows: a judge over HTTP, an IoU, several by name."""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from runs import REPOSITORY
from test_user_values import judged, micro, record, told

from jvr1 import config
from jvr1.rl.judge import make_judge

TEXT = (REPOSITORY / "docs" / "extending.md").read_text()
ARGV = ["x", f"--config={REPOSITORY}/configs/tiny.py", "--workdir=w", "--config.model.source=m"]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """example(name, records): a judge with the page's module of that name and its settings."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, records):
        (code,) = re.findall(rf"```python\n(# {name}\.py.*?)```", TEXT, re.DOTALL)
        (tmp_path / f"{name}.py").write_text(code)
        (line,) = re.findall(rf"```\n(--config\.reward\.user={name}:.*?)\n```", TEXT)
        flags = [flag.replace('"', "") for flag in re.findall(r'--\S+=(?:"[^"]*"|\S+)', line)]
        made.append(make_judge(config.parse([*ARGV, *flags]).config, records))
        return made[-1]

    yield make
    for judge in made:
        judge.user.close()
        sys.modules.pop(judge.user.rewards[0].spec.partition(":")[0], None)


class Stub(BaseHTTPRequestHandler):
    """Says 7 of a thought that has 'because', else 2; of 'nonsense' nothing that is a number."""

    protocol_version = "HTTP/1.1"
    together, most = 0, 0
    lock = threading.Lock()

    def do_POST(self):
        with self.lock:
            Stub.together += 1
            Stub.most = max(Stub.most, Stub.together)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        threading.Event().wait(0.2)
        said = "hm" if "nonsense" in asked else "7" if "because" in asked else "2"
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        with self.lock:
            Stub.together -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


def test_a_judge_over_http(example, monkeypatch):
    with Server(("localhost", 0), Stub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("JUDGE_URL", f"http://localhost:{server.server_address[1]}/")
        judge = example("my_judge", [record()])
        texts = [[told("because", "1")] * 8 + [told("so", "1")] * 7 + [told("nonsense", "1")]]
        found = judged(judge, micro(record()), texts, (16,))
        server.shutdown()
    np.testing.assert_allclose(found.rollout.reward[0], [1.7] * 8 + [1.2] * 7 + [1.0], rtol=1e-6)
    assert found.rollout.scored[0].tolist() == [True] * 15 + [False]
    assert "ValueError: could not convert string to float: 'hm'" in judge.user.failures.take_told()[0]
    assert Stub.most > 4  # asked at a time


def test_a_temporal_iou_that_is_the_accuracy(example):
    one = record("free-form", "<answer>from 3 to 7.5</answer>", start=3.0, end=7.5)
    judge = example("my_iou", [one])
    texts = [[told("", "3 to 7.5"), told("", "from 3.2 s to 7.5"), told("", "about 5"), told("", "7 to 8")]]
    found = judged(judge, micro(one), texts, (3,))
    np.testing.assert_allclose(found.rollout.accuracy, [[1.0, 4.3 / 4.5, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found.rollout.shuffled_accuracy, [[0.5 / 5.0]], rtol=1e-6)
    np.testing.assert_allclose(found.rollout.reward, [[2.0, 1 + 4.3 / 4.5, 1.0]], rtol=1e-6)


def test_several_named_rewards_with_weights(example):
    text = record("numerical", "<answer>1</answer>", data_type="text", path=None)
    judge = example("my_style", [record(), text])
    assert judge.user.names == ("brief", "looks_back", "ended")
    texts = [[told("Wait, no", "1")], [told("Wait, no", "1")]]
    found = judged(judge, micro(record(), text), texts, (1,))
    np.testing.assert_allclose(found.values[:, 0], [[1 - 5 / 512, 1, 1], [1 - 5 / 512, np.nan, 1]], rtol=1e-6)
    both = 1 + 0.2 * (1 - 5 / 512) + 0.5
    np.testing.assert_allclose(found.rollout.reward[:, 0], [both + 0.1, both + 1.0], rtol=1e-6)
