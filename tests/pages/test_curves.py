"""Curves on a page: points where they belong, axes in round numbers, nothing that is not finite."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from jvr1.pages.curves import curves, smoothed, span, tick_text, ticks


def drawn(svg: str) -> tuple[ET.Element, list[list[tuple[float, float]]]]:
    """The element, which must be XML, and the points of its lines."""
    root = ET.fromstring(svg)
    lines = [line.get("points", "").split() for line in root.iter("polyline")]
    pairs = [[point.split(",") for point in line] for line in lines]
    return root, [[(float(x), float(y)) for x, y in line] for line in pairs]


def test_points_lie_where_their_values_are():
    root, (line,) = drawn(curves({"a": [(1, 0.0), (2, 0.5), (3, 1.0)]}, least=0, most=1))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x2 == pytest.approx((x1 + x3) / 2)
    assert y2 == pytest.approx((y1 + y3) / 2)
    assert 0 < x1 < x3 < width
    assert 0 < y3 < y1 < height  # up is less
    texts = {t.text: t for t in root.iter("text")}
    assert {"0", "1", "3"} <= texts.keys()
    grid = sorted(float(g.get("y1", 0)) for g in root.iter("line"))
    assert (grid[0], grid[-1]) == (pytest.approx(y3), pytest.approx(y1))  # lines at 1 and at 0


def test_what_is_not_finite_is_left_out_and_one_value_is_a_dot():
    root, lines = drawn(curves({"a": [(1, math.nan), (2, 3.0)], "b": [(1, math.inf)], "c": [(1, 1.0), (2, 2.0)]}))
    assert len(lines) == 1
    assert len(list(root.iter("circle"))) == 1
    assert "nothing yet" in curves({"a": [(1, math.nan)]})
    assert "nothing yet" in curves({})


def test_names_are_text():
    svg = curves({'<b>"&': [(0, 0.0), (1, 1.0)]})
    root, _ = drawn(svg)
    assert root.get("aria-label") == '<b>"&'
    assert not list(root.iter("b"))


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.03, 0.03, [-0.03, -0.02, -0.01, 0, 0.01, 0.02, 0.03]),
        (0, 24, [0, 5, 10, 15, 20]),
        (7, 9, [7, 7.5, 8, 8.5, 9]),
        (0, 3e-6, [0, 1e-6, 2e-6, 3e-6]),
    ],
)
def test_ticks_are_round_and_within(low, high, want):
    assert ticks(low, high) == pytest.approx(want)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12, "12"), (1500, "1500"), (12_000, "12k"), (2e-4, "2e-4"), (1.5e-4, "1.5e-4"),
     (3e6, "3e6"), (0.30000000000000004, "0.3")],
)  # fmt: skip
def test_ticks_are_short(value, text):
    assert tick_text(value) == text


def test_a_peak_does_not_flatten_the_rest():
    low, high = span([*[1.0] * 30, 100.0], 0, None)
    assert (low, high) == (0, pytest.approx(1.2, rel=0.05))
    assert span([*[1.0] * 4, 100.0], 0, None)[1] > 100  # of few values none is a peak
    _, (line,) = drawn(curves({"a": [(i, 100.0 if i == 0 else 1.0) for i in range(30)]}, least=0))
    assert min(y for _, y in line) >= 0  # cut at the edge


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0], [-1.0, -1.0]])
def test_an_axis_has_a_length(values):
    low, high = span(values, None, None)
    assert low < values[0] < high


def test_many_points_are_smoothed_and_shown():
    points = [(i, float(i % 2)) for i in range(200)]
    middle = [y for _, y in smoothed(points)][20:-20]
    assert max(middle) - min(middle) < 0.2  # of 0, 1, 0, 1, ..
    assert smoothed(points[:10]) == points[:10]
    svg = curves({"a": points})
    assert re.findall(r'class="(line0[^"]*)"', svg) == ["line0 faint", "line0"]
