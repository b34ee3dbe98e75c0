"""A run that fits its own buckets: to its questions, the same when it goes on, refused where too many are lost."""

import json
import re

import pytest
from etils import epath
from runs import REPOSITORY
from transformers import AutoTokenizer

from jvr1 import config as settings
from jvr1.data.share import ALONE
from jvr1.demo.dataset import Settings, write_dataset
from jvr1.demo.tiny_model import write_tiny_model
from jvr1.errors import UserError
from jvr1.model.hf import read_config
from jvr1.train.setup import open_data
from jvr1.train.workdir import Begun, keep_buckets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    write_dataset(root, Settings(train=32, valid=32, test=32, seed=3))
    write_tiny_model(root / "model", seed=1)
    return root


def config_of(root, *overrides, auto=True):
    changes = [
        f"data.root={root}",
        f"model.source={root / 'model'}",
        "batch.micro=2",
        "train.validate_every=0",
        f"data.index={root}/index",
    ]
    changes += ["data.buckets=auto", "data.auto.completion=6"] if auto else []
    config = settings.from_file(
        f"{REPOSITORY / 'configs' / 'tiny.py'}:rl", [f"--config.{one}" for one in (*changes, *overrides)]
    )
    return settings.check(config)


def opened(config, root, workdir, targets=False, begun=False):
    model, tokenizer = read_config(root / "model"), AutoTokenizer.from_pretrained(root / "model")
    return open_data(config, model, tokenizer, epath.Path(workdir), ALONE, targets=targets, begun=begun)


def plans(pipeline, count=40):
    return [(bucket, rows.tolist()) for bucket, rows in map(pipeline.planner.micro, range(count))]


def test_the_same_batches_after_a_restart(root, tmp_path, capsys):
    """Before its first checkpoint they are fitted again from the index; after it they are the kept ones."""
    first = config_of(root)
    (pipeline, digest, _), _ = opened(first, root, tmp_path)
    told = capsys.readouterr().out
    assert "data.buckets=auto: " in told
    assert "32 records, 32 kept, 0 dropped" in told
    (padding,) = re.findall(r"padding of prompt tokens ([\d.]+)%, of windows ([\d.]+)%", told)
    assert all(float(share) <= 15.0 for share in padding)
    assert all(f"  {row}," in told for row in first.data.buckets)
    again = config_of(root)
    (pipeline_again, digest_again, _), _ = opened(again, root, tmp_path)
    assert (again.data.buckets, digest_again, plans(pipeline_again)) == (first.data.buckets, digest, plans(pipeline))
    (tmp_path / "config.json").write_text(settings.to_json(first))
    for begun in (Begun(1, "rl", json.loads(settings.to_json(first)), None), Begun(1, "rl", None, None)):
        resumed = config_of(root)
        keep_buckets(resumed, epath.Path(tmp_path), begun)
        assert settings.to_json(resumed) == settings.to_json(first)
    (kept, digest_kept, _), _ = opened(resumed, root, tmp_path)
    assert (digest_kept, plans(kept)) == (digest, plans(pipeline))
    fresh = config_of(root)
    keep_buckets(fresh, epath.Path(tmp_path), None)
    assert settings.fits_buckets(fresh)


def test_validation_s_questions_and_answers_to_learn_fit_too(root, tmp_path):
    config = config_of(root, "data.train=sft.json", "data.valid=hard.json", "train.validate_every=5")
    config.data.auto.completion = 40
    _, questions = opened(config, root, tmp_path, targets=True)
    assert questions[1] > 0
    longest = max(entry[7] for entry in index_lines(root, "sft-"))
    assert {row[4] for row in config.data.buckets} == {40}
    assert 0 < longest <= 40
    prompts = [entry[2] for entry in index_lines(root, "hard-")]
    assert max(prompts) <= max(row[3] for row in config.data.buckets)


def index_lines(workdir, stem):
    (file,) = [f for f in (workdir / "index").glob(f"{stem}*.jsonl") if "media" not in f.name]
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_kinds_that_are_not_drawn_get_no_bucket_and_are_not_missed(root, tmp_path):
    config = config_of(root, "data.modality.image=0")
    opened(config, root, tmp_path)
    assert {row[0] for row in config.data.buckets} == {"video"}


def test_a_run_that_would_lose_too_much_is_refused(root, tmp_path, capsys):
    few = ("data.buckets=(('video',4,1,66,6),('image',1,1,8,6))",)
    with pytest.raises(UserError, match=r"rl.json: \d+ of 32 records are dropped \(\d+ too many prompt tokens\)"):
        opened(config_of(root, *few, auto=False), root, tmp_path)
    assert (
        "--config.data.buckets=auto --config.data.auto.completion=6 keeps all of kind image" in capsys.readouterr().out
    )
    opened(config_of(root, *few, "data.max_dropped=0.5", auto=False), root, tmp_path)
    short = config_of(root, "data.auto.prompt=8")
    with pytest.raises(UserError, match=r"no question of rl.json can be given a bucket"):
        opened(short, root, tmp_path)


def test_a_run_that_would_learn_from_doubtful_records_is_refused(root, tmp_path, capsys):
    records = json.loads((root / "rl.json").read_text())
    for record in records[:4]:
        record["options"] = [option.partition(". ")[2] for option in record["options"]]
    (root / "doubtful.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match=r"doubtful.json: 4 of 32 records are doubtful \(4 options have no letters\), "):
        opened(config_of(root, "data.train=doubtful.json"), root, tmp_path)
    assert 'write them as ["A. red", "B. blue"]' in capsys.readouterr().out
    opened(config_of(root, "data.train=doubtful.json", "data.max_doubtful=0.2"), root, tmp_path)


def test_no_medium_is_probed_again_for_other_sizes(root, tmp_path):
    opened(config_of(root), root, tmp_path)
    (root / "media").rename(root / "gone")
    try:
        opened(config_of(root, "data.video.frames=4"), root, tmp_path)
    finally:
        (root / "gone").rename(root / "media")
    assert len(list((root / "index").glob("rl-media-*"))) == 1
    assert len(list((root / "index").glob("rl-*"))) == 3


def test_what_was_mended_is_probed_again_before_a_run_begins(root, tmp_path):
    """In the run's own index; one that goes on keeps its rows."""
    records = json.loads((root / "rl.json").read_text())[:3]
    records[0]["path"], records[1]["path"] = "./media/late.mp4", "./media/never.mp4"
    (root / "mended.json").write_text(json.dumps(records))
    ours = ("data.train=mended.json", "data.max_dropped=1", "data.index=")
    late, clip = root / "media" / "late.mp4", root / records[2]["path"]
    kept = []
    for begun in (False, True, False):
        (_, _, entries), _ = opened(config_of(root, *ours), root, tmp_path, begun=begun)
        kept.append([entry.bucket is not None for entry in entries])
        if not late.exists():
            late.write_bytes(clip.read_bytes())
    assert kept == [[False, False, True], [False, False, True], [True, False, True]]
