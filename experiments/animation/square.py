"""The square of a picture that a host is given: found around a face, or said; the head in it is upright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from memcomp.experiments.backends.find_faces import Points, find_faces
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.video import Frame, fit, read_picture

LEAST_TURN = 5  # degrees of roll below which a head is left as it is: turning a picture blurs it
# side and centre of the square, in distances from the eyes to the chin: the face fills about half of its height, as in
# the pictures that hosts are trained with
SIDE, BELOW_EYES = 3.0, 0.15
RIGHT_EYE, LEFT_EYE, CHIN, JAW = slice(36, 42), slice(42, 48), 8, (0, 16)
SMALLEST = 8  # pixels of a square
BY_HAND = "say where it is by x,y,side in place of auto"


@dataclass(frozen=True)
class Square:
    """A square of a picture.

    Attributes:
        x, y: its upper left corner before it is turned about its centre, in pixels from the picture's.
        side: in pixels.
        turn: degrees by which the head in it, and so the square, is turned clockwise.
    """

    x: int
    y: int
    side: int
    turn: float = 0

    @classmethod
    def centred(cls, frame: Frame) -> Square:
        """The largest centred square of a frame (H, W, 3)."""
        height, width = frame.shape[:2]
        side = min(height, width)
        return cls((width - side) // 2, (height - side) // 2, side)

    @classmethod
    def around(cls, face: Points, frame: Frame) -> Square:
        """The square around a face, upright with it, inside of the picture if the head is not turned.

        Args:
            face: 68 landmarks, (68, 2) in pixels.
            frame: (H, W, 3).
        """
        eyes = [face[RIGHT_EYE].mean(0), face[LEFT_EYE].mean(0)]
        across = eyes[1] - eyes[0]
        turn = math.degrees(math.atan2(across[1], across[0]))
        turn = turn if abs(turn) >= LEAST_TURN else 0.0
        between = (eyes[0] + eyes[1]) / 2
        height = float(np.linalg.norm(face[CHIN] - between))
        unit = max(height, 0.8 * float(np.linalg.norm(face[JAW[1]] - face[JAW[0]])))
        down = math.radians(turn)
        centre = between + BELOW_EYES * unit * np.array([-math.sin(down), math.cos(down)])
        side = max(SMALLEST, min(round(SIDE * unit), *frame.shape[:2]))
        x, y = (round(float(place) - side / 2) for place in centre)
        if not turn:
            x, y = max(0, min(x, frame.shape[1] - side)), max(0, min(y, frame.shape[0] - side))
        return cls(x, y, side, turn)

    def cut(self, frame: Frame, size: int) -> Tensor:
        """The square of a frame (H, W, 3) uint8, turned upright, as (3, size, size) float in [0, 1].

        Beyond the picture's edge its border is repeated.
        """
        inside = 0 <= self.x <= frame.shape[1] - self.side and 0 <= self.y <= frame.shape[0] - self.side
        if not self.turn and inside:
            return fit(frame[self.y : self.y + self.side, self.x : self.x + self.side], size)
        steps = (torch.arange(self.side) + 0.5) / self.side - 0.5
        across, down = torch.meshgrid(steps, steps, indexing="xy")
        grid = torch.stack(self.place(across, down), dim=-1)  # (side, side, 2) in pixels
        grid = grid / torch.tensor([frame.shape[1], frame.shape[0]]) * 2 - 1
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
        upright = F.grid_sample(image, grid[None].float(), padding_mode="border", align_corners=False)
        if self.side == size:
            return upright[0]
        return F.interpolate(upright, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]

    def place(self, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the picture a place of the square is, in pixels; (±0.5, ±0.5) are its corners."""
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        x, y = self.x + self.side / 2, self.y + self.side / 2
        return x + self.side * (across * cos - down * sin), y + self.side * (across * sin + down * cos)

    def seen_from(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the square a place of the picture is: the inverse of `place`."""
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        x, y = (x - self.x) / self.side - 0.5, (y - self.y) / self.side - 0.5
        return x * cos + y * sin, y * cos - x * sin

    def corners(self) -> list[tuple[float, float]]:
        """The four corners in pixels of the picture, clockwise."""
        across, down = torch.tensor([[-0.5, 0.5, 0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]])
        return list(zip(*(part.tolist() for part in self.place(across, down)), strict=True))

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.side}" + (f",{self.turn:.1f}" if self.turn else "")


def find_square(
    path: Path, frame: Frame, wanted: str, face: int | None = None, *, numbered: bool = True, otherwise: str = BY_HAND
) -> Square:
    """The square that a word of the command line means.

    Args:
        path: what the frame is of, for errors.
        frame: (H, W, 3) uint8.
        wanted: "auto": around the face; or X,Y,SIDE or X,Y,SIDE,DEGREES, as `Square` has them.
        face: which of several, counted from 1 from the left.
        numbered: whether a person can say which; it is then what an error about several advises.
        otherwise: what else a person can do.

    Raises:
        UserError: no such face; a square that is not inside of the picture; a malformed word.
    """
    if wanted != "auto":
        return _said(path, frame, wanted)
    faces = find_faces(frame)
    squares = [Square.around(one, frame) for one in faces]
    listed = "; ".join(f"{number} at {square}" for number, square in enumerate(squares, 1))
    if not squares:
        raise UserError(f"{path}: expected a face, found none: {otherwise}")
    if face is None and len(squares) > 1:
        advice = f"say --face 1 … {len(squares)}" if numbered else otherwise
        raise UserError(f"{path}: expected one face, found {len(squares)}: {advice} ({listed})")
    if face is not None and face > len(squares):
        raise UserError(f"{path}: expected {face} faces or more for --face {face}, found {len(squares)} ({listed})")
    return squares[(face or 1) - 1]


def draw_preview(output: Path, source: Path, wanted: str, face: int | None = None) -> list[str]:
    """Write a picture with the faces that are found, numbered, and the square that would be cut; say where they are.

    Raises:
        UserError: the source cannot be read, the picture not written; no such square, unless several faces are why.
    """
    frame = read_picture(source)
    squares = [Square.around(one, frame) for one in find_faces(frame)]
    chosen = None
    if wanted != "auto" or face is not None or len(squares) < 2:
        chosen = find_square(source, frame, wanted, face)
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    width = max(2, max(frame.shape) // 300)
    for number, square in enumerate(squares, 1):
        _outline(draw, square, "#ffd000", width)
        x, y = square.corners()[0]
        draw.text((x + 2 * width, y + width), str(number), fill="#ffd000", font_size=max(16, 8 * width))
    if chosen is not None:
        _outline(draw, chosen, "#00ff60", width)
    with atomic_write(output) as temporary:
        image.save(temporary, format="png")
    lines = [f"face {number} of {source}: --crop {square}" for number, square in enumerate(squares, 1)]
    return [*lines, f"{output}: " + ("say which by --face" if chosen is None else f"the square is {chosen}")]


def _outline(draw: ImageDraw.ImageDraw, square: Square, colour: str, width: int) -> None:
    corners = square.corners()
    draw.line([*corners, corners[0]], fill=colour, width=width)


def _said(path: Path, frame: Frame, wanted: str) -> Square:
    words: Sequence[str] = wanted.split(",")
    try:
        x, y, side = (int(word) for word in words[:3])
        turn = float(words[3]) if len(words) == 4 else 0.0
    except ValueError:
        raise UserError(f"{path}: expected auto, x,y,side or x,y,side,degrees in pixels, got {wanted!r}") from None
    height, width = frame.shape[:2]
    square = Square(x, y, side, turn)
    centre = 0 <= x + side / 2 <= width and 0 <= y + side / 2 <= height
    inside = x >= 0 and y >= 0 and x + side <= width and y + side <= height
    if len(words) > 4 or side < SMALLEST or not math.isfinite(turn) or not (centre if turn else inside):
        raise UserError(
            f"{path}: expected a square of {SMALLEST} pixels or more inside of its {width}×{height}, got {wanted}"
        )
    return square
