"""Frames found by seeking: the list of a file's packets, and decoding from the key frame before the frame wanted.

A frame found so is the very one that reading in order gives. Where that is not sure there is no seeking: containers
without an index, codecs not tried, a first packet that is no key frame, packets that are not in the order of groups.
From the key frames of an open group, and from those of a picture that is renewed in stripes, decoding is not begun.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import av

from memcomp.experiments.video.decoding import decoder_of, opened
from memcomp.experiments.video.pixels import Frame, Look

IDR = {"h264": (5,), "hevc": (19, 20)}  # NAL units of pictures that nothing after refers back beyond
SEEKABLE = ("h264", "hevc", "vp8", "vp9", "mjpeg", "prores")


@dataclass(frozen=True)
class FrameList:
    """The frames of a file by its packets."""

    stamps: Sequence[int]
    """Timestamp of each frame, in the order of showing."""
    keys: Sequence[int]
    """Timestamps of the frames from which decoding can begin, in order; empty where none can be trusted."""

    @classmethod
    def of(cls, packets: Iterable[Any], codec: Any) -> FrameList | None:
        """List the frames of a stream; None if a packet has no timestamp.

        Args:
            packets: all of the stream, as they are stored.
            codec: the stream's codec context.
        """
        stamps, keys, last, sure = array("q"), array("q"), None, codec.name in SEEKABLE
        for packet in packets:
            if packet.pts is None:
                return None
            if sure and packet.is_keyframe and _stands_alone(packet, codec):
                sure = last is None or packet.pts > last
                keys.append(packet.pts)
            sure = sure and bool(keys) and packet.pts >= keys[-1]  # a group is stored as a whole
            last = packet.pts if last is None else max(last, packet.pts)
            if not packet.is_discard and not _is_hidden(packet, codec.name):
                stamps.append(packet.pts)
        ordered = array("q", sorted(stamps))
        sure = sure and len(set(ordered)) == len(ordered)
        return cls(ordered, keys if sure else array("q"))

    def groups(self, numbers: Collection[int]) -> Iterator[tuple[Sequence[int], set[int]]]:
        """The timestamps of frames by number, those behind one key frame together: (all keys up to it, frames)."""
        wanted = sorted(self.stamps[number] for number in numbers)
        for count, stamps in groupby(wanted, lambda stamp: bisect_right(self.keys, stamp)):
            yield self.keys[:count], set(stamps)


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
    with opened(path) as (container, stream):
        decoder = decoder_of(stream)
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


def decoded_group(container: Any, stream: Any, decoder: Any, keys: Sequence[int], wanted: set[int]) -> Iterator[Any]:
    """Seek to the last of some key frames and decode; yields the frames from there on until the last one wanted.

    Frames to which no other refers are left out unless wanted. Where times are uneven a container may find an earlier
    key frame. Nothing more comes where it finds anything else.

    Raises:
        av.error.FFmpegError: a packet cannot be decoded.
    """
    container.seek(keys[-1], stream=stream)
    decoder.flush_buffers()
    last, begun = max(wanted), False
    for packet in container.demux(stream):
        if packet.is_corrupt or (not begun and packet.size and packet.pts not in keys):
            return
        if packet.size:
            begun = True
            if decoder.name in IDR:
                decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in decoder.decode(packet if packet.size else None):
            yield frame
            if frame.pts is None or frame.pts >= last:
                return


def _stands_alone(packet: Any, codec: Any) -> bool:
    """Whether the pictures that are shown after a key frame need nothing before it; asked of the packet itself."""
    if codec.name not in IDR:
        return True
    head, data, place = codec.extradata or b"", memoryview(packet), 0
    hevc = codec.name == "hevc"
    if len(head) < 23 - 16 * (not hevc) or head[0] != 1:  # no record of how long the lengths are
        return False
    width = (head[21 if hevc else 4] & 3) + 1
    while place + width < len(data):
        kind = data[place + width]
        kind = kind >> 1 & 63 if hevc else kind & 31
        if kind < 32 if hevc else 1 <= kind <= 5:  # the first one that holds a part of the picture
            return kind in IDR[codec.name]
        place += width + int.from_bytes(data[place : place + width], "big")
    return False


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether it is a frame of VP8 that is only there to be referred to."""
    return codec == "vp8" and not memoryview(packet)[0] & 16
