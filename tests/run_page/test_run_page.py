"""The page of a run: its numbers are those that were logged, its groups those of the rollouts; it opens by itself."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from browser import browse, console
from etils import epath
from PIL import Image
from runs import STEPS, scalars

from jvr1 import config as settings
from jvr1.commands import report
from jvr1.errors import UserError
from jvr1.run_page.groups import groups_of, shown_steps
from jvr1.run_page.page import charts, chosen, run_html, validation_changes
from jvr1.run_page.reading import RunFiles, lines_of, read_run

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
        return [{"number": i, "problem": f"q{i}", "path": "v.mp4", "replies": r} for i, r in enumerate(replies)]

    found = validation_changes({0: at(0, 1, 0, 0.5), 5: at(1, 1, 0, 0.25), 9: at(1, 0, 1, 0.25)})
    told = [(c["before"], c["after"], c["listed"], [kind["count"] for kind in c["kinds"]]) for c in found]
    assert told == [(0, 5, False, [1, 1]), (5, 9, False, [1, 1]), (0, 9, True, [2, 2])]
    assert [q["number"] for q in found[2]["kinds"][0]["questions"]] == [0, 2]
    (only,) = validation_changes({0: at(0), 5: at(1)})
    assert only["listed"]
    assert validation_changes({0: at(0)}) == []


def test_questions_are_compared_with_themselves_wherever_they_stand():
    """Their file was changed between two starts: one is new, one is gone, two of the same words ask of two videos."""

    def line(number, problem, path, accuracy):
        said = {"answer": str(accuracy), "accuracy": accuracy, "completion": ""}
        return {"number": number, "problem": problem, "path": path, "options": [], "replies": {"ordered": said}}

    before = [
        line(0, "gone", "a", 1),
        line(1, "which", "a", 0),
        line(2, "which", ["b", "c"], 1),
        line(3, "twice", "d", 0),
    ]
    before += [line(4, "twice", "d", 1)]
    after = [
        line(0, "which", ["b", "c"], 1),
        line(1, "new", "a", 1),
        line(2, "which", "a", 1),
        line(3, "twice", "d", 0),
    ]
    after += [line(4, "twice", "d", 0)]
    (change,) = validation_changes({0: before, 5: after})
    better, worse = ([(q["problem"], q["path"]) for q in kind["questions"]] for kind in change["kinds"])
    assert better == [("which", "a")]
    assert worse == [("twice", "d")]


def run_of(folder, values, **train):
    config = {"train": {"steps": 9, "stop_metric": "", "stop_value": 0.0} | train, "model": {"source": "m"}}
    return RunFiles(epath.Path(folder), config, {"loss": [(4, 1.0)]} | values)


def test_a_run_that_a_measure_ended_is_done(tmp_path):
    def head(values, **train):
        found = re.search(
            r'<p class="soft">(.*?)</p>', run_html(run_of(tmp_path, values, **train), {}, lambda record: ())
        )
        assert found
        return found[1]

    stop = {"stop_metric": "order/ordered", "stop_value": 0.9}
    kept = float(np.float32(0.9))  # a log has fewer digits: 0.89999998
    assert "step 4 of 9 &middot;" in head({})
    assert "step 4 of 9 &middot;" in head({"valid/order/ordered": [(0, 0.95), (2, 0.95), (4, 0.5)]}, **stop)
    assert "step 4 of 9 &middot;" in head({"valid/order/ordered": [(0, 0.95)]}, **stop)  # before the first step
    said = head({"valid/order/ordered": [(0, 0.1), (4, kept)]}, **stop)
    assert "done at step 4 of 9: order/ordered is 0.9, at least 0.9" in said


def test_the_title_is_the_folder_s_name(tmp_path, monkeypatch):
    (tmp_path / "seven").mkdir()
    monkeypatch.chdir(tmp_path / "seven")
    for place, title in ((".", "seven"), ("../seven/", "seven"), ("gs://bucket/runs/rl/", "rl")):
        assert f"<h1>{title}</h1>" in run_html(run_of(place, {}), {}, lambda record: ())


def test_curves_that_are_not_drawn_are_counted():
    values = {f"accuracy/k{i}": [(1, 0.5)] for i in range(11)}
    (chart,) = charts(values)
    assert (len(chart["legend"]), chart["more"]) == (8, 3)
    (whole,) = charts(dict(list(values.items())[:8]))
    assert whole["more"] == 0


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b\x0cc\x1ed", "\r\n"])
def test_a_line_ends_where_json_lines_end(tmp_path, text):
    rows = [{"completion": text}, {"completion": "next"}]
    for ascii_only in (True, False):
        content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + "\n"
        (tmp_path / "a.jsonl").write_bytes(content.encode())
        assert list(lines_of(epath.Path(tmp_path / "a.jsonl"))) == rows


def test_a_page_that_cannot_be_written_is_said_in_a_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(settings.to_json(settings.default()))
    (tmp_path / "there.html").mkdir()
    for out in (tmp_path / "missing" / "a.html", tmp_path / "there.html"):
        with pytest.raises(UserError) as error:
            report.main([str(tmp_path / "run"), f"--out={out}"])
        assert re.fullmatch(
            rf"{re.escape(str(out))} cannot be written \(.+\); name another file by --out", str(error.value)
        )
    report.main([str(tmp_path / "run"), f"--out={tmp_path / 'page.html'}"])
    assert "<h1>run</h1>" in (tmp_path / "page.html").read_bytes().decode()


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
