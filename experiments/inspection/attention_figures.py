"""Pictures of where places of a feature look into the memory, how widely they look, and what the memory changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from memcomp.experiments.inspection.observe import uniform_entropy
from memcomp.experiments.output.figures import COLOURS, save_figure
from memcomp.experiments.video import Frame

EVEN = 4  # attention's colour scale reaches at least so many times the even share: even attention looks dark
_LABEL = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}


@dataclass(frozen=True)
class Place:
    """A place of the output picture whose attention is drawn."""

    name: str
    x: float
    """In [0, 1], to the right."""
    y: float
    """In [0, 1], downwards."""


def attention_picture(
    path: str | Path, pictures: Mapping[str, Frame], places: Sequence[Place], maps: Sequence[Sequence[Tensor]]
) -> None:
    """Where places of the output look: a row for each place, a heat map of the memory for each scale.

    Args:
        path: PNG to write.
        pictures: title → picture, drawn once on the left; the places are marked in all but the first (the source).
        places: what to mark.
        maps: for each place and scale (H_m, W_m) that sums to 1.
    """
    scales, rows = len(maps[0]), max(len(places), len(pictures))
    figure = Figure(figsize=(3.3 + 3.1 * scales, 2.5 * rows + 0.6), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.6, 3.1 * scales))
    left, right = parts
    for axis, (number, (title, picture)) in zip(
        left.subplots(rows, 1, squeeze=False)[:, 0], _padded(enumerate(pictures.items()), rows), strict=True
    ):
        axis.set_axis_off()
        if picture is None:
            continue
        height, width = picture.shape[:2]
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        for index, place in enumerate(places if number else ()):
            x, y = place.x * width - 0.5, place.y * height - 0.5
            axis.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=3)
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8)
            axis.annotate(
                str(index + 1), (x, y), (8, 5), textcoords="offset points", fontsize=9, color="black", bbox=_LABEL
            )
    tiles = right.subplots(rows, scales, squeeze=False)
    for row in tiles[len(places) :]:
        for axis in row:
            axis.set_axis_off()
    for index, (place, row) in enumerate(zip(places, tiles, strict=False)):
        for scale, (axis, shares) in enumerate(zip(row, maps[index], strict=True)):
            most = max(float(shares.max()), EVEN / shares.numel())
            image = axis.imshow(shares.cpu().numpy(), cmap="magma", vmin=0, vmax=most)
            axis.set(xticks=[], yticks=[])
            top = f"scale {scale}\n" if index == 0 else ""
            entropy = f"entropy {_entropy(shares):.2f} of {uniform_entropy(shares):.2f} nats"
            axis.set_title(top + entropy, fontsize=9)
            bar = right.colorbar(image, ax=axis, shrink=0.85)
            bar.ax.tick_params(labelsize=7)
            bar.ax.yaxis.get_offset_text().set_fontsize(7)
        row[0].set_ylabel(f"{index + 1}: {place.name}", fontsize=10, color=COLOURS[index % len(COLOURS)])
    figure.suptitle("Attention from places of the output into the memory: share of each of its places")
    save_figure(figure, path)


def entropy_picture(path: str | Path, picture: Frame, rows: Sequence[Mapping[str, tuple[Tensor, float]]]) -> None:
    """Maps over the output picture, a row for each scale: title → (map (H, W), upper end of its colour scale)."""
    columns = 1 + len(rows[0])
    figure = Figure(figsize=(3.3 * columns, 2.9 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for scale, (line, maps) in enumerate(zip(axes, rows, strict=True)):
        line[0].imshow(picture)
        line[0].set_ylabel(f"scale {scale}", fontsize=10)
        line[0].set_title("output", fontsize=9)
        for axis, (title, (values, most)) in zip(line[1:], maps.items(), strict=True):
            image = axis.imshow(values.cpu().numpy(), cmap="viridis", vmin=0, vmax=most)
            axis.set_title(title, fontsize=9)
            figure.colorbar(image, ax=axis, shrink=0.85).ax.tick_params(labelsize=7)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    save_figure(figure, path)


def _entropy(shares: Tensor) -> float:
    return torch.special.entr(shares.cpu().double()).sum().item()


def _padded(items: Any, length: int) -> list[tuple[int, tuple[str, Frame | None]]]:
    found = list(items)
    return found + [(len(found) + i, ("", None)) for i in range(length - len(found))]
