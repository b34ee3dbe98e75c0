"""Records on disk are the records."""

import pickle

import pytest
from cases import record

from jvr1.data.store import RecordStore

RECORDS = [
    record(0),
    record("b-7", path=("a.png", "ü/b.png"), data_type="image", problem="视频 🎬 \ud800?\n", process=None),
    record(2, path=None, data_type="text", problem_type="regression", options=()),
]


def test_records_come_back_as_they_were(tmp_path):
    store = RecordStore.write(tmp_path / "new" / "folder", RECORDS)
    assert [store[n] for n in range(len(store))] == RECORDS


def test_a_copy_opens_the_files_itself(tmp_path):
    store = RecordStore.write(tmp_path, RECORDS)
    assert store[1] == RECORDS[1]
    state = pickle.dumps(store)
    assert len(state) < 500
    assert pickle.loads(state)[2] == RECORDS[2]


def test_no_records(tmp_path):
    store = RecordStore.write(tmp_path, [])
    assert len(store) == 0
    with pytest.raises(IndexError):
        store[0]


def test_numbers_outside_are_refused(tmp_path):
    store = RecordStore.write(tmp_path, RECORDS)
    for number in (3, -1):
        with pytest.raises(IndexError):
            store[number]
