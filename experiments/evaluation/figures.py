"""Pictures of scores: the worst, median and best pairs, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from memcomp.experiments.evaluation.scores import Pair, Scores
from memcomp.experiments.metrics.aggregate import Difference
from memcomp.experiments.metrics.registry import METRICS, PROTOCOLS, mask_of
from memcomp.experiments.output.figures import COLOURS, error_picture, save_figure, strips
from memcomp.experiments.video import to_frame


def worst_median_best(path: str | Path, scores: Mapping[str, Scores], pairs: Mapping[str, Sequence[Pair]]) -> None:
    """Strips of the pairs with the largest, the median and the smallest L1 of each kind of pairs."""
    rows = {}
    for kind, scored in scores.items():
        values = [value for value in scored.column("standard.l1") if value is not None]
        order = sorted(range(len(values)), key=lambda i: -values[i])
        for label, i in {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}.items():
            pair, prediction = pairs[kind][i], scored.predictions[i]
            source, driving, target = (to_frame(image[:3]) for image in (pair.source, pair.driving, pair.target))
            images = [source, driving, target, prediction, error_picture(prediction, target)]
            rows[f"{kind},\n{label}: L1 {values[i]:.3f}"] = images
    strips(path, rows, ["source", "driving", "target", "prediction", "error"])


def difference_picture(path: str | Path, deltas: Mapping[str, Mapping[str, Difference]], title: str) -> None:
    """Differences of two models with 95 % intervals, one panel per metric; right of the line is better."""
    names = [name for name in PROTOCOLS["standard"] if any(f"standard.{name}" in c for c in deltas.values())]
    figure = Figure(figsize=(3.6 * len(names), 0.5 * 2 * len(deltas) + 1.2), layout="constrained")

    def label(kind: str, column: str) -> str:
        mask = mask_of(column)
        return kind + (f", {mask}" if mask else "")

    labels = list(dict.fromkeys(label(kind, column) for kind, columns in deltas.items() for column in columns))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        sign = 1 if METRICS[name].higher_is_better else -1
        for kind, columns in deltas.items():
            for column, delta in columns.items():
                if column.split(".")[1] == name:
                    at = -labels.index(label(kind, column))
                    axis.plot([sign * delta.low, sign * delta.high], [at, at], color=COLOURS[0], linewidth=2)
                    axis.plot(sign * delta.value, at, "o", color=COLOURS[0])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{METRICS[name].title}: better →", ylim=(0.6 - len(labels), 0.6))
        axis.set_yticks([-i for i in range(len(labels))], labels if axis is figure.axes[0] else [""] * len(labels))
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
