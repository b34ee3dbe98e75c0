"""The page opened in a headless browser: no errors, light and dark, filters, nothing fetched."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from browser import browse, console
from PIL import Image

from jvr1.data.records import Fault, parse_record
from jvr1.eval.page import html
from jvr1.eval.report import AskedSuite, build
from jvr1.eval.suites import Suite
from jvr1.questions.asking import Asking
from jvr1.questions.replies import Question, reply

COUNT = 12


def look(record):
    """Eight frames of one colour a clip."""
    shade = int(record.path.removesuffix(".mp4")) * 20
    return [np.full((8, 56, 56, 3), (shade, 90, 200 - shade // 2), np.uint8)]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Every third answer wrong; one question failed, one record no question."""
    questions = {}
    for i in range(COUNT):
        raw = {
            "problem_id": 100 + i, "problem": f"which colour came third in clip {i}?", "data_type": "video",
            "problem_type": "multiple choice", "options": ["A. red", "B. blue"], "solution": "<answer>B</answer>",
            "path": f"{i}.mp4", "data_source": "order" if i % 2 else "motion",
        }  # fmt: skip
        record = parse_record(raw)
        text = f"<think>reason-{i}: red then blue \N{CAT FACE} </think>\n<answer>{'A' if i % 3 == 0 else 'B'}</answer>"
        replies = tuple(
            reply(v, 0, text, 20, True, record.solution, record.problem_type) for v in ("ordered", "single")
        )
        failed = i == COUNT - 1
        questions[i] = Question(record, "corrupt: bad clip" if failed else None, () if failed else replies, i)
    suite = Suite(
        "own", "own", "own.json", {i: q.record for i, q in questions.items()}, [Fault(COUNT, None, "is a list")]
    )
    asked = [AskedSuite(suite, questions)]
    report = build(asked, Asking(("ordered", "single")), {"model": "tiny", "primary_mode": "robust"}, "robust", None)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(report, asked, look, 100))
    return file


def test_it_opens_without_a_word_and_shows_every_question(page):
    dom, log = browse(page, "--dump-dom")
    assert console(log) == []
    articles = re.findall(r"<article.*?</article>", dom, re.S)
    assert len(articles) == COUNT + 1
    for i, article in enumerate(articles[: COUNT - 1]):
        assert article.count("<img ") == 8
        assert f"reason-{i}: red then blue" in article
        assert f">{'wrong' if i % 3 == 0 else 'right'}</span>" in article
    assert "corrupt: bad clip" in articles[COUNT - 1]
    assert "is a list" in articles[COUNT]
    assert f"{COUNT + 1} questions" in dom  # written by the script


def test_an_error_on_a_page_would_be_seen(page):
    """The check above can fail."""
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text().replace("filter();\n</script>", "filterr();\n</script>"))
    _, log = browse(broken, "--dump-dom")
    assert any("filterr is not defined" in line for line in console(log))


@pytest.mark.parametrize(
    ("search", "verdict", "task", "shown"),
    [
        ("", "", "", range(13)),
        ("reason-1", "", "", [1, 10]),
        ("CLIP 3?", "", "", [3]),
        ("", "wrong", "", [0, 3, 6, 9]),
        ("", "failed", "", [11, 12]),
        ("", "wrong", "order", [3, 9]),
        ("nothing like it", "", "", []),
    ],
)
def test_questions_are_found(page, search, verdict, task, shown):
    act = page.with_name("act.html")
    script = (
        f"<script>field('search').value = {search!r}; field('verdict').value = {verdict!r};"
        f"field('task').value = {task!r}; field('task').dispatchEvent(new Event('input'));"
        "document.title = items.map((x, i) => x.node.checkVisibility() ? i : '').filter(i => i !== '').join(' ')"
        "</script>"
    )
    act.write_text(page.read_text().replace("</body>", script + "</body>"))
    dom, log = browse(act, "--dump-dom")
    assert console(log) == []
    assert re.search("<title>(.*?)</title>", dom)[1] == " ".join(map(str, shown))
    count = re.search(r'<output id="count">(.*?)</output>', dom)[1]
    assert count == ("13 questions" if len(shown) == 13 else f"{len(shown)} of 13 questions")


def test_light_and_dark(page):
    """The background follows the reader's setting, and text stands out from it."""
    brightness = {}
    for name, setting in (("dark", 0), ("light", 1)):
        shot = page.with_name(f"{name}.png")
        _, log = browse(page, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={setting}")
        assert console(log) == []
        pixels = np.asarray(Image.open(shot).convert("L"), np.float32)
        brightness[name] = np.median(pixels)
        assert pixels.max() - pixels.min() > 150
    assert brightness["dark"] < 60
    assert brightness["light"] > 220
