"""The page on one's own data: every example record is read as it stands there and has nothing doubtful in it."""

import json
import re

import pytest
from runs import REPOSITORY

from jvr1.config import from_file, question_fields
from jvr1.data.inspection import inspect_records
from jvr1.data.records import DATA_TYPES, load_records
from jvr1.data.rows import FIELDS
from jvr1.problems.kinds import KINDS

PAGE = (REPOSITORY / "docs" / "your_data.md").read_text()
EXAMPLES = re.findall(r"^```json\n(.*?)^```", PAGE, re.S | re.M)


@pytest.mark.parametrize("text", EXAMPLES)
def test_each_example_is_accepted_without_a_doubt(tmp_path, text):
    """Alone, and as a line of a file."""
    (tmp_path / "one.json").write_text(f"[{text}]")
    (tmp_path / "one.jsonl").write_text(json.dumps(json.loads(text)))
    found = load_records(tmp_path / "one.json")
    assert load_records(tmp_path / "one.jsonl") == found
    assert inspect_records(dict(enumerate(found))) == []


def test_together_they_show_all_there_is(tmp_path):
    (tmp_path / "all.json").write_text(f"[{','.join(EXAMPLES)}]")
    records = load_records(tmp_path / "all.json")
    assert {record.problem_type for record in records} == KINDS.keys()
    assert {record.data_type for record in records} == set(DATA_TYPES)
    assert len({record.problem_id for record in records}) == len(records)
    assert any(len(record.paths) > 1 for record in records)
    assert any(record.process for record in records)
    assert any(record.start is not None for record in records)


def test_every_field_has_a_row():
    rows = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", PAGE.partition("## Problem types")[0], re.M)))
    )
    assert rows >= set(FIELDS)


def test_its_mapping_is_a_setting():
    override = re.search(r"^--config\.data\.fields=\"(.*)\"$", PAGE, re.M)[1]
    config = from_file(f"{REPOSITORY / 'configs' / 'tiny.py'}:rl", [f"--config.data.fields={override}"])
    fields = question_fields(config)
    assert ("path", "video") in fields.taken
    assert ("problem_type", "multiple choice") in fields.given
