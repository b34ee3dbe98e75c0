"""Curves as SVG for a page: no library, no script; colours come from the page's style. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22
LINE_COLOURS = 8
SMOOTHED = 40
"""Points from which a curve is drawn smoothed, its points faint behind it."""

_Number = float | int
Points = Sequence[tuple[_Number, _Number]]


def curves(series: Mapping[str, Points], *, least: _Number | None = None, most: _Number | None = None) -> Markup:
    """An SVG element of the named curves, each of (x, y); values that are not finite are left out.

    least, most: what the axis reaches at least. Where a few values stand far above all others the axis ends below them.
    """
    drawn = {name: finite(points) for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return Markup('<p class="soft">nothing yet</p>')
    low, high = span([y for _, y in every], least, most)
    x0, x1 = min(x for x, _ in every), max(x for x, _ in every)

    def at(x: _Number, y: _Number) -> str:
        right = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        return (
            f"{_LEFT + right * (_WIDTH - _LEFT - _RIGHT):.1f},{_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM):.1f}"
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(", ".join(drawn))}">']
    for y in ticks(low, high):
        _, height = at(x0, y).split(",")
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height}" dy="4" text-anchor="end">{tick_text(y)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")) if x1 > x0 else ((x0, "middle"),):
        place = at(x, low).split(",")[0]
        parts.append(f'<text x="{place}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{tick_text(x)}</text>')
    for number, (name, points) in enumerate(drawn.items()):
        parts += curve(name, points, number % LINE_COLOURS, at)
    return Markup("".join([*parts, "</svg>"]))


def curve(name: str, points: Points, colour: int, at: Callable[[_Number, _Number], str]) -> list[str]:
    """One of them: a line, or a dot where there is one value."""
    if not points:
        return []
    last = points[-1]
    title = f"<title>{escape(name)}: {last[1]:.4g} at {last[0]:g}</title>"
    if len(points) == 1:
        x, y = at(*last).split(",")
        return [f'<circle class="fill{colour}" cx="{x}" cy="{y}" r="3">{title}</circle>']
    lines, smooth = [], smoothed(points)
    if smooth is not points:
        lines.append(f'<polyline class="line{colour} faint" points="{" ".join(at(*p) for p in points)}"/>')
    lines.append(f'<polyline class="line{colour}" points="{" ".join(at(*p) for p in smooth)}">{title}</polyline>')
    return lines


def finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y)]


def smoothed(points: Points) -> Points:
    """Means over a window of a twentieth of many points, as they are where there are few."""
    if len(points) < SMOOTHED:
        return points
    half = max(1, len(points) // 40)
    means = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means


def span(values: Sequence[_Number], least: _Number | None, most: _Number | None) -> tuple[_Number, _Number]:
    """The axis: all values, but for peaks over three times what 95 of 100 stay below."""
    ranked = sorted(values)
    high, usual = ranked[-1], ranked[(len(ranked) - 1) * 95 // 100]
    if len(ranked) >= 10 and usual > 0 and high > 3 * usual:
        high = 1.2 * usual
    low = min(ranked[0], high if least is None else least)
    high = max(high, low if most is None else most)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (low - (0 if low == least else margin), high + (0 if high == most else margin))


def ticks(low: _Number, high: _Number) -> list[_Number]:
    """Three to seven round values within the axis."""
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = min((size * m for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: _Number) -> str:
    """0.25, 12, 1.2k, 3e-07."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    return f"{value / 1000:.4g}k" if abs(value) >= 10_000 else f"{value:.6g}"
