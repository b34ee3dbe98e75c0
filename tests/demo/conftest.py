import json
from pathlib import Path

import numpy as np
import pytest
from decord import VideoReader, cpu

from jvr1.demo.dataset import Settings, splits, write_dataset
from jvr1.demo.tiny_model import write_tiny_model

SETTINGS = Settings(train=128, valid=64, test=96, seed=5, shortcut=0.75, temporal=8)


class Data:
    """A data set on disk: its records by split, its frames as the training's decoder gives them."""

    def __init__(self, root: Path):
        self.root = root
        self.records = {s.name: json.loads((root / f"{s.name}.json").read_text()) for s in splits(SETTINGS)}

    def frames(self, record: dict) -> np.ndarray:
        reader = VideoReader(str(self.root / record["path"]), ctx=cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()

    def clips(self, task: str, *names: str) -> list[tuple[dict, np.ndarray]]:
        return [(r, self.frames(r)) for n in names for r in self.records[n] if r["data_source"] == task]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Data:
    root = tmp_path_factory.mktemp("demo")
    write_dataset(root, SETTINGS)
    return Data(root)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny_model"
    write_tiny_model(folder, seed=3)
    return folder
