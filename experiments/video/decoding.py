"""One video stream of a file, decoded: what the decoder gives, and where it finds damage."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import kind_of
from memcomp.experiments.video.ending import lacks_index
from memcomp.experiments.video.opening import open_media
from memcomp.experiments.video.sound import SoundAside


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container of a video file and its video stream.

    Raises:
        UserError: nothing is there, or it is no video.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a video or a folder of pictures, found {kind_of(path)}")
    try:
        container = open_media(path)
    except av.error.FFmpegError as error:
        why = "it breaks off before its index" if lacks_index(path) else error.strerror
        raise UserError(f"{path}: expected a video, it cannot be read as one ({why})") from None
    with container:
        yield container, video_stream(container, path)


def video_stream(container: Any, path: Path) -> Any:
    """The stream of a container that is read.

    Raises:
        UserError: it has none; it names `path`.
    """
    stream = container.streams.best("video")  # not a cover picture
    cover = stream is not None and bool(stream.disposition & av.stream.Disposition.attached_pic)  # of a song
    if stream is None or cover or container.format.name == "tty":  # a text file is none
        raise UserError(f"{path}: expected a video, it has no video stream")
    return stream


class Decoding:
    """The frames of a stream as the decoder gives them, up to the first that it cannot read.

    Args:
        container: opened.
        stream: of it.
        aside: takes the packets of the container's sound on the way; None = they are passed over.

    Attributes:
        broken: whether there was one.
        reason: what the decoder said of it.
    """

    def __init__(self, container: Any, stream: Any, aside: SoundAside | None = None) -> None:
        self.container, self.stream, self.decoder = container, stream, decoder_of(stream)
        self.aside = aside
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
            beside = [] if self.aside is None else [self.aside.stream]
            for packet in self.container.demux(self.stream, *beside):
                if self.broken:
                    return
                if self.aside is not None and packet.stream_index != self.stream.index:
                    self.aside.add(packet)
                    continue
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


def decoder_of(stream: Any) -> Any:
    """The decoder of a stream; VP8 and VP9 keep transparency beside the picture, where only libvpx looks for it."""
    decoder, name = stream.codec_context, stream.codec_context.name
    if stream.metadata.get("alpha_mode") == "1" and name in ("vp8", "vp9"):
        decoder = av.CodecContext.create("libvpx" if name == "vp8" else "libvpx-vp9", "r")
    # with threads by frame a decoder keeps its errors to itself; a forked process that lets go of one with any threads,
    # left over from the process before, waits for them for ever
    decoder.thread_count = 1
    return decoder


def other_streams(container: Any) -> list[str]:
    """Say in words that a file has several videos, of which one is read."""
    covers = av.stream.Disposition.attached_pic
    many = sum(not stream.disposition & covers for stream in container.streams.video)
    return [f"{many} video streams, of which one is used"] if many > 1 else []
