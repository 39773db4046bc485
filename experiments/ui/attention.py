"""What a pixel of a result reads from the memory, and which other pixels read the same place of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from memcomp.experiments.animation import Animator
from memcomp.experiments.errors import UserError
from memcomp.experiments.inspection.attention_figures import EVEN
from memcomp.experiments.inspection.observe import ScaleView, uniform_entropy, watching
from memcomp.experiments.output.figures import caption
from memcomp.experiments.ui.jobs import Moved
from memcomp.experiments.video import Frame, to_frame

TILE = 240  # pixels of one map
STILL = 2 * TILE  # of a frame to click on
GAP = 8
DIMMED = 0.45  # of a picture under a map


@dataclass(frozen=True)
class Look:
    """One frame of a result, made again while the memory was watched.

    Attributes:
        frame: its number.
        picture: (H, W, 3) uint8.
        views: every scale of the memory.
    """

    frame: int
    picture: Frame
    views: list[ScaleView]


@dataclass(frozen=True)
class Reading:
    """What one pixel reads at one scale.

    Attributes:
        scale: its index in the memory.
        shares: how much of each place of the memory, (H_m, W_m), sums to 1.
        row, column: the place that it reads most.
        readers: how much each place of the feature reads of that place, (H, W) in [0, 1].
    """

    scale: int
    shares: Tensor
    row: int
    column: int
    readers: Tensor

    @property
    def entropy(self) -> float:
        """How widely it reads, nats: 0 = one place."""
        return float(torch.special.entr(self.shares.double()).sum())


def look(moved: Moved, frame: int) -> Look:
    """Make one frame of a result again and watch what its memory does.

    Raises:
        UserError: there is no such frame, or its memory did not act.
    """
    if not moved.choice.memory:
        raise UserError(f"{moved.choice.name}: expected a host whose memory acts")
    if not 0 <= frame < len(moved.track):
        raise UserError(f"frame: expected 0 … {len(moved.track) - 1}, got {frame}")
    with moved.choice.model.watched() as host:
        animator = Animator(host, moved.source, moved.motion)
        with watching(host) as views:
            made = animator.render(moved.track.keypoints(frame), moved.track.keypoints(moved.reference))
    return Look(frame, to_frame(made[0]), [views[scale] for scale in sorted(views)])


@torch.inference_mode()
def read_pixel(seen: Look, x: float, y: float) -> list[Reading]:
    """What the place (x, y) of the picture, in [0, 1], y downwards, reads at every scale."""
    readings = []
    for view in seen.views:
        shares = view.attention_at(x, y)
        row, column = divmod(int(shares.argmax()), shares.shape[1])
        readings.append(Reading(view.scale, shares.cpu(), row, column, view.readers_of(row, column).cpu()))
    return readings


def farthest(moved: Moved) -> int:
    """The frame whose keypoints are farthest from those that motion counts from: where most must be filled in."""
    away = moved.track.value - moved.track.value[moved.reference]
    return int(away.square().sum((1, 2)).argmax())


def still(seen: Look, x: float | None = None, y: float | None = None) -> Frame:
    """The frame as a page shows it, large enough to be clicked on, with a ring around the place that was."""
    picture = _enlarged(seen.picture, STILL)
    return picture if x is None or y is None else _ringed(picture, x, y)


def memory_maps(readings: Sequence[Reading]) -> Frame:
    """The memory at every scale, bright where it is read; the colours reach at least `EVEN` times the even share."""
    tiles = [_heat(one.shares, max(float(one.shares.max()), EVEN / one.shares.numel())) for one in readings]
    return _row(tiles, [f"scale {one.scale}" for one in readings])


def reader_maps(seen: Look, readings: Sequence[Reading], x: float, y: float) -> Frame:
    """The frame at every scale, bright where the same place of the memory is read."""
    grey = _enlarged(seen.picture, TILE).mean(axis=-1, keepdims=True) * DIMMED
    tiles = []
    for one in readings:
        heat = _heat(one.readers, float(one.readers.max()) or 1.0).astype(float)
        tiles.append(_ringed(np.clip(grey + (1 - DIMMED) * heat, 0, 255).astype(np.uint8), x, y))
    return _row(tiles, [f"scale {one.scale}: row {one.row + 1}, column {one.column + 1}" for one in readings])


def words(readings: Sequence[Reading]) -> str:
    """The readings as a table in Markdown."""
    lines = ["| scale | reads most | of all it reads | how widely |", "|---|---|---|---|"]
    for one in readings:
        even = uniform_entropy(one.shares)
        where = f"row {one.row + 1}, column {one.column + 1} of {one.shares.shape[0]}×{one.shares.shape[1]}"
        wide = f"{one.entropy:.2f} of {even:.2f} nats"
        lines.append(f"| {one.scale} | {where} | {100 * float(one.shares.max()):.1f} % | {wide} |")
    return "\n".join(lines)


def _heat(values: Tensor, most: float) -> Frame:
    """(H, W) in [0, most] as a picture of about `TILE` pixels, dark to bright."""
    coloured = matplotlib.colormaps["magma"]((values.float() / most).clamp(0, 1).numpy())[..., :3]
    return _enlarged((coloured * 255).round().astype(np.uint8), TILE, Image.Resampling.NEAREST)


def _enlarged(picture: Frame, side: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> Frame:
    return np.asarray(Image.fromarray(picture).resize((side, side), how))


def _ringed(picture: Frame, x: float, y: float) -> Frame:
    image = Image.fromarray(picture)
    place, radius = (x * image.width, y * image.height), image.width / 40
    draw = ImageDraw.Draw(image)
    for wider, colour in ((2, "black"), (0, "white")):
        box = [
            place[0] - radius - wider,
            place[1] - radius - wider,
            place[0] + radius + wider,
            place[1] + radius + wider,
        ]
        draw.ellipse(box, outline=colour, width=2 + wider)
    return np.asarray(image)


def _row(tiles: Sequence[Frame], titles: Sequence[str]) -> Frame:
    """Pictures beside each other under their titles."""
    columns = [np.pad(tile, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for tile in tiles]
    return np.concatenate([caption(titles, TILE + GAP), np.concatenate(columns, axis=1)])
