"""A run that reads rows with two workers: `pipeline_driver.py TOKENIZER FOLDER`.

Says the name of its shared memory after a microbatch, and takes another for each line it is sent.
"""

import json
import sys
from pathlib import Path

import numpy as np
from cases import VIDEO, encoder, record
from painted import Paint
from transformers import AutoTokenizer

from jvr1.data.pipeline import Pipeline
from jvr1.data.schedule import Pool, Schedule
from jvr1.data.shared_memory import own_name
from jvr1.data.store import RecordStore
from jvr1.model.families import from_hf

if __name__ == "__main__":  # workers import this module, too
    tokenizer, folder = map(Path, sys.argv[1:])
    pipeline = Pipeline(
        Schedule([Pool(VIDEO, np.arange(16), 1.0)], batch=4, seed=7),
        RecordStore.write(folder / "store", [record(n, f"good-{n}.mp4") for n in range(16)]),
        encoder(
            from_hf(json.loads((tokenizer / "config.json").read_text())),
            AutoTokenizer.from_pretrained(tokenizer),
            Paint(folder),
            buckets=(VIDEO,),
        ),
        seed=7,
        per_step=2,
        workers=2,
    )
    microbatches = pipeline.microbatches(0, 100, {})
    next(microbatches)
    print(own_name(), pipeline.buffered, flush=True)
    for _ in sys.stdin:
        print(next(microbatches).arrays.valid.sum(), flush=True)
    microbatches.close()
