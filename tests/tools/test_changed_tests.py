"""Which tests a change calls for."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "changed_tests.py"))

IMPORTS = {
    "jvr1/low.py": set(),
    "jvr1/middle.py": {"jvr1/low.py"},
    "jvr1/high.py": {"jvr1/middle.py"},
    "jvr1/main.py": {"jvr1/high.py"},
    "tests/helper.py": {"jvr1/low.py"},
    "tests/test_low.py": set(),
    "tests/test_helped.py": {"tests/helper.py"},
    "tests/test_middle.py": {"jvr1/middle.py"},
    "tests/test_high.py": {"jvr1/high.py"},
    "tests/test_main.py": {"jvr1/main.py"},
}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("tests/test_high.py", {"high"}),
        ("tests/helper.py", {"helped"}),
        ("jvr1/low.py", {"low", "helped", "middle"}),  # its mirror, by a helper, by a module between
        ("jvr1/middle.py", {"middle", "high"}),
        ("jvr1/main.py", {"main"}),
        ("README.md", set()),
    ],
)
def test_tests_of_a_change(changed, tests):
    found = TOOL["tests_of"]({changed}, IMPORTS)
    assert found == {f"tests/test_{name}.py" for name in tests}


def test_far_tests_count_where_there_are_no_near_ones():
    far = {"a.py": set(), "b.py": {"a.py"}, "c.py": {"b.py"}, "d.py": {"c.py"}, "tests/test_x.py": {"d.py"}}
    assert TOOL["tests_of"]({"a.py"}, far) == {"tests/test_x.py"}


def test_the_imports_of_this_repository_are_found():
    graph = TOOL["graph"]()
    assert {"jvr1/model/layers.py", "jvr1/model/rope.py"} <= graph["jvr1/model/text.py"]
    assert "tests/step_cases.py" in graph["tests/train/test_microbatches.py"]
    assert "tests/rollout/test_generate.py" in TOOL["tests_of"]({"jvr1/rollout/generate.py"}, graph)


def test_a_revision_that_is_none_is_one_line(capsys):
    assert TOOL["main"]("no-such-revision") == 2
    assert capsys.readouterr().err == "error: git knows no revision no-such-revision\n"
