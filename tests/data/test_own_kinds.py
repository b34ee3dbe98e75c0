"""A user's own problem kind reaches the processes that make examples, and the names of their indices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import encoder, record
from painted import Paint

from jvr1.data.batch import make_buckets
from jvr1.data.pipeline import Pipeline
from jvr1.data.prompts import PromptStyle
from jvr1.data.schedule import Sequential
from jvr1.data.store import RecordStore
from jvr1.problems.kinds import KINDS, load_kinds

SPEC = "train.own_kind:SHADE"  # tests/ is on the path
(ROOM,) = make_buckets([("text", 0, 0, 400, 24)])


@pytest.fixture
def asking(tmp_path, config, tokenizer):
    """An encoder that asks for the kind's form of answer."""
    load_kinds([SPEC])
    style = PromptStyle("{Question}")
    yield encoder(config, tokenizer, Paint(tmp_path), buckets=(ROOM,), targets=False, style=style, kinds=(SPEC,))
    del KINDS["shade"]


def test_worker_processes_know_it(asking, tmp_path, tokenizer):
    one = record(0, None, "text", problem_type="shade", options=())
    store = RecordStore.write(tmp_path / "store", [one])

    def ids(workers: int) -> np.ndarray:
        pipeline = Pipeline(Sequential({ROOM: [0]}, 1), store, asking, seed=0, per_step=1, workers=workers)
        ((micro),) = pipeline.microbatches(0, 1, {})
        assert micro.rows[0].error is None
        return micro.arrays.prompt.ids[0][micro.arrays.prompt.mask[0]]

    assert "third? Name the shade in one word." in tokenizer.decode(ids(0))
    assert np.array_equal(ids(1), ids(0))


def test_an_index_is_named_by_what_it_asks(asking):
    """Without own kinds the name is what it was before there were any."""
    with_it = asking.fingerprint()
    assert with_it.pop("kinds") == [("shade", " Name the shade in one word.", False)]
    assert with_it == replace(asking, kinds=()).fingerprint()
