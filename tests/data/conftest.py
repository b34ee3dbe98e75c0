"""The demo's tokenizer and configuration, without its weights."""

import json

import pytest
from transformers import AutoTokenizer

from jvr1.demo.dataset import questions
from jvr1.demo.questions import HARD, TASKS, WARMUP
from jvr1.demo.tiny_model import corpus, json_bytes, processor_config, raw_config, tokenizer_files, train_tokenizer
from jvr1.model.families import from_hf


@pytest.fixture(scope="session")
def folder_of_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer(corpus(questions((*TASKS, *HARD, *WARMUP), each=48, seed=0)))
    files = tokenizer_files(trained) | {
        "config.json": json_bytes(raw_config(trained)),
        "preprocessor_config.json": json_bytes(processor_config()),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder_of_tokenizer):
    return AutoTokenizer.from_pretrained(folder_of_tokenizer)


@pytest.fixture(scope="session")
def config(folder_of_tokenizer):
    return from_hf(json.loads((folder_of_tokenizer / "config.json").read_text()))
