"""The frames of a video, each at its own time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memcomp.experiments.errors import UserError, few
from memcomp.experiments.video.decoding import Decoding, opened, other_streams
from memcomp.experiments.video.ending import BrokenOff, breaks_off, promised_frames
from memcomp.experiments.video.folders import PICTURES, pictures_in, unused_beside_pictures
from memcomp.experiments.video.pictures import moving_pictures, read_picture
from memcomp.experiments.video.pixels import Frame, Look
from memcomp.experiments.video.seeking import FrameList
from memcomp.experiments.video.timing import FOLDER_RATE, Clock, seconds

DECODER_VERSION = 3  # counted up when frames come out otherwise than before: what is cached knows by which it was made
FASTEST = 250  # frames per second; a header that says more has counted its clock's ticks
# containers that keep one shown frame in one packet, of these codecs: their frames are counted without decoding
PACKED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
WHOLE = "h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores"


class Shown(NamedTuple):
    """A frame and when it is shown."""

    picture: Frame
    """(H, W, 3) uint8 sRGB."""
    time: Fraction
    """Seconds on the file's own clock."""
    lasts: Fraction
    """Seconds until the next frame, or to the end."""


class Timetable:
    """Keeps the times of frames while their pictures go through a host, which takes several at once.

    Attributes:
        start: time of the first frame on its file's clock.
        broken: why there were no more, if the file breaks off.
    """

    def __init__(self) -> None:
        self.start = Fraction(0)
        self.broken: BrokenOff | None = None
        self._times: deque[tuple[Fraction, Fraction]] = deque()

    def pictures(self, frames: Iterable[Shown]) -> Iterator[Frame]:
        """The pictures of frames; those of a file that breaks off just end."""
        try:
            for number, shown in enumerate(frames):
                self.start = self.start if number else shown.time
                self._times.append((shown.time - self.start, shown.lasts))
                yield shown.picture
        except BrokenOff as error:
            self.broken = error

    def ahead(self, count: int) -> list[float]:
        """Seconds from the first frame to each of the next `count`, which are not taken away."""
        return [float(self._times[number][0]) for number in range(count)]

    def next(self) -> tuple[Fraction, Fraction]:
        """Seconds from the first frame to the next one that was not asked for, and how long it lasts."""
        return self._times.popleft()


class Frames:
    """The frames of a video file, or of a folder of pictures in the order of the numbers in their names.

    Iterating decodes one frame after the other, (H, W, 3) uint8 sRGB: upright, with square pixels, transparency over
    white, high dynamic range brought to sRGB. Frames that the file hides (an edit list) are left out.

    Attributes:
        path: what was opened.
        frame_rate: frames per second as the header hints; 25 for a folder. Frames have times of their own: `timed`.
        length: how many frames to expect, for a progress bar (a video's header may be wrong), None if unknown.

    Args:
        path: video file or folder.
        say: is told in words what was converted, of a folder by its first picture, and what was left out.

    Raises:
        UserError: nothing is there, it is not a video, the folder holds no pictures; while iterating: damaged data.
        BrokenOff: at the end of the iteration, the file ends before what it promises.
    """

    def __init__(self, path: str | Path, say: Callable[[str], None] | None = None) -> None:
        self.path, self.say = Path(path), say
        self.frame_rate = FOLDER_RATE
        self.length: int | None
        self._pictures: list[Path] = []
        self._webp = False
        self._list: FrameList | None = None
        self._tick = Fraction(1)  # seconds, of the times in it
        if self.path.is_dir():
            self._pictures = pictures_in(self.path)
            if not self._pictures:
                raise UserError(f"{self.path}: expected a folder of pictures ({', '.join(PICTURES)}), it holds none")
            self.length = len(self._pictures)
            if unused := unused_beside_pictures(self.path):
                many = f"{len(unused)} of {len(unused) + self.length} entries"
                self._say([f"{many} are no pictures and were not used: {few(unused)}"])
            return
        self._webp = _is_webp(self.path)
        if self._webp:
            self.length = None
            return
        with self._opened() as (container, stream):
            rate = stream.average_rate or stream.base_rate
            self.frame_rate = Fraction(rate) if rate and rate <= FASTEST else FOLDER_RATE
            self.length = promised_frames(container, stream)

    def __iter__(self) -> Iterator[Frame]:
        for shown in self.timed():
            yield shown.picture

    def timed(self) -> Iterator[Shown]:
        """Iterate over the frames with their times, which always increase."""
        first: tuple[int, ...] = ()
        told = False
        for draw, time, lasts in self._undrawn():
            picture = draw()
            first = first or picture.shape
            if picture.shape != first and not told:
                sizes = " and ".join(f"{width}×{height}" for height, width, _ in (first, picture.shape))
                self._say([f"frames of several sizes ({sizes} among them), each is used as it is"])
                told = True
            yield Shown(picture, time, lasts)

    def undrawn(self) -> Iterator[Callable[[], Frame]]:
        """Iterate over functions that give the frames; one that is not called costs no more than its decoding."""
        for draw, _, _ in self._undrawn():
            yield draw

    def first(self) -> Frame:
        """The first frame."""
        return next(iter(Frames(self.path)))

    def sound(self) -> tuple[Path | None, Fraction]:
        """The file that has the sound, if there is one, and how many seconds its clock is ahead of the frames'."""
        return self.path, Fraction(0)

    def times(self) -> list[Fraction]:
        """When each frame is shown, in seconds; the file is decoded only if it cannot be told otherwise.

        Raises:
            UserError: as iterating does.
        """
        if self._pictures:
            return [number / FOLDER_RATE for number in range(len(self._pictures))]
        found = self.listed()
        if found is None:
            return [time for _, time, _ in self._undrawn()]
        clock = Clock(1 / self.frame_rate)
        return [clock.place(stamp * self._tick) for stamp in found.stamps]

    def listed(self) -> FrameList | None:
        """The frames as the packets of the file list them; None if it has to be decoded to know them.

        Raises:
            UserError: as iterating does.
        """
        if self._list is None and not self._pictures and not self._webp:
            with self._opened() as (container, stream):
                if container.format.name in PACKED and stream.codec_context.name.split("-")[0] in WHOLE:
                    listing = Decoding(container, stream)
                    found = FrameList.of(listing.packets(), stream.codec_context)
                    if found is not None:
                        self._check_end(container, stream, len(found.stamps), listing)
                    self._list, self._tick = found, stream.time_base
        return self._list

    def _undrawn(self) -> Iterator[tuple[Callable[[], Frame], Fraction, Fraction]]:
        """A function that gives the picture, its time and how long it lasts, of one frame after the other."""
        if self._pictures:
            step = 1 / FOLDER_RATE
            for number, path in enumerate(self._pictures):
                yield partial(read_picture, path, None if number else self.say), number * step, step
        elif self._webp:
            time = Fraction(0)
            for picture, lasts in moving_pictures(self.path):
                yield partial(np.asarray, picture), time, lasts
                time += lasts
        else:
            yield from self._decoded()

    def _decoded(self) -> Iterator[tuple[Callable[[], Frame], Fraction, Fraction]]:
        """Decode a video; each frame waits until the next one tells how long it is shown."""
        with self._opened() as (container, stream):
            decoding = self._decoding(container, stream)
            clock, look = Clock(1 / self.frame_rate), Look()
            shown, waiting, time = 0, None, Fraction(0)
            for frame in decoding:
                next_time = clock.place(seconds(decoding.stamp(frame), stream.time_base))
                if waiting is not None:
                    yield partial(look.picture, waiting), time, next_time - time
                else:
                    look = Look.of(stream, decoding.decoder, frame)
                    self._say([*other_streams(container), *look.notes(frame)])
                waiting, time, shown = frame, next_time, shown + 1
            if waiting is not None:
                lasts = clock.last_step(seconds(waiting.duration, stream.time_base))
                yield partial(look.picture, waiting), time, lasts
            self._check_end(container, stream, shown, decoding)

    def _opened(self) -> AbstractContextManager[tuple[Any, Any]]:
        return opened(self.path)

    def _decoding(self, container: Any, stream: Any) -> Decoding:
        return Decoding(container, stream)

    def _breaks_off(self, container: Any, stream: Any) -> bool:
        return breaks_off(self.path, container.format.name)

    def _say(self, notes: Iterable[str]) -> None:
        if self.say is not None:
            for note in notes:
                self.say(f"{self.path}: {note}")

    def _check_end(self, container: Any, stream: Any, shown: int, decoding: Decoding) -> None:
        if shown == 0:
            why = f"damaged from its first frame on ({decoding.reason})" if decoding.reason else "it holds no frame"
            raise UserError(f"{self.path}: expected a video, {why}")
        promised = promised_frames(container, stream)
        exact = container.format.name == PACKED[0] and promised is not None
        if decoding.broken or (self._breaks_off(container, stream) and (not exact or shown < (promised or 0))):
            raise BrokenOff(self.path, shown, promised, decoding.reason)


def _is_webp(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"
