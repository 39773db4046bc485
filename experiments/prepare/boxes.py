"""Boxes of heads, and the one square that holds those of a segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """Left, top, right, bottom in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Right minus left."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Bottom minus top."""
        return self.bottom - self.top

    def within(self, width: int, height: int) -> Box:
        """The part of the box that a picture of this size shows."""
        left, right = (min(max(x, 0.0), float(width)) for x in (self.left, self.right))
        top, bottom = (min(max(y, 0.0), float(height)) for y in (self.top, self.bottom))
        return Box(left, top, right, bottom)


class Square(NamedTuple):
    """Left and top edge and side, whole pixels."""

    x: int
    y: int
    side: int


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    shared = max(width, 0.0) * max(height, 0.0)
    union = one.width * one.height + other.width * other.height - shared
    return shared / union if union > 0 else 0.0


def between(one: Box, other: Box, share: float) -> Box:
    """The box on the way from one (share 0) to another (share 1)."""
    return Box(*(a + share * (b - a) for a, b in zip(one, other, strict=True)))


def union_of(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return Box(min(left), min(top), max(right), max(bottom))


def square_around(box: Box, increase: float, width: int, height: int) -> Square | None:
    """A square around a box that lies in a picture, moved where it would leave the picture.

    Args:
        box: in the picture.
        increase: share of the box's longer side that is added on each side; less where the picture ends.
        width: of the picture.
        height: of the picture.

    Returns:
        The square, or None if no square in the picture holds the box.
    """
    longer = max(box.width, box.height)
    side = min(max(math.ceil(longer * (1 + 2 * increase) - 1e-6), 1), width, height)
    for larger in (side, side + 1):  # where the box's edges lie between two pixels, there may be none to spare
        x, y = (
            min(max(round((low + high - larger) / 2), math.ceil(high - larger), 0), math.floor(low), size - larger)
            for low, high, size in ((box.left, box.right, width), (box.top, box.bottom, height))
        )
        if min(x, y) >= 0 and x + larger >= box.right and y + larger >= box.bottom:
            return Square(x, y, larger)
    return None
