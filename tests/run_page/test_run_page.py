"""The page of a run: its numbers are those that were logged, its groups those of the rollouts; it opens by itself."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from browser import browse, console
from PIL import Image
from runs import STEPS, scalars

from jvr1.commands import report
from jvr1.errors import UserError
from jvr1.run_page.groups import groups_of, shown_steps
from jvr1.run_page.page import chosen, validation_changes
from jvr1.run_page.reading import read_run

VALIDATED = 25


@pytest.fixture(scope="module")
def workdir(demo):
    return demo.finished("rl").workdir


@pytest.fixture(scope="module")
def page(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run.html"
    report.main([str(workdir), f"--out={out}"])
    return out


def test_it_opens_without_a_word_and_asks_for_nothing(page):
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    dom, log = browse(page, "--dump-dom")
    assert console(log) == []
    assert dom.count("<svg") >= 12
    assert f"done, {STEPS} steps" in dom


def test_curves_end_in_what_was_logged(page, workdir):
    text, logged = page.read_text(), scalars(workdir)
    for title, name in (("reward", "reward"), ("kl", "loss/kl"), ("gradient_norm", "update/gradient_norm")):
        step, value = logged[name][-1]
        assert f"<title>{title}: {value:.4g} at {step}</title>" in text
        assert f"{title} <b>{value:.3g}</b>" in text


def test_groups_are_those_whose_rewards_differ_most(workdir):
    run = read_run(workdir)
    shown = list(groups_of(run, lambda record: [f"data:{record.path}"]))
    assert [one["step"] for one in shown] == sorted(shown_steps(list(run.rollouts)), reverse=True)
    for one in shown:
        rows = [json.loads(line) for path in run.rollouts[one["step"]] for line in path.read_text().splitlines()]
        by_group: dict[tuple, list] = {}
        for row in rows:
            by_group.setdefault((row["microbatch"], row["row"]), []).append(row)
        spreads = {k: np.std([r["reward"] for r in g if r["reward"] is not None]) for k, g in by_group.items()}
        best = max(spreads.values())
        first = [c for c in one["groups"][0]["completions"] if c["reward"] is not None]
        assert np.std([c["reward"] for c in first]) == pytest.approx(best)
        assert [c["reward"] for c in first] == sorted((c["reward"] for c in first), reverse=True)
        assert one["of"] == len(by_group)
        for group in one["groups"]:
            assert len(group["pictures"]) == 1
            texts = sorted(c["text"] for c in group["completions"])
            assert texts in [sorted(r["completion"] for r in g) for g in by_group.values()]


def test_frames_are_shown_and_missing_media_are_none(page, workdir, tmp_path):
    assert page.read_text().count('src="data:image/jpeg') >= 3 * 4
    report.main([str(workdir), f"--out={tmp_path / 'a.html'}", "--no-frames"])
    report.main([str(workdir), f"--out={tmp_path / 'b.html'}", f"--root={tmp_path}"])
    a, b = ((tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert "data:image" not in a
    assert "data:image" not in b
    assert a.count('class="completion') == page.read_text().count('class="completion') > 0


def test_it_can_be_made_while_the_run_goes_on(workdir, tmp_path, capsys):
    """A workdir as it is before the first step, and with files that are just being written."""
    (tmp_path / "rollouts").mkdir()
    shutil.copy(workdir / "config.json", tmp_path / "config.json")
    report.main([str(tmp_path)])
    assert "No step has been logged yet." in (tmp_path / "report.html").read_text()
    shutil.copytree(workdir / "tensorboard", tmp_path / "tensorboard")
    whole = (workdir / "rollouts" / "step-1.process-0.jsonl").read_text()
    (tmp_path / "rollouts" / "step-1.process-0.jsonl").write_text(whole[: len(whole) * 2 // 3])
    (tmp_path / "rollouts" / "step-2.process-0.jsonl.tmp").write_text(whole)
    report.main([str(tmp_path)])
    assert f"step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert "<b>Step 1</b>" in (tmp_path / "report.html").read_text()


def test_validations_say_what_changed(workdir):
    found = read_run(workdir).validations
    assert list(found) == [0, VALIDATED, STEPS]
    logged = scalars(workdir)
    for step, lines in found.items():
        right = [line["replies"]["ordered"]["accuracy"] for line in lines if line["task"] == "order"]
        assert np.mean(right) == pytest.approx(dict(logged["valid/order/ordered"])[step])


def test_changes_are_counted_from_one_validation_to_the_next():
    def at(*accuracies):
        replies = [{"ordered": {"answer": str(a), "accuracy": a, "completion": ""}} for a in accuracies]
        return [{"number": i, "replies": reply} for i, reply in enumerate(replies)]

    found = validation_changes({0: at(0, 1, 0, 0.5), 5: at(1, 1, 0, 0.25), 9: at(1, 0, 1, 0.25)})
    told = [(c["before"], c["after"], c["listed"], [kind["count"] for kind in c["kinds"]]) for c in found]
    assert told == [(0, 5, False, [1, 1]), (5, 9, False, [1, 1]), (0, 9, True, [2, 2])]
    assert [q["number"] for q in found[2]["kinds"][0]["questions"]] == [0, 2]
    (only,) = validation_changes({0: at(0), 5: at(1)})
    assert only["listed"]
    assert validation_changes({0: at(0)}) == []


def test_names_of_curves_tell_them_apart():
    values = {
        name: [(1, 0.0)] for name in ("valid/a/ordered", "valid/b/ordered", "valid/a/format", "accuracy/x", "accuracy")
    }
    assert list(chosen(values, ["valid/*/ordered"])) == ["a", "b"]
    assert list(chosen(values, ["accuracy", "accuracy/*"])) == ["accuracy", "x"]


def test_what_is_no_workdir_is_said(tmp_path, demo):
    with pytest.raises(UserError, match=r"holds no run: it has no config.json; name the --workdir of one"):
        report.main([str(tmp_path)])
    with pytest.raises(UserError, match="is no workdir of a training run"):
        report.main([str(demo.model)])


def test_light_and_dark(page):
    brightness = {}
    for name, setting in (("dark", 0), ("light", 1)):
        shot = page.with_name(f"{name}.png")
        browse(page, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={setting}")
        brightness[name] = np.median(np.asarray(Image.open(shot).convert("L"), np.float32))
    assert brightness["dark"] < 60
    assert brightness["light"] > 220
