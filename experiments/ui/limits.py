"""How large the files are that a page takes: it reads what strangers may give it, and several at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frame, Frames, Shown, picture_size, read_picture

RATE = 30  # frames of each second allowed, on average
PIXELS = 40_000_000  # of a picture or a frame: what a good telephone takes


@dataclass(frozen=True)
class Limits:
    """How large the files are that a page takes."""

    seconds: float = 20
    """Length of a driving clip."""
    megabytes: int = 50
    """Size of a file."""

    @property
    def frames(self) -> int:
        """How many frames a driving clip may have."""
        return max(1, round(self.seconds * RATE))

    def picture(self, path: Path) -> Frame:
        """Read a source picture, (H, W, 3) uint8.

        Raises:
            UserError: it is too large, or cannot be read.
        """
        self._check_file(path)
        _check_pixels(path, *picture_size(path))
        return read_picture(path)

    def clip(self, path: Path) -> Iterator[Shown]:
        """Read a driving clip, one frame after the other.

        Raises:
            UserError: it is too large or too long, or cannot be read.
            BrokenOff: as `Frames`.
        """
        self._check_file(path)
        frames = Frames(path)
        if frames.length is not None and frames.length > self.frames:
            raise self._too_long(path, f"it has {frames.length}")
        start: Fraction | None = None
        for number, shown in enumerate(frames.timed()):
            start = shown.time if start is None else start
            _check_pixels(path, shown.picture.shape[1], shown.picture.shape[0])
            if number >= self.frames or shown.time - start >= self.seconds:
                raise self._too_long(path, "it goes on")
            yield shown

    def _check_file(self, path: Path) -> None:
        size = path.stat().st_size if path.is_file() else 0
        if size > self.megabytes * 1_000_000:
            raise UserError(f"{path}: expected a file of up to {self.megabytes} MB, found {size / 1e6:.1f} MB")

    def _too_long(self, path: Path, found: str) -> UserError:
        most = f"up to {self.seconds:g} s and {self.frames} frames"
        return UserError(f"{path}: expected a clip of {most}, {found}; cut it, or start memcomp ui with --seconds")


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > PIXELS:
        most = f"{PIXELS // 10**6} million pixels"
        raise UserError(f"{path}: expected a picture of up to {most}, found {width}×{height}")
