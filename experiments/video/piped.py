"""A video that comes through a pipe: read once, from front to end, as it comes."""

from __future__ import annotations

import io
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from memcomp.experiments.errors import UserError
from memcomp.experiments.interruption import interruption
from memcomp.experiments.video.decoding import Decoding, video_stream
from memcomp.experiments.video.ending import broken_off
from memcomp.experiments.video.opening import open_media
from memcomp.experiments.video.pixels import Frame
from memcomp.experiments.video.reading import Frames, Shown
from memcomp.experiments.video.sound import SoundAside

STDIN = Path("-")
HEAD = 64  # bytes, in which a container says how long it is
POLL = 0.1  # seconds after which one who waits for bytes looks whether they are still wanted
FORMS = "mpegts, Matroska, NUT, Y4M, mp4 with its index first"
INDEX_LAST = "its index is at its end: write it with -movflags faststart or as Matroska, or give the file"


def is_pipe(path: Path) -> bool:
    """Whether a path is "-", the standard input, or a named pipe."""
    return path == STDIN or path.is_fifo()


class Pipe:
    """The bytes that come through a pipe, as libavformat asks for them.

    Attributes:
        stop: holds something once no more bytes are wanted; reading then finds the end.
        head: the first bytes.
        count: how many there were.
        ended: whether the other side has ended.
        interrupted: whether KeyboardInterrupt was raised while it waited; libavformat would lose it on the way out.

    Raises:
        UserError: the standard input is closed, or a terminal.
    """

    def __init__(self, path: Path) -> None:
        self.stop: Sequence[int] = ()
        self.head, self.count, self.ended, self.interrupted = b"", 0, False, False
        try:
            self._file = io.FileIO(0, closefd=False) if path == STDIN else io.FileIO(path)
        except OSError as error:
            raise UserError(f"{name_of(path)}: expected a pipe that can be read ({error.strerror})") from None
        if self._file.isatty():
            raise UserError(f"{name_of(path)}: expected a video through a pipe, it is a terminal")

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        try:
            while not self.stop:
                if select.select([self._file], [], [], POLL)[0]:
                    data = self._file.read(size)
                    self.head, self.count, self.ended = (self.head + data)[:HEAD], self.count + len(data), not data
                    return data
        except KeyboardInterrupt:
            self.stop, self.interrupted = [signal.SIGINT], True
        return b""

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the waiting for bytes, whatever comes of it, as KeyboardInterrupt."""
        with interruption() as stop:
            self.stop = stop
            try:
                yield
            finally:
                if stop or self.interrupted:
                    self.close()
                    raise KeyboardInterrupt
                if self.stop is stop:  # not closed
                    self.stop = ()

    def close(self) -> None:
        """Let go of it: the other side cannot write any more."""
        self.stop = [0]
        self._file.close()


class Piped(Frames):
    """The frames of a video that comes through a pipe, which can be iterated over once.

    Its sound is laid aside meanwhile if it is wanted.

    Args:
        path: of a named pipe, or `STDIN`.
        say: as of `Frames`.
        sounding: whether its sound is wanted.

    Raises:
        UserError: what comes is no video, or one that cannot be read from front to end; it was iterated over before.
    """

    def __init__(self, path: Path, say: Callable[[str], None] | None = None, sounding: bool = True) -> None:
        self._pipe, self._begun, self._told = Pipe(path), False, False
        self._coming: Iterator[Shown] | None = None
        with self._pipe.interruptible():
            try:
                self._container = open_media(self._pipe)
            except av.error.FFmpegError as error:
                raise _refusal(name_of(path), self._pipe, str(error.strerror)) from None
        self._stream = video_stream(self._container, name_of(path))
        sound = self._container.streams.best("audio") if sounding else None
        self._sound = None if sound is None else SoundAside(sound)
        super().__init__(name_of(path), say)
        self._say_lost()

    def heed(self, stop: Sequence[int]) -> None:
        """Let the video end where it is once `stop` holds something."""
        self._pipe.stop = stop

    def close(self) -> None:
        """Wait for no more bytes."""
        self._pipe.stop = [0]

    def first(self) -> Frame:
        """The first frame, which the iteration still gives."""
        coming = super().timed()
        with self._pipe.interruptible():
            shown = next(coming)
        self._coming = chain([shown], coming)
        return shown.picture

    def timed(self) -> Iterator[Shown]:
        """Iterate over the frames with their times, once."""
        coming, self._coming = self._coming or super().timed(), None
        return coming

    def listed(self) -> None:
        """None: the frames have to be decoded to be known."""

    def sound(self) -> tuple[Path | None, Fraction]:
        """Where the sound was laid that came with the frames; see `Frames.sound`."""
        if self._sound is None:
            return None, Fraction(0)
        self._say_lost()
        return self._sound.finished(), self._sound.later

    def _say_lost(self) -> None:
        """Say once what of the sound is not kept."""
        if self._sound is not None and self._sound.lost and not self._told:
            self._told = True
            self._say([self._sound.lost])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        yield self._container, self._stream

    def _decoding(self, container: Any, stream: Any) -> Decoding:
        if self._begun:
            raise UserError(f"{self.path}: expected to be read once, a pipe shows each frame one time")
        self._begun = True
        return Decoding(container, stream, self._sound)

    def _check_end(self, container: Any, stream: Any, shown: int, decoding: Decoding) -> None:
        if self._pipe.stop:
            if shown == 0 or self._pipe.interrupted:
                raise KeyboardInterrupt
        elif shown == 0:
            raise _refusal(self.path, self._pipe, decoding.reason or "it holds no frame")
        else:
            super()._check_end(container, stream, shown, decoding)

    def _breaks_off(self, container: Any, stream: Any) -> bool:
        form = container.format.name
        if form.startswith("mov,"):
            return bool(stream.frames)  # those that it promises are counted
        return self._pipe.ended and form != "gif" and broken_off(io.BytesIO(self._pipe.head), self._pipe.count, form)


def open_frames(path: Path, say: Callable[[str], None] | None = None, sounding: bool = True) -> Frames:
    """The frames of a file, of a folder of pictures, or of what comes through a pipe, with its sound if `sounding`."""
    return Piped(path, say, sounding) if is_pipe(path) else Frames(path, say)


def name_of(path: Path) -> Path:
    """What messages call a pipe."""
    return Path("standard input") if path == STDIN else path


def _refusal(name: Path, pipe: Pipe, why: str) -> UserError:
    """Let go of a pipe, so that nobody writes into it for nothing, and say why."""
    pipe.close()
    if pipe.count == 0:
        return UserError(f"{name}: expected a video through the pipe, nothing came")
    why = INDEX_LAST if pipe.head[4:8] == b"ftyp" else why
    return UserError(f"{name}: expected a video that can be read from front to end ({FORMS}): {why}")
