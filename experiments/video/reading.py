"""The frames of a video, each at its own time."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from memcomp.experiments.errors import UserError, few
from memcomp.experiments.files import kind_of
from memcomp.experiments.video.ending import BrokenOff, breaks_off, lacks_index, promised_frames
from memcomp.experiments.video.folders import PICTURES, pictures_in, unused_beside_pictures
from memcomp.experiments.video.opening import open_media
from memcomp.experiments.video.pictures import moving_pictures, read_picture
from memcomp.experiments.video.pixels import Frame, Look
from memcomp.experiments.video.seeking import FrameList, decoded_group
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
        with _opened(self.path) as (container, stream):
            rate = stream.average_rate or stream.base_rate
            self.frame_rate = Fraction(rate) if rate and rate <= FASTEST else FOLDER_RATE
            self.length = promised_frames(container, stream)

    def __iter__(self) -> Iterator[Frame]:
        for shown in self.timed():
            yield shown.picture

    def timed(self) -> Iterator[Shown]:
        """Iterate over the frames with their times, which always increase."""
        first: tuple[int, ...] = ()
        for draw, time, lasts in self._undrawn():
            picture = draw()
            first = first or picture.shape
            if picture.shape != first and self.say is not None:
                sizes = " and ".join(f"{width}×{height}" for height, width, _ in (first, picture.shape))
                self._say([f"frames of several sizes ({sizes} among them), each is used as it is"])
                self.say = None
            yield Shown(picture, time, lasts)

    def undrawn(self) -> Iterator[Callable[[], Frame]]:
        """Iterate over functions that give the frames; one that is not called costs no more than its decoding."""
        for draw, _, _ in self._undrawn():
            yield draw

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
            with _opened(self.path) as (container, stream):
                if container.format.name in PACKED and stream.codec_context.name.split("-")[0] in WHOLE:
                    listing, codec = _Decoding(container, stream), stream.codec_context
                    found = FrameList.of(listing.packets(), codec, lambda packet: _is_hidden(packet, codec.name))
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
        with _opened(self.path) as (container, stream):
            decoding = _Decoding(container, stream)
            clock, look = Clock(1 / self.frame_rate), Look()
            shown, waiting, time = 0, None, Fraction(0)
            for frame in decoding:
                next_time = clock.place(seconds(decoding.stamp(frame), stream.time_base))
                if waiting is not None:
                    yield partial(look.picture, waiting), time, next_time - time
                else:
                    look = Look.of(stream, decoding.decoder, frame)
                    self._say([*_other_streams(container), *look.notes(frame)])
                waiting, time, shown = frame, next_time, shown + 1
            if waiting is not None:
                lasts = clock.last_step(seconds(waiting.duration, stream.time_base))
                yield partial(look.picture, waiting), time, lasts
            self._check_end(container, stream, shown, decoding)

    def _say(self, notes: Iterable[str]) -> None:
        if self.say is not None:
            for note in notes:
                self.say(f"{self.path}: {note}")

    def _check_end(self, container: Any, stream: Any, shown: int, decoding: _Decoding) -> None:
        if shown == 0:
            why = f"damaged from its first frame on ({decoding.reason})" if decoding.reason else "it holds no frame"
            raise UserError(f"{self.path}: expected a video, {why}")
        promised = promised_frames(container, stream)
        exact = container.format.name == PACKED[0] and promised is not None
        if decoding.broken or (breaks_off(self.path, container.format.name) and (not exact or shown < (promised or 0))):
            raise BrokenOff(self.path, shown, promised, decoding.reason)


def sought(path: Path, numbers: Collection[int], found: FrameList) -> dict[int, Frame] | None:
    """Frames of a video by number, decoded from the key frame before each; None where reading in order has to tell.

    Args:
        path: video file.
        numbers: of frames that `found` has.
        found: what `Frames.listed` gave for this file.

    Raises:
        UserError: it cannot be opened.
    """
    if not found.keys:
        return None
    pictures: dict[int, Frame] = {}
    look = None
    with _opened(path) as (container, stream):
        decoder = _decoder(stream)
        for keys, wanted in found.groups(numbers):
            try:
                for frame in decoded_group(container, stream, decoder, keys, wanted):
                    look = look or Look.of(stream, decoder, frame)
                    if frame.is_corrupt or frame.interlaced_frame:  # of which two packets may make one
                        return None
                    if frame.pts in wanted:
                        pictures[frame.pts] = look.picture(frame)
            except av.error.FFmpegError:
                return None
    by_number = {number: pictures.get(found.stamps[number]) for number in numbers}
    complete = {number: picture for number, picture in by_number.items() if picture is not None}
    return complete if len(complete) == len(by_number) else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container of a video file and its video stream."""
    if not path.is_file():
        raise UserError(f"{path}: expected a video or a folder of pictures, found {kind_of(path)}")
    try:
        container = open_media(path)
    except av.error.FFmpegError as error:
        why = "it breaks off before its index" if lacks_index(path) else error.strerror
        raise UserError(f"{path}: expected a video, it cannot be read as one ({why})") from None
    with container:
        stream = container.streams.best("video")  # not a cover picture
        cover = stream is not None and bool(stream.disposition & av.stream.Disposition.attached_pic)  # of a song
        if stream is None or cover or container.format.name == "tty":  # a text file is none
            raise UserError(f"{path}: expected a video, it has no video stream")
        yield container, stream


class _Decoding:
    """The frames of a stream as the decoder gives them, up to the first that it cannot read.

    Attributes:
        broken: whether there was one.
        reason: what the decoder said of it.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream, self.decoder = container, stream, _decoder(stream)
        self.broken, self.reason = False, ""
        # AVI stamps frames in the order in which they are stored; where some refer to later ones, another is shown
        self._stored: list[int] | None = [] if container.format.name == "avi" else None

    def stamp(self, frame: Any) -> int | None:
        """The timestamp of the frame that was given last."""
        return heapq.heappop(self._stored) if self._stored else frame.pts

    def packets(self) -> Iterator[Any]:
        """The packets that hold something."""
        skip_damage = self.container.format.name == "mpegts"  # marks every packet after a disturbance
        try:
            for packet in self.container.demux(self.stream):
                if self.broken:
                    return
                if packet.is_corrupt and not skip_damage:
                    self.broken, self.reason = True, "its data end"
                    return
                if packet.size and self._stored is not None and packet.dts is not None:
                    heapq.heappush(self._stored, packet.dts)
                if packet.size:  # an empty one repeats the frame before, and the last one ends the stream
                    yield packet
        except av.error.FFmpegError as error:
            self.broken, self.reason = True, str(error.strerror)

    def __iter__(self) -> Iterator[Any]:
        """Decode up to the first frame that the decoder marks as damaged, or the first packet that it refuses.

        Those before the first whole frame are passed over: a recording may begin between two key frames. Of damage
        that it could hide the decoder says nothing, and such frames are given as they are.
        """
        some = False
        for packet in itertools.chain(self.packets(), [None]):  # None: what the decoder still holds back
            frames: list[Any] = []
            try:
                frames = self.decoder.decode(packet)
            except av.error.FFmpegError as error:
                self.broken, self.reason = self.broken or some, str(error.strerror)
            for frame in frames:
                if not frame.is_corrupt:
                    some, self.reason = True, self.reason if self.broken else ""
                    yield frame
                    continue
                self.reason = self.reason or "its data end or are damaged there"
                if some:
                    self.broken = True
                    return


def _decoder(stream: Any) -> Any:
    """The decoder of a stream; VP8 and VP9 keep transparency beside the picture, where only libvpx looks for it."""
    decoder, name = stream.codec_context, stream.codec_context.name
    if stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
        decoder = av.CodecContext.create("libvpx" if name == "vp8" else "libvpx-vp9", "r")
    # with threads by frame a decoder keeps its errors to itself; a forked process that lets go of one with any threads,
    # left over from the process before, waits for them for ever
    decoder.thread_count = 1
    return decoder


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether it is a frame of VP8 that is only there to be referred to."""
    return codec == "vp8" and not memoryview(packet)[0] & 16


def _other_streams(container: Any) -> list[str]:
    covers = av.stream.Disposition.attached_pic
    many = sum(not stream.disposition & covers for stream in container.streams.video)
    return [f"{many} video streams, of which one is used"] if many > 1 else []


def _is_webp(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"
