"""Pictures that any room draws: strips of images, captions, maps of errors, loss curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memcomp.experiments.files import atomic_write
from memcomp.experiments.video import Frame

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Tol's bright set, safe for colour-blind


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def strips(path: str | Path, rows: Mapping[str, Sequence[Frame]], titles: Sequence[str]) -> None:
    """A picture with one labelled row of images for each entry; small images are enlarged without smoothing."""
    figure = Figure(figsize=(1.5 * len(titles) + 0.9, 1.5 * len(rows) + 0.35), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis_row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(axis_row, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axis_row[0].set_ylabel(label, fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    save_figure(figure, path)


def caption(titles: Sequence[str], column: int) -> Frame:
    """A white bar, 28 pixels high, with a title over each column of `column` pixels: (28, column * n, 3) uint8."""
    figure = Figure(figsize=(column * len(titles) / 100, 0.28), dpi=100)
    for i, title in enumerate(titles):
        figure.text((i + 0.5) / len(titles), 0.5, title, ha="center", va="center", fontsize=10)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def error_picture(prediction: Frame, target: Frame) -> Frame:
    """Mean absolute error of each pixel over colours, black (0) to yellow (half the range or more)."""
    error = np.abs(prediction.astype(float) - target).mean(axis=-1) / 127.5
    coloured = matplotlib.colormaps["inferno"](np.clip(error, 0, 1))[..., :3]
    return (coloured * 255).round().astype(np.uint8)


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """A run's log.csv: column → (rows,) float; empty cells become NaN."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return {name: np.array([_number(row[name]) for row in rows]) for name in reader.fieldnames or ()}


def evenly_spaced(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last row of a log and those as far apart as the first two: the last steps of a run are logged one by one."""
    if len(steps) < 3:
        return steps, values
    even = (steps - steps[0]) % max(1, steps[1] - steps[0]) == 0
    even[-1] = True
    return steps[even], values[even]


def running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over a twentieth of the rows, each at the last step of its rows; fewer than 40 rows stay as they are."""
    window = max(1, len(values) // 20)
    return steps[window - 1 :], np.convolve(values, np.ones(window) / window, "valid")


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def loss_curves(path: str | Path, logs: Mapping[str, Path], columns: Sequence[str]) -> None:
    """One panel per column with a line per run: thin as logged, thick the running mean over a twentieth of it."""
    figure = Figure(figsize=(4.2 * len(columns), 3.2), layout="constrained")
    for axis, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for colour, (label, log) in zip(COLOURS, logs.items(), strict=False):
            table = read_log(log)
            kept = np.isfinite(table.get(column, np.empty(0)))
            if not kept.any():
                continue
            steps, values = evenly_spaced(table["step"][kept], table[column][kept])
            later, smooth = running_mean(steps, values)
            few = len(later) == len(steps)
            if not few:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
            axis.plot(later, smooth, color=colour, linewidth=1.6, label=label, marker="." * few)
        axis.set(xlabel="step", title=column.replace("_", " "))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False)
    save_figure(figure, path)
