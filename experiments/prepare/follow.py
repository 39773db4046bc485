"""Heads followed through the pictures of a video, and cuts of the scene noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.prepare.boxes import Box, iou
from memcomp.experiments.video import Frame, Shown

SMALLEST = 165  # pixels: height of a head's box whose face is as small as the detector finds
BELOW = 1.15  # heads smaller by this than the least that is taken are to be seen too
LARGEST_SCALE = 4.0
WINDOW = 2.0  # side of what is looked at around a known head, in sides of its box
WINDOW_PIXELS = 400  # its side in pixels, as the detector sees it
SAME = 0.5  # overlap of two boxes that are of one head
THUMBNAIL = (32, 18)
CUT = 0.07  # mean change of a thumbnail, in [0, 1], that a cut makes at least
CUT_RATIO = 4.0  # and how many times the usual change


@dataclass(frozen=True)
class Seen:
    """What a picture shows."""

    boxes: tuple[Box, ...]
    """Of heads, inside the picture, the largest first."""
    cut: bool = False
    """Whether another scene begins."""
    whole: bool = True
    """Whether all of the picture was looked at."""


def by_clock(frames: Iterable[Shown], rate: Fraction) -> Iterator[Frame]:
    """The pictures that are shown at 0, 1 / rate, 2 / rate, … seconds from the first frame on."""
    start, number = None, 0
    for shown in frames:
        start = shown.time if start is None else start
        while number / rate < shown.time - start + shown.lasts:
            yield shown.picture
            number += 1


class Follower:
    """Follows heads from picture to picture: call it with one after the other.

    Args:
        detector: backend of heads.
        least: height of the smallest head that is of interest, pixels.
        every: pictures from one that is looked at as a whole to the next.
    """

    def __init__(self, detector: Backend, least: int, every: int) -> None:
        self._detector, self._every = detector, every
        self._scale = min(BELOW * SMALLEST / least, LARGEST_SCALE)
        self._scene = _Scene()
        self._known: tuple[Box, ...] = ()
        self._number = 0
        self._eager = 0  # pictures after a head was lost that are looked at as a whole

    def __call__(self, picture: Frame) -> Seen:
        """Find the heads of the next picture, (H, W, 3) uint8."""
        cut = self._scene.changes(picture)
        whole = cut or self._number % self._every == 0 or self._eager > 0
        self._eager = max(0, self._eager - 1)
        found: list[Box] = []
        if not whole and self._known:
            found = [box for known in self._known for box in self._around(picture, known)]
            whole = len(_distinct(found)) < len(self._known)  # one is lost
        if whole:
            found = self._look(picture, Box(0, 0, picture.shape[1], picture.shape[0]), self._scale)
        self._number += 1
        if self._known and not found:
            self._eager = self._every
        self._known = _distinct(found)
        return Seen(self._known, cut, whole)

    def _around(self, picture: Frame, box: Box) -> list[Box]:
        x, y = (WINDOW - 1) / 2 * box.width, (WINDOW - 1) / 2 * box.height
        region = Box(box.left - x, box.top - y, box.right + x, box.bottom + y)
        return self._look(picture, region, WINDOW_PIXELS / max(region.width, region.height))

    def _look(self, picture: Frame, region: Box, scale: float) -> list[Box]:
        """Find heads in a region, which is scaled before."""
        height, width = picture.shape[:2]
        left, top, right, bottom = (round(edge) for edge in region.within(width, height))
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        part = Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
        found = self._detector([np.array(part.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))])[0]
        if isinstance(found, NotFound):
            return []
        factor = np.array([(right - left) / size[0], (bottom - top) / size[1]] * 2)
        edges = (found + 0.5) * factor + np.array([left, top] * 2)  # pixel centres → edges of the picture at 0
        return [Box(*row).within(width, height) for row in edges.tolist()]


class _Scene:
    """Notices cuts by how much a thumbnail of the picture changes."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._usual = 0.0

    def changes(self, picture: Frame) -> bool:
        """Whether the next picture begins another scene."""
        small = Image.fromarray(np.ascontiguousarray(picture)).resize(THUMBNAIL, Image.Resampling.BOX, reducing_gap=1.0)
        thumbnail = np.asarray(small, np.float32) / 255
        before, self._before = self._before, thumbnail
        if before is None:
            return False
        change = float(np.abs(thumbnail - before).mean())
        if change > max(CUT, CUT_RATIO * self._usual):
            self._usual = 0.0
            return True
        self._usual += 0.2 * (change - self._usual)
        return False


def _distinct(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Boxes of different heads, the largest first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.width * box.height):
        if all(iou(box, other) < SAME for other in kept):
            kept.append(box)
    return tuple(kept)
