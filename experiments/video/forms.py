"""The forms in which frames are written: mp4, WebM, GIF, or a folder of PNG pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from av.filter import Graph
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_folder, atomic_write
from memcomp.experiments.video.pixels import Frame
from memcomp.experiments.video.timing import Pace
from memcomp.experiments.video.writing import write_video

SUFFIXES = (".mp4", ".webm", ".gif")  # a name without suffix is a folder of PNG
SOUNDING = (".mp4", ".webm")  # forms with sound
CENTISECOND = Fraction(1, 100)  # in which GIF tells how long a frame is shown
SHORTEST = 2  # of them: players show a frame of less for ten


class FrameWriter(Protocol):
    """Takes frames one after the other."""

    pace: Pace
    """When they are shown."""
    end: Fraction
    """Seconds from the first frame's time 0 to the end of the last."""

    def __call__(self, frame: Frame, time: Fraction | float | None = None, lasts: Fraction | None = None) -> None:
        """Append a frame (H, W, 3) uint8; see `writing.Writer`."""


def form_of(path: Path) -> str:
    """The suffix that says in which form a path is written; "" = a folder of PNG.

    Raises:
        UserError: a suffix of no form.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UserError(f"{path}: expected an output name that ends in {known}, or none for a folder of PNG")
    return suffix


@contextmanager
def write_frames(path: Path, frame_rate: Fraction, comment: str = "") -> Iterator[FrameWriter]:
    """Yield a function that appends frames to what `path` names; it appears when the block ends without an exception.

    Args:
        path: see `form_of`; a folder must be new or empty.
        frame_rate: frames per second that are expected.
        comment: goes into the file, or into every PNG.

    Raises:
        UserError: it cannot be written.
    """
    form = form_of(path)
    if not form:
        with atomic_folder(path) as folder:
            yield _Pictures(folder, frame_rate, comment)
    elif form == ".gif":
        with atomic_write(path) as temporary:
            writer = _Gif(temporary, frame_rate)
            with writer.container:
                yield writer
                writer.finish()
            _comment_gif(temporary, comment)
    else:
        with write_video(path, frame_rate, comment=comment) as append:
            yield append


class _Timed:
    """Notes the times of frames."""

    def __init__(self, rate: Fraction) -> None:
        self.pace, self.end = Pace(rate), Fraction(0)

    def note(self, time: Fraction | float | None, lasts: Fraction | None) -> Fraction:
        when = self.pace.count / self.pace.rate if time is None else Fraction(time)
        self.pace.add(when)
        self.end = when + (lasts or 1 / self.pace.rate)
        return when


class _Pictures(_Timed):
    """PNG pictures, numbered from 0."""

    def __init__(self, folder: Path, rate: Fraction, comment: str) -> None:
        super().__init__(rate)
        self.folder, self.about = folder, PngInfo()
        if comment:
            self.about.add_text("Comment", comment)

    def __call__(self, frame: Frame, time: Fraction | float | None = None, lasts: Fraction | None = None) -> None:
        name = f"frame_{self.pace.count:06d}.png"
        self.note(time, lasts)
        Image.fromarray(frame).save(self.folder / name, pnginfo=self.about, compress_level=3)


class _Gif(_Timed):
    """A GIF that repeats for ever, every frame with a palette of its own."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        super().__init__(rate)
        self.container = av.open(str(path), "w", format="gif")
        self._stream: Any = self.container.add_stream("gif", rate=rate.limit_denominator(1000))
        self._stream.pix_fmt = "pal8"
        self._stream.codec_context.time_base = CENTISECOND
        self._graph: Any = None
        self._last = -SHORTEST

    def __call__(self, frame: Frame, time: Fraction | float | None = None, lasts: Fraction | None = None) -> None:
        when = max(round(self.note(time, lasts) / CENTISECOND), self._last + SHORTEST)
        if self._graph is None:
            self._stream.height, self._stream.width = frame.shape[:2]
            self._graph = _palettes(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base, self._last = when, CENTISECOND, when
        self._graph.push(picture)
        self._drain()

    def finish(self) -> None:
        """Write what is waiting."""
        if self._graph is not None:
            self._graph.push(None)
            self._drain()
            self.container.mux(self._stream.encode(None))

    def _drain(self) -> None:
        while True:
            try:
                picture = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            picture.time_base = CENTISECOND
            self.container.mux(self._stream.encode(picture))


def _palettes(height: int, width: int) -> Any:
    """A filter that finds a palette for each frame and paints the frame with it."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=CENTISECOND)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    paint, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(paint, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    return graph


def _comment_gif(path: Path, comment: str) -> None:
    """Put a comment before the last byte of a GIF, which libavformat does not."""
    text = comment.encode("ascii", "replace")[:255]
    if text:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x21\xfe" + bytes([len(text)]) + text + b"\x00\x3b")
