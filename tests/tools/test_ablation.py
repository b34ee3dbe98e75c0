"""The ablation: what its advantages were made of, its statistics, its arms and stages, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import re
import runpy
import sys
from dataclasses import replace
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from jvr1.config import from_file
from jvr1.errors import UserError
from jvr1.rl.tgrpo import RolloutScores, TGRPOConfig, advantages
from tools.ablations.collect import SWITCHES, Group, advantage_statistics, cancels, drawn, groups, plain_advantage
from tools.ablations.report import by_seed, interval, ordered, paired, select, written
from tools.ablations.stages import ROOT, Cell, Stage, commit_of, run, stages

with mock.patch.object(sys, "path", [str(ROOT / "tools"), *sys.path]):
    ABLATION = runpy.run_path(str(ROOT / "tools" / "ablation.py"))
REFERENCE = {"gate": "reference", "factor": 0.8, "alpha": 0.0, "temporal_reward": 0.3, "correct_threshold": 0.1}


def groups_of(accuracy: np.ndarray, shuffled: np.ndarray, form: np.ndarray, **switches) -> list[Group]:
    """As training would have kept them, advantages by jvr1.rl.tgrpo."""
    count = len(accuracy)
    rollout = RolloutScores(
        accuracy=jnp.asarray(accuracy, jnp.float32),
        reward=jnp.asarray(accuracy + form, jnp.float32),
        length=jnp.full(accuracy.shape, 24),
        shuffled_accuracy=jnp.asarray(shuffled, jnp.float32),
        shuffled_valid=jnp.ones(shuffled.shape, bool),
        valid=jnp.ones(count, bool),
        is_video=jnp.ones(count, bool),
        distinct_frames=jnp.full(count, 8),
    )
    result = advantages(rollout, TGRPOConfig(length_reward=0.0, **switches))
    columns = (accuracy, form, np.asarray(result.advantage), np.asarray(result.signal))
    return [Group("order", a, f, adv, float(s)) for a, f, adv, s in zip(*columns, strict=True)]


def statistics_of(of: list[Group]) -> dict:
    return advantage_statistics(iter(of), {"order"})


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(3)
    return (rng.random((200, 8)) < 0.6).astype(float), (rng.random((200, 4)) < 0.4).astype(float)


def test_the_published_bonus_cancels_for_verdicts_of_right_and_wrong(outcomes):
    found = statistics_of(groups_of(*outcomes, np.ones((200, 8)), **REFERENCE))
    assert found["cancelling"] == found["signalled"] > 0.5
    assert 0 < found["largest_where_cancels"] < 1e-3
    assert found["changed"] == found["changed_where_cancels"] == 0.0
    assert found["mixed"] == np.mean((outcomes[0].mean(1) > 0) & (outcomes[0].mean(1) < 1))


def test_it_does_not_where_rewards_are_graded(outcomes):
    graded = outcomes[0] * np.random.default_rng(4).uniform(0.2, 1.0, outcomes[0].shape)
    of = groups_of(graded, outcomes[1], np.ones((200, 8)), **REFERENCE)
    assert not any(map(cancels, of))
    assert statistics_of(of)["changed"] > 0.5


def test_nor_where_right_ones_lack_the_format_that_wrong_ones_have():
    """Rewards are equal then, and the bonus is all there is."""
    right = np.array([[1.0, 1.0, 0.0, 0.0]])
    (group,) = groups_of(right, np.zeros((1, 4)), 1 - right, **REFERENCE)
    assert not cancels(group)
    assert np.abs(group.advantage).max() > 0.5
    assert np.all(plain_advantage(group) == 0)


def test_only_the_tasks_asked_for_are_counted(outcomes):
    of = groups_of(*outcomes, np.ones((200, 8)), **REFERENCE)
    assert statistics_of([*of, of[0]._replace(task="colour")])["groups"] == 200


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_our_term_is_what_is_beyond_plain_grpo(outcomes, alpha):
    form = (np.random.default_rng(5).random((200, 8)) < 0.9).astype(float)
    of = groups_of(*outcomes, form, gate="gap", alpha=alpha)
    for group in of:
        c = (group.accuracy > 0.5).astype(float)
        beyond = alpha * group.signal * (c - c.mean())
        np.testing.assert_allclose(group.advantage - plain_advantage(group), beyond, atol=2e-5)
    beyond = [np.abs(group.advantage - plain_advantage(group)).sum() for group in of]
    share = sum(beyond) / sum(np.abs(group.advantage).sum() for group in of)
    assert statistics_of(of)["share_of_size"] == pytest.approx(share)
    assert (share > 1e-3) == (alpha > 0)


def test_groups_are_read_as_training_keeps_them(tmp_path):
    def row(number, frames, accuracy):
        kept = {"microbatch": 0, "row": number, "problem_id": 7 + number, "data_source": "order", "frames": frames}
        return kept | {"accuracy": accuracy, "format": 1.0, "advantage": accuracy - 0.5, "temporal_signal": 0.25}

    def write(step, rows):
        text = "".join(json.dumps({"step": step} | r) + "\n" for r in rows)
        (tmp_path / f"step-{step}.process-0.jsonl").write_text(text)

    clip = [row(0, "ordered", 1.0), row(0, "ordered", 0.0), row(0, "shuffled", 0.0)]
    picture = [row(1, "ordered", 1.0), row(1, "ordered", 1.0)]
    write(2, clip + picture)
    write(10, picture)
    first, second, third = groups(tmp_path)
    assert (first.accuracy.tolist(), first.advantage.tolist(), first.signal) == ([1.0, 0.0], [0.5, -0.5], 0.25)
    assert second.accuracy.tolist() == third.accuracy.tolist() == [1.0, 1.0]
    before = drawn(tmp_path)
    assert (before["ordered"], before["shuffled"]) == (6, 1)
    write(10, [r | {"accuracy": 0.0} for r in picture])
    assert drawn(tmp_path) == before
    write(10, [r | {"problem_id": 1} for r in picture])
    assert drawn(tmp_path)["prompts"] != before["prompts"]
    with pytest.raises(UserError, match="holds no completions"):
        list(groups(tmp_path / "absent"))


def test_intervals_and_paired_tests_are_students():
    """t of 4 degrees of freedom: 2.776; t = 3 / sqrt(0.5) = 4.243 has p = 0.0132."""
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3.0, 2.776 * np.sqrt(0.5)), abs=1e-3)
    differences = {seed: 10.0 + seed for seed in (1, 2, 3, 4, 5)}
    assert paired(differences, dict.fromkeys(differences, 10.0)) == pytest.approx((3.0, 1.963, 0.01324), abs=1e-3)
    assert paired({1: 1.0, 2: 2.0}, {2: 2.0, 1: 1.0}) == (0.0, 0.0, 1.0)
    with pytest.raises(UserError, match=r"seeds \[1, 2\] cannot be paired with \[1, 3\]"):
        paired({1: 1.0, 2: 2.0}, {1: 1.0, 3: 2.0})


def test_every_arm_has_the_same_prompts_completions_and_updates():
    arms = {arm: from_file(f"{ROOT / 'configs' / 'ablation.py'}:{arm}") for arm in ABLATION["ARMS"]}
    assert {arm: (c.rl.gate, c.rl.alpha, c.rl.temporal_reward) for arm, c in arms.items()} == {
        "grpo": ("none", 0.0, 0.0), "reference": ("reference", 0.0, 0.3),
        "gap-0.3": ("gap", 0.3, 0.0), "gap-1": ("gap", 1.0, 0.0), "gap-3": ("gap", 3.0, 0.0),
    }  # fmt: skip
    first, *rest = [c.to_dict() | {"rl": {k: v for k, v in c.rl.items() if k not in SWITCHES}} for c in arms.values()]
    assert all(first == other for other in rest)


def test_stages_of_a_seed_share_its_cold_start(tmp_path):
    plain = list(stages(Cell(tmp_path, "none", 3), ["grpo"]))
    cued = list(stages(Cell(tmp_path, "0.8", 3), ["grpo"]))
    rest = ["eval-sft", "grpo", "eval-grpo"]
    start = [f"none/3/{name}" for name in ("data", "warmup", "sft")]
    assert [stage.name for stage in plain] == start + [f"none/3/{name}" for name in rest]
    assert [stage.name for stage in cued] == start + [f"0.8/3/{name}" for name in ("data", *rest)]
    assert plain[:3] == cued[:3]
    assert f"--config.model.source={tmp_path}/shortcut-none/seed-3/sft" in cued[5].command
    assert [stage.command[-2:] == ("--shortcut", "0.8") for stage in (cued[0], cued[3])] == [False, True]


def test_a_stage_is_done_once_and_only_when_it_ended_well(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.ablations.stages.commit", lambda: "1a2b3c4")  # tests need no git
    counter, program = tmp_path / "counter", "import os; print(os.environ['JVR1_EXIT_ON_PREEMPTION'])"
    once = Stage("a", ("-c", f"{program}; open({str(counter)!r}, 'a').write('x')"), tmp_path / "logs" / "a.log")
    assert commit_of(once) is None
    run(once)
    run(once)
    assert counter.read_text() == "x"
    assert once.log.read_text().splitlines()[1] == "75"
    assert commit_of(once) == "1a2b3c4"
    with pytest.raises(UserError, match="is of another command"):
        run(replace(once, command=("-c", "pass")))
    broken = Stage("b", ("-c", "print('why'); raise SystemExit(3)"), tmp_path / "logs" / "b.log")
    with pytest.raises(UserError, match=r"b ended with 3: why; all it printed: .*b\.unfinished"):
        run(broken)
    assert commit_of(broken) is None
    with (tmp_path / "logs" / "b.unfinished").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="b is being run already, or still"):
            run(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name OUT, the folder of the runs, or --results FILE, not both"),
        (["out", "--arms=grpo,gap-7"], "has no arm 'gap-7'"),
        (["out", "--arms=gap-1"], "grpo must be among them"),
        (["out", "--arms=grpo,grpo"], "--arms is grpo,grpo; each may come once"),
        (["out", "--seeds=1,b"], "--seeds is 1,b; write numbers with commas"),
        (["out", "--shortcuts=none,2"], "--shortcuts is none,2; write none and shares from 0 to 1"),
        (["out", "--jobs=0"], "--jobs is 0; it must be at least 1"),
        (["out", "--sedes=1"], "unrecognized arguments: --sedes=1"),
        (["--results=absent.json"], "absent.json is no file"),
        ([f"--results={ROOT / 'pyproject.toml'}"], "is no results.json of this tool"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ABLATION["main"](arguments)


def results(*runs: tuple[str, int, str], **other) -> dict:
    about = {"commits": ["b"], "date": "2026-01-01", "versions": {}, "seeds_at_a_time": [1], "tasks": {"order": {}}}
    return about | {"runs": [dict(zip(("shortcut", "seed", "arm"), run, strict=True)) for run in runs]} | other


def test_results_of_several_calls_are_joined_as_one():
    first = results(("none", 12, "sft"), ("none", 12, "grpo"), ("0.8", 12, "sft"))
    other = results(("none", 11, "sft"), ("none", 11, "grpo"), commits=["a", "b"], date="2026-01-02")
    both = ABLATION["joined"]([first, other])
    assert [tuple(run.values()) for run in both["runs"]] == [
        ("none", 11, "sft"), ("none", 11, "grpo"), ("none", 12, "sft"), ("none", 12, "grpo"), ("0.8", 12, "sft"),
    ]  # fmt: skip
    assert (both["commits"], both["date"], both["seeds_at_a_time"]) == (["a", "b"], "2026-01-02", [1])
    assert ABLATION["joined"]([first]) == first
    with pytest.raises(UserError, match="hold the run none/12/sft twice"):
        ABLATION["joined"]([first, other, first])
    with pytest.raises(UserError, match="differ in their tasks"):
        ABLATION["joined"]([first, other | {"tasks": {}}])


def test_results_of_an_older_form_are_refused(tmp_path):
    """Where seeds_at_a_time was a number."""
    old = json.loads((ROOT / "docs" / "ablation" / "results.json").read_text()) | {"seeds_at_a_time": 2}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"is no results\.json of this tool"):
        ABLATION["read_results"](tmp_path / "old.json")


def in_both(results):
    """Numbers that the page and the README state in their words."""
    base = by_seed(select(results["runs"], "none", "grpo"), ordered("order"))
    for arm in ("gap-0.3", "reference"):
        mean, half, _ = paired(by_seed(select(results["runs"], "none", arm), ordered("order")), base)
        yield f"{mean:+.1f} ± {half:.1f}"
    bonus = [run["advantages"] for run in results["runs"] if run["arm"] == "reference"]
    assert not any(one["changed_where_cancels"] for one in bonus)
    yield f"{sum(round(one['cancelling'] * one['groups']) for one in bonus):,}"


def on_the_page(results):
    """Numbers of the page's conclusion beyond its tables, each with the word after it."""
    sft, grpo, gap = (
        by_seed(select(results["runs"], "none", arm), ordered("order")) for arm in ("sft", "grpo", "gap-0.3")
    )
    mean, half, _ = paired(gap, grpo)
    spread = np.std([gap[seed] - grpo[seed] for seed in grpo], ddof=1)
    yield f"{mean - half:+.1f} to {mean + half:+.1f}"
    yield f" {paired(grpo, sft)[0]:.0f} points"
    yield f"by {np.ptp(list(grpo.values())):.0f}"
    yield f" {spread:.1f} points"
    yield f" {round(((1.96 + 0.84) * spread / 2) ** 2, -1):.0f} seeds"  # normal, 5% two-sided, power 80%
    yield f" {sum(run['advantages']['groups'] for run in results['runs'] if run['arm'] == 'reference'):,} groups"


def test_the_page_is_what_its_results_say():
    """The tables are those that the committed file gives, and its arms saw the same prompts."""
    page = ROOT / "docs" / "ablation.md"
    committed = json.loads((page.parent / "ablation" / "results.json").read_text())
    assert written(page.read_text(), committed) == page.read_text()
    changed = json.loads(json.dumps(committed))
    changed["runs"][-1]["accuracy"]["order"]["ordered"] += 0.01
    assert written(page.read_text(), changed) != page.read_text()
    arms = [one for one in committed["runs"] if one["arm"] != "sft"]
    assert {one["steps"] for one in arms} == {100}
    readme = (ROOT / "README.md").read_text()
    for said in in_both(committed):
        assert said in page.read_text()
        assert said in readme
    for said in on_the_page(committed):
        assert said in " ".join(page.read_text().split())
    cells = {(one["shortcut"], one["seed"]) for one in arms}
    assert len({(one["shortcut"], one["seed"], json.dumps(one["same"])) for one in arms}) == len(cells), "other prompts"


def test_a_page_without_a_tables_place_is_refused():
    with pytest.raises(UserError, match="the page has no '<!-- main -->'"):
        written("# a page\n<!-- main -->\n", {"runs": [], "tasks": {}})
