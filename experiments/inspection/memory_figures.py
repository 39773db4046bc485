"""Pictures of a memory: its channels, the memories of several people, where places look, its gates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from memcomp.experiments.inspection.observe import distinct_patterns, roughness
from memcomp.experiments.output.figures import COLOURS, save_figure
from memcomp.experiments.video import Frame

TILE, GAP = 64, 9  # pixels of a drawn channel, and between two
SEED = 0  # of the random choice of channels


def varying_channels(memory: Tensor, count: int) -> list[int]:
    """The channels of (C_m, H_m, W_m) with the largest deviation over places, the largest first."""
    deviation = memory.cpu().double().std(dim=(1, 2), correction=0)
    return torch.argsort(deviation, descending=True, stable=True)[:count].tolist()


def random_channels(memory: Tensor, count: int, seed: int = SEED) -> list[int]:
    """A seeded draw of channels without repetition, ascending: the same for every memory of so many channels."""
    drawn = torch.randperm(len(memory), generator=torch.Generator().manual_seed(seed))[:count]
    return sorted(drawn.tolist())


def memory_picture(path: str | Path, memory: Tensor, title: str, channels: int = 36) -> None:
    """The memory M_o (Fig. 1e, Fig. 7): strength at each place, the channels that vary most, and a random sample.

    Args:
        path: PNG to write.
        memory: (C_m, H_m, W_m).
        title: above the picture.
        channels: how many of each choice to draw; all share one colour scale, white = 0.
    """
    memory = memory.detach().cpu()
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(0.8, 1, 1), gridspec_kw={"wspace": 0.06})
    strength = memory.cpu().double().square().mean(0).sqrt().numpy()
    drawn = axes[0].imshow(strength, cmap="viridis")
    axes[0].set(xticks=[], yticks=[])
    axes[0].set_title("strength at each place\n(root mean square over channels)", fontsize=10)
    figure.colorbar(drawn, ax=axes[0], shrink=0.7, location="left")
    limit = colour_limit(memory)
    for axis, (name, chosen) in zip(axes[1:], _choices(memory, channels).items(), strict=True):
        image = draw_channels(axis, memory, chosen, limit)
        axis.set_title(f"{len(chosen)} of {len(memory)} channels:\n{name}", fontsize=10, pad=12)
    figure.colorbar(image, ax=axes[1:], shrink=0.8, extend="both")
    figure.suptitle(f"{title}\n{described(memory)}", fontsize=11)
    save_figure(figure, path)


def two_memories_picture(path: str | Path, memories: Mapping[str, Tensor], channels: int = 36) -> None:
    """Two memories M_o side by side (Fig. 8), each on a colour scale of its own; label → (C_m, H_m, W_m)."""
    figure = Figure(figsize=(11.5, 5.6 * len(memories)), layout="constrained")
    rows: Any = figure.subfigures(len(memories), 1, squeeze=False)
    for row, (label, memory) in zip(rows[:, 0], memories.items(), strict=True):
        axes = row.subplots(1, 2)
        for axis, (name, chosen) in zip(axes, _choices(memory, channels).items(), strict=True):
            image = draw_channels(axis, memory, chosen, colour_limit(memory))
            axis.set_title(f"{len(chosen)} of {len(memory)} channels: {name}", fontsize=10, pad=12)
        row.colorbar(image, ax=list(axes), shrink=0.8, extend="both")
        row.suptitle(f"{label}\n{described(memory)}", fontsize=11)
    save_figure(figure, path)


def described(memory: Tensor) -> str:
    """Size, noisiness and number of patterns of (C_m, H_m, W_m) in words."""
    size = "×".join(map(str, memory.shape))
    noise = 1 / (1 / len(memory) + 1 / memory[0].numel())
    return (
        f"{size}; roughness {roughness(memory):.2f} (white noise: 1); "
        f"distinct patterns {distinct_patterns(memory):.1f} (white noise: about {noise:.0f})"
    )


def identities_picture(
    path: str | Path, sources: Sequence[Frame], memories: Tensor, channels: Sequence[int], title: str
) -> None:
    """Conditioned memories (Fig. 6, last column): a row for each source; the same channels, and what sets them apart.

    Args:
        path: PNG to write.
        sources: N pictures.
        memories: M_s (N, C_m, H_m, W_m).
        channels: which to draw.
        title: above the picture.
    """
    count, shown = len(sources), memories[:, list(channels)].cpu().double()
    apart = shown - shown.mean(0)
    figure = Figure(figsize=(1.3 * len(channels) + 2.4, 0.66 * count + 1.7), layout="constrained")
    thumbs = mosaic(np.stack([_resize_picture(source) for source in sources]), 1, GAP, 255)
    heads = {"$M_s$, the memory for this source": shown, "less its mean over the sources": apart}
    for axis, (name, values) in zip(figure.subplots(1, 2), heads.items(), strict=True):
        limit = colour_limit(values)
        drawn = mosaic(_enlarged(values.flatten(0, 1).numpy()), len(channels), GAP)
        image = axis.imshow(drawn, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.imshow(thumbs, extent=(-TILE - 3 * GAP, -3 * GAP, len(thumbs) - 0.5, -0.5))
        axis.set(xlim=(-TILE - 3 * GAP, drawn.shape[1]), ylim=(len(drawn), -1))
        axis.set_title(name, fontsize=10, pad=16)
        _number_columns(axis, channels)
        bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.6, aspect=30, extend="both")
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def gates_picture(path: str | Path, gates: Mapping[int, Tensor]) -> None:
    """The identity start's gates of each scale, sorted: 0 = the channel stays the host's, 1 = it is replaced."""
    figure = Figure(figsize=(3.6 * len(gates) + 0.6, 3.2), layout="constrained")
    axes = figure.subplots(1, len(gates), squeeze=False, sharey=True)[0]
    for axis, (scale, gate) in zip(axes, gates.items(), strict=True):
        values = gate.cpu().double().sort().values.numpy()
        axis.bar(range(len(values)), values, width=1.0, color=COLOURS[0])
        axis.axhline(0, color="black", linewidth=0.8)
        strength = float(np.sqrt((values**2).mean()))
        axis.set_title(f"scale {scale}: {len(values)} channels\nroot mean square {strength:.3g}", fontsize=10)
        axis.set_xlabel("channels, sorted", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    axes[0].set_ylabel("gate g  (0: host's own, 1: replaced)", fontsize=9)
    save_figure(figure, path)


def draw_channels(axis: Any, memory: Tensor, channels: Sequence[int], limit: float) -> Any:
    """Channels of (C_m, H_m, W_m) as numbered tiles of one image, ±limit from blue to red; returns the image."""
    columns = math.ceil(math.sqrt(len(channels)))
    tiles = memory[list(channels)].cpu().double().numpy()
    image = axis.imshow(mosaic(_enlarged(tiles), columns, GAP), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_axis_off()
    for i, channel in enumerate(channels):
        x, y = (i % columns) * (TILE + GAP) + TILE / 2, (i // columns) * (TILE + GAP) - 0.5
        axis.text(x, y, str(channel), ha="center", va="bottom", fontsize=5.5, color="0.35")
    return image


def colour_limit(values: Tensor) -> float:
    """The end of a colour scale around 0: few outliers may leave it, or they would make all else pale."""
    ordered = values.cpu().double().abs().flatten().sort().values
    return float(ordered[int(0.995 * (len(ordered) - 1))]) or float(ordered[-1]) or 1.0


def mosaic(tiles: np.ndarray, columns: int, gap: int, empty: float = math.nan) -> np.ndarray:
    """Lay out (n, h, w) or (n, h, w, 3) as one array: `columns` tiles in a line, `gap` places of `empty` between."""
    count, height, width = tiles.shape[:3]
    lines = math.ceil(count / columns)
    shape = (lines * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    grid = np.full(shape, empty, tiles.dtype)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[y : y + height, x : x + width] = tile
    return grid


def _choices(memory: Tensor, count: int) -> dict[str, list[int]]:
    return {
        "those that vary most over places": varying_channels(memory, count),
        f"a random sample (seed {SEED})": random_channels(memory, count),
    }


def _enlarged(tiles: np.ndarray) -> np.ndarray:
    """Enlarge (n, h, w) to (n, TILE, TILE), by nearest neighbours."""
    rows, places = ((np.arange(TILE) * size) // TILE for size in tiles.shape[1:])
    return tiles[:, rows][:, :, places]


def _number_columns(axis: Any, channels: Sequence[int]) -> None:
    axis.set_axis_off()
    for i, channel in enumerate(channels):
        axis.text(i * (TILE + GAP) + TILE / 2, -2, str(channel), ha="center", va="bottom", fontsize=7, color="0.35")


def _resize_picture(picture: Frame) -> np.ndarray:
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(image, (TILE, TILE), mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().byte().permute(1, 2, 0).numpy()
