"""Where things are drawn: intervals, scatter plots and curves as plain numbers for the page's SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memcomp.experiments.report.curves import Curve


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % interval on a line of 100 with the baseline at 50; better is to the right."""

    low: float
    value: float
    high: float


def interval(low: float, value: float, high: float, limit: float, *, higher_is_better: bool) -> Interval:
    """Place a difference.

    Args:
        low: lower end.
        value: the difference.
        high: upper end.
        limit: largest absolute value that the line must hold.
        higher_is_better: which way is right.
    """
    sign = 46 / (limit or 1.0) * (1 if higher_is_better else -1)
    ends = sorted((50 + sign * low, 50 + sign * high))
    return Interval(round(ends[0], 2), round(50 + sign * value, 2), round(ends[1], 2))


@dataclass(frozen=True)
class Axis:
    """Ticks of an axis: place and label."""

    low: float
    high: float
    ticks: list[tuple[float, str]]


def axis(low: float, high: float, start: float, end: float, count: int = 4) -> Axis:
    """An axis from `low` to `high` drawn from `start` to `end`, with round numbers on it."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda size: abs(math.log(size * power / raw)))
    first = math.ceil(low / step - 1e-9)
    values = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (step / power == 2.5))
    scale = (end - start) / (high - low)
    texts = [f"{value:.{digits}f}" if step < 1000 else f"{value / 1000:g}k" if value else "0" for value in values]
    return Axis(low, high, [(round(start + scale * (v - low), 1), t) for v, t in zip(values, texts, strict=True)])


@dataclass(frozen=True)
class Scatter:
    """Every pair as a point, the baseline to the right and the other row upwards, on a square from (40, 8) to 192."""

    points: list[tuple[float, float, str, bool]]
    """x, y, what it is, whether the other row is better."""
    ticks: list[tuple[float, str]]
    """Ticks to the right; upwards the same number stands at 200 minus the place."""
    better: int
    left_out: int


def scatter(
    base: Sequence[float | None],
    other: Sequence[float | None],
    names: Sequence[str],
    *,
    digits: int,
    higher_is_better: bool,
) -> Scatter | None:
    """The plot of two rows; None if fewer than two pairs have finite values in both."""
    found = [
        (x, y, name)
        for x, y, name in zip(base, other, names, strict=True)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    if len(found) < 2:
        return None
    values = [value for x, y, _ in found for value in (x, y)]
    line = axis(min(values), max(values), 44, 188, count=3)
    scale = 144 / (line.high - line.low)
    points = []
    for x, y, name in found:
        better = y > x if higher_is_better else y < x
        label = f"{name}: {x:.{digits}f}, {y:.{digits}f}"
        points.append((round(44 + scale * (x - line.low), 1), round(156 - scale * (y - line.low), 1), label, better))
    return Scatter(points, line.ticks, sum(point[3] for point in points), len(names) - len(found))


@dataclass(frozen=True)
class Panel:
    """The curves of one loss, on a rectangle from (40, 6) to (286, 126)."""

    name: str
    lines: list[tuple[int, str]]
    """Number of the row, and points of a polyline."""
    across: Axis
    up: Axis


def panel(name: str, rows: Mapping[int, Sequence[Curve]]) -> Panel:
    """Number of a row → a curve for each of its runs."""
    points = [point for many in rows.values() for curve in many for point in curve]
    across = axis(min(p[0] for p in points), max(p[0] for p in points), 40, 286)
    up = axis(min(p[1] for p in points), max(p[1] for p in points), 126, 6)
    x, y = 246 / (across.high - across.low), 120 / (up.high - up.low)
    lines = [
        (row, " ".join(f"{40 + x * (s - across.low):.1f},{126 - y * (v - up.low):.1f}" for s, v in curve))
        for row, many in rows.items()
        for curve in many
    ]
    return Panel(name.replace("_", " "), lines, across, up)
