"""Records of several files as one numbered sequence that worker processes share without copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jvr1.data.records import Record


class RecordStore:
    """A file of records and one of their offsets, memory-mapped by every process that reads them.

    The files are ours, written and read within one run; what travels to a worker is their names.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._offsets: np.ndarray | None = None
        self._data: np.ndarray | None = None

    @classmethod
    def write(cls, folder: Path, records: Sequence[Record]) -> RecordStore:
        folder.mkdir(parents=True, exist_ok=True)
        offsets = np.zeros(len(records) + 1, np.int64)
        with (folder / "records.bin").open("wb") as file:
            for i, record in enumerate(records):
                offsets[i + 1] = offsets[i] + file.write(json.dumps(asdict(record)).encode())
        np.save(folder / "offsets.npy", offsets)
        return cls(folder)

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._offsets is None or self._data is None:
            self._offsets = np.load(self.folder / "offsets.npy")
            empty = self._offsets[-1] == 0
            self._data = np.zeros(0, np.uint8) if empty else np.memmap(self.folder / "records.bin", np.uint8, "r")
        return self._offsets, self._data

    def __len__(self) -> int:
        return len(self._open()[0]) - 1

    def __getitem__(self, number: int) -> Record:
        offsets, data = self._open()
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        fields = json.loads(data[offsets[number] : offsets[number + 1]].tobytes())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Record(**values)

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "_offsets": None, "_data": None}
