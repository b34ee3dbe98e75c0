"""What a T-GRPO run shows and leaves behind; the shuffled twin in the rollout."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from oracle import END, IMAGE, START, random_model
from runs import OF_STAGE, SETTINGS, STEPS, scalars
from step_cases import as_task, make_rows
from train.test_microbatches import CONFIG

from jvr1 import config as settings
from jvr1.data.batch import Bucket, Clip, Microbatch, Row, build_example, stack_examples
from jvr1.data.records import parse_record
from jvr1.data.share import ALONE
from jvr1.opening.data import make_encoder
from jvr1.opening.indices import measure_questions
from jvr1.opening.models import open_model, read_tokenizer
from jvr1.rl import tgrpo
from jvr1.rl.judge import Judge
from jvr1.rollout.decoder import make_decoder
from jvr1.rollout.tasks import Sampled
from jvr1.sharding import make_mesh
from jvr1.train.setup import open_training_rows
from jvr1.train.steps import make_advantages

GROUP, SHUFFLED = OF_STAGE["rl"]["rl.group"], OF_STAGE["rl"]["rl.shuffled"]
ROWS = SETTINGS["batch.micro"]

EVERY_STEP = [
    "loss",
    "reward",
    "reward/accuracy",
    "reward/format",
    "reward/bonus",
    "reward/user/vowels",
    "reward/unscored",
    "reward/user_failed/exception",
    "accuracy",
    "advantage",
    "advantage_std",
    "all_right",
    "all_wrong",
    "zero_variance",
    "loss/kl",
    "loss/clip_low",
    "loss/clip_high",
    "loss/entropy",
    "loss/ratio",
    "loss/logprob_gap",
    "loss/logprob_gap_max",
    "completion/length",
    "completion/max",
    "completion/cut_off",
    "update/gradient_norm",
    "update/skipped",
    "update/learning_rate",
    "update/applied",
    "update/padded",
    "data/failed",
    "data/padding",
    "seconds/data",
    "seconds/generate",
    "seconds/reward",
    "seconds/update",
    "seconds/step",
    "tokens_per_second",
    "flops_per_second",
]
OF_VIDEOS = [
    "temporal/ordered",
    "temporal/shuffled",
    "temporal/gap",
    "temporal/signal",
    "temporal/bonus_rate",
    "accuracy/video",
]
BY_TYPE = ["reward/multiple choice", "accuracy/multiple choice", "accuracy/image", "accuracy/order"]
VALID = ["valid/order/ordered", "valid/order/shuffled", "valid/order/format", "valid/order/length"]


@pytest.fixture(scope="module")
def run(demo):
    return demo.finished("rl")


@pytest.fixture(scope="module")
def logged(run):
    return scalars(run.workdir)


@pytest.fixture(scope="module")
def rollouts(run):
    """Step -> the rows of its file."""
    files = (run.workdir / "rollouts").iterdir()
    return {int(p.name.split(".")[0][5:]): [json.loads(line) for line in p.open()] for p in files}


def test_every_metric_is_logged(logged):
    for name in EVERY_STEP:
        assert [step for step, _ in logged[name]] == list(range(1, STEPS + 1)), name
    for name in OF_VIDEOS + BY_TYPE:
        assert logged[name], name
    for name in VALID:
        assert [step for step, _ in logged[name]] == [0, 25, 50], name
    assert all(math.isfinite(value) for values in logged.values() for _, value in values)


@pytest.mark.nightly
def test_packed_and_padded_runs_are_one(demo, tmp_path):
    """Of a model that ends some answers: the same completions and advantages, and losses to the order of summation."""
    buckets = (("video", 4, 1, 66, 24), ("image", 1, 1, 54, 24))
    changes = {"model__source": demo.exported(), "data__buckets": buckets, "train__steps": 4}
    rows, values = [], []
    for packing in (24, 0):
        workdir = tmp_path / str(packing)
        demo.done(["-mjvr1.train_rl"], demo.arguments("rl", workdir, rl__packing=packing, **changes))
        files = sorted((workdir / "rollouts").iterdir())
        rows.append([json.loads(line) for file in files for line in file.open()])
        values.append(scalars(workdir))
    assert len({row["step"] for row in rows[0]}) == 4
    assert rows[0] == rows[1]
    packed, padded = values
    for name in ("loss", "loss/kl", "loss/entropy", "update/gradient_norm"):
        np.testing.assert_allclose(packed[name], padded[name], rtol=1e-5, atol=1e-6)
    shares = [[share for _, share in one["update/padded"]] for one in values]
    assert any(a < b for a, b in zip(*shares, strict=True)), "none was on a tape"


def test_shares_and_seconds_are_possible(logged):
    for name in ("all_right", "all_wrong", "zero_variance", "completion/cut_off", "data/padding", "reward/format"):
        assert all(0 <= value <= 1 for _, value in logged[name]), name
    parts = [logged[f"seconds/{name}"] for name in ("data", "generate", "reward", "update")]
    for (_, total), *own in zip(logged["seconds/step"], *parts, strict=True):
        assert sum(value for _, value in own) <= total * 1.001
    assert all(value <= OF_STAGE["rl"]["data.buckets"][0][4] for _, value in logged["completion/max"])


def test_sampled_and_scored_log_probabilities_agree(logged):
    assert max(value for _, value in logged["loss/logprob_gap_max"]) < 1e-3
    assert max(abs(value - 1) for _, value in logged["loss/ratio"]) < 1e-5


def test_every_completion_is_in_the_rollout_files(rollouts):
    assert sorted(rollouts) == list(range(1, STEPS + 1))
    for rows in rollouts.values():
        questions = defaultdict(list)
        for row in rows:
            questions[row["microbatch"], row["row"]].append(row)
        assert len(questions) <= 2 * ROWS
        for group in questions.values():
            frames = [row["frames"] for row in group]
            shuffled = SHUFFLED if "shuffled" in frames else 0
            assert frames == ["ordered"] * GROUP + ["shuffled"] * shuffled
            assert all(isinstance(row["completion"], str) and row["tokens"] >= 1 for row in group)
            own = np.asarray([row["advantage"] for row in group[:GROUP]])
            assert abs(own.mean()) < 1e-4
            rewards = np.asarray([row["reward"] for row in group[:GROUP]])
            if np.ptp(rewards) > 1e-3:
                assert np.argmax(rewards) == np.argmax(own)
    assert {row["frames"] for rows in rollouts.values() for row in rows} == {"ordered", "shuffled"}


def test_what_is_logged_is_the_mean_of_what_was_sampled(rollouts, logged):
    for step, reward in logged["reward"]:
        rows = [row for row in rollouts[step] if row["frames"] == "ordered"]
        assert np.mean([row["reward"] for row in rows]) == pytest.approx(reward, abs=1e-5)
        assert np.mean([row["rewards"]["vowels"] for row in rows]) == pytest.approx(
            dict(logged["reward/user/vowels"])[step], abs=1e-5
        )
        for kind in {row["problem_type"] for row in rows}:
            cut = [not row["ended"] for row in rows if row["problem_type"] == kind]
            assert np.mean(cut) == pytest.approx(dict(logged[f"completion/cut_off/{kind}"])[step], abs=1e-6)


def test_images_have_no_shuffled_twin_and_no_temporal_signal(rollouts, logged):
    kinds = defaultdict(set)
    for step, rows in rollouts.items():
        for row in rows:
            kinds[step].add(row["data_source"])
            if row["data_source"] in ("colour", "squares", "bar", "read", "describe"):  # one picture each
                assert row["frames"] == "ordered"
                assert row["temporal_signal"] == 0
    only_images = [s for s in rollouts if not kinds[s] & {"order", "motion", "blinks"}]
    logged_at = {step for step, _ in logged["temporal/gap"]}
    assert logged_at == set(rollouts) - set(only_images)


# --- the twin itself


@pytest.fixture(scope="module")
def decoder():
    graphdef, params = random_model(CONFIG, seed=3, scale=0.3)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return make_decoder(graphdef, mesh, CONFIG, (2, 1)), jax.device_put(params, jax.devices()[0])


def first_tokens(decoder, arrays, rows):
    """Greedy tokens and log-probabilities of each stream."""
    decode, params = decoder
    (done,) = decode.answers(decode.weights(params), [as_task(arrays, rows)], jax.random.key(0))
    return done


def test_the_shuffled_stream_is_encoded_from_the_shuffled_frames(decoder):
    """Equal to a clip whose frames stand in that order; and not to the ordered clip's encoding."""
    arrays = stack_examples([row for row in make_rows(CONFIG) if row.valid])
    both = first_tokens(decoder, arrays, (1, 1))
    turned = arrays.visual._replace(pair=arrays.shuffled)
    alone = first_tokens(decoder, arrays._replace(visual=turned), (1,))
    plain = first_tokens(decoder, arrays, (1,))
    for got, want in ((both.logprobs[:, :1], plain.logprobs), (both.logprobs[:, 1:], alone.logprobs)):
        np.testing.assert_allclose(got, want, atol=2e-5)
    first = both.logprobs[:, :, 0]
    assert np.all(np.abs(first[:, 0] - first[:, 1]) > 1e-4)  # no clip's twin reads as the clip does


def test_the_twin_is_the_clip_with_its_frames_permuted():
    rows = [row for row in make_rows(CONFIG) if row.valid]
    for row in rows:
        order = row.shuffled.reshape(-1)
        assert sorted(order) == list(range(4))
        assert not np.array_equal(row.shuffled, row.visual.pair)


def test_every_video_and_every_step_has_its_own_permutation(demo):
    """As the training pipeline gives them, over several epochs of the same clips."""

    changes = {"data__buckets": (("video", 4, 1, 66, 6),), "data__modality__image": 0, "seed": 5}
    config, *_ = settings.parse(["rl", *demo.arguments("rl", demo.root / "none", **changes)])
    model = open_model(demo.model, make_mesh({"data": 1}, jax.devices()[:1]))
    encoder = make_encoder(config, model.config, read_tokenizer(demo.model), targets=False)

    place = epath.Path(demo.root / "permutations")
    files = [measure_questions("rl.json", config, encoder, place)]
    pipeline, *_ = open_training_rows(config, files, encoder, place, ALONE)
    seen, of_clip = [], defaultdict(list)
    for micro in pipeline.microbatches(0, 30, {}):
        for place, row in enumerate(micro.rows):
            if row.record is not None:
                order = tuple(micro.arrays.shuffled[place].reshape(-1))
                seen.append(order)
                of_clip[row.record.problem_id].append(order)
    assert max(len(v) for v in of_clip.values()) >= 3
    assert len(set(seen)) >= len(seen) - 1  # 8! orders, some 85 draws
    assert all(len(set(v)) > 1 for v in of_clip.values() if len(v) > 1)
    encoder.read.close()


def test_an_image_never_enters_temporal_statistics():
    """Though its accuracies would say that order helps."""
    image = Bucket("image", 1, 1, 24, 6)
    rng = np.random.default_rng(0)

    clip = Clip(rng.integers(0, 256, (1, 56, 56, 3), np.uint8), 0.0)
    ids = np.asarray([5, START, *[IMAGE] * 4, END, 6], np.int32)
    row = build_example(ids, [clip], np.zeros(0, np.int32), image, CONFIG, rng)
    np.testing.assert_array_equal(row.shuffled, row.visual.pair)
    raw = {
        "problem_id": 1, "problem": "?", "data_type": "image", "problem_type": "multiple choice",
        "options": ["A. x", "B. y"], "solution": "<answer>A</answer>", "path": "./a.png", "data_source": "s",
    }  # fmt: skip
    micro = Microbatch(image, stack_examples([row]), (Row(0, 0, parse_record(raw)),))
    texts = [["<think>.</think><answer>A</answer>", "<think>.</think><answer>B</answer>"]]
    sampled = Sampled(np.zeros((1, 2, 6), np.int32), np.full((1, 2), 6), np.ones((1, 2), bool), np.zeros((1, 2, 6)))
    judged = Judge("robust")(micro, texts, sampled, (2,))
    assert not judged.rollout.is_video.any()
    scores = jax.tree.map(jnp.asarray, judged.rollout)
    result, _, _, statistics = make_advantages(tgrpo.TGRPOConfig(), make_mesh({"data": 1}, jax.devices()[:1]))(
        scores, scores.length, jnp.zeros((1, 2, 6), jnp.int32)
    )
    assert float(result.signal[0]) == 0
    np.testing.assert_allclose(result.advantage[0], [0.7070, -0.7070], atol=1e-3)
    assert all(float(value.weight) == 0 for name, value in statistics.items() if name.startswith("temporal/"))
