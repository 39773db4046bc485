"""One decoded frame as everybody sees it: sRGB over white, upright, with square pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from memcomp.experiments.video.colours import name_of, to_srgb

WIDEST = 8  # a pixel's shape that is further from a square is a mistake of the header
THREADS = 1  # of the scaler: others are not there in a forked process, which would wait for them for ever

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """How a stream's frames are meant to look; makes pictures of them."""

    pixel: Fraction | None = None
    """A pixel's width by its height; None = square."""
    transfer: int = 2
    """Transfer characteristic by its number in ITU-T H.273; 2 = not said."""
    primaries: int = 2
    """Primaries by their number in ITU-T H.273; 2 = not said."""

    matrix: tuple[int, ...] | None = None
    """Display matrix, see `upright`."""

    @classmethod
    def of(cls, stream: Any, decoder: Any, frame: Any) -> Look:
        """What a stream, its first frame, and the decoder that gave it say."""
        shape = stream.sample_aspect_ratio or decoder.sample_aspect_ratio
        square = not shape or shape == 1 or not Fraction(1, WIDEST) <= shape <= WIDEST
        data = frame.side_data.get("DISPLAYMATRIX")  # not of every frame: PyAV keeps what it is asked for
        matrix = None if data is None else tuple(np.frombuffer(bytes(data), np.int32).tolist())
        pixel = None if square else Fraction(shape)
        return cls(pixel, int(decoder.color_trc), int(decoder.color_primaries), matrix)

    def picture(self, frame: Any) -> Frame:
        """Make a picture, (H, W, 3) uint8 sRGB, of an `av.VideoFrame`."""
        height, width = frame.height, frame.width
        if self.pixel is not None:  # the side that is too short grows, so that no detail is lost
            if self.pixel > 1 or frame.interlaced_frame:  # whose lines must stay as they are
                width = round(width * self.pixel)
            else:
                height = round(height / self.pixel)
        colours = name_of(self.transfer, self.primaries)
        form = "rgb48le" if colours else "rgba" if has_alpha(frame) else "rgb24"
        picture = frame.reformat(width, height, form, threads=THREADS).to_ndarray()
        if frame.interlaced_frame:
            picture = one_field(picture)
        if colours:
            picture = to_srgb(picture, self.transfer, self.primaries)
        elif form == "rgba":
            picture = over_white(picture)
        return upright(picture, self.matrix)

    def notes(self, frame: Any) -> list[str]:
        """Say in words what `picture` changes in a frame beyond its orientation."""
        colours = name_of(self.transfer, self.primaries)
        notes = [f"{colours}, brought to sRGB"] if colours else []
        if has_alpha(frame) and (frame.reformat(format="rgba", threads=THREADS).to_ndarray()[..., 3] < 255).any():
            notes.append("transparency, laid over white")
        notes += ["interlaced, shown by every second line"] if frame.interlaced_frame else []
        shape = self.pixel
        return notes + ([f"pixels of shape {shape.numerator}:{shape.denominator}, made square"] if shape else [])


def has_alpha(frame: Any) -> bool:
    """Whether a frame's pixels may be transparent."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def over_white(rgba: npt.NDArray[np.uint8]) -> Frame:
    """Lay (H, W, 4) uint8, colours not multiplied by alpha, over white → (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def one_field(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Replace every second line by the mean of its neighbours: it was filmed a little later."""
    kept, result = picture[::2], picture.copy()
    others = len(picture) // 2
    below = np.concatenate([kept[1:], kept[-1:]])[:others]
    result[1::2] = kept[:others] // 2 + below // 2 + (kept[:others] & below & 1)
    return result


def upright(picture: Frame, matrix: tuple[int, ...] | None) -> Frame:
    """Turn and mirror a picture (H, W, 3) as a display matrix (a b u, c d v, x y w) asks, by quarters of a turn.

    The matrix sends column x and row y (downwards) to column a x + c y and row b x + d y.
    """
    if matrix is None:
        return picture
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
