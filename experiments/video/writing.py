"""Videos written frame by frame, each at its own time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from memcomp.experiments.files import atomic_write
from memcomp.experiments.video.pixels import THREADS, Frame
from memcomp.experiments.video.timing import Pace

# container, codec and its options; crf: constant rate factor, 0 = without loss; bf: frames that refer to later ones,
# without which a file's header tells the true end of its last frame
MP4 = "mp4", "libx264", {"crf": "16", "bf": "0"}
INDEX_FIRST = {"mp4": {"movflags": "faststart"}}  # a player, or a pipe, begins before the whole file has come
WEBM = "webm", "libvpx-vp9", {"crf": "22", "b:v": "0", "deadline": "good", "cpu-used": "4"}
FINE = 10_000  # ticks in a second, at least: times are rounded to ticks
BT709 = 1  # primaries, transfer characteristic and matrix, in ITU-T H.273


class Writer:
    """Appends frames to an open video: call it with one frame after the other.

    Attributes:
        pace: when the frames are shown; as text, "at 25 per second" or "at their own times (…)".
        end: seconds from the first frame's time 0 to the end of the last.
    """

    def __init__(self, container: Any, stream: Any, rate: Fraction) -> None:
        self.pace = Pace(rate)
        self.end = Fraction(0)
        self._container, self._stream = container, stream
        self._tick = stream.codec_context.time_base
        self._shape: tuple[int, ...] = ()
        self._waiting: tuple[Frame, int] | None = None  # until the next one tells how long it lasts
        self._lengths: deque[tuple[int, int]] = deque()  # of frames in the encoder: when, how long

    def __call__(self, frame: Frame, time: Fraction | float | None = None, lasts: Fraction | None = None) -> None:
        """Append one frame.

        Args:
            frame: (H, W, 3) uint8; H and W even, equal for all frames.
            time: seconds, more than that of the frame before; None = by the frame rate.
            lasts: seconds until the next frame, of use for the last one; None = by the frame rate.

        Raises:
            ValueError: a frame has odd sides or another size than the first.
        """
        if not self._shape:
            self._shape = frame.shape
            self._stream.height, self._stream.width = frame.shape[:2]
        if frame.shape != self._shape or frame.shape[0] % 2 or frame.shape[1] % 2:
            raise ValueError(f"frames need equal and even sides, got {frame.shape} after {self._shape}")
        time = self.pace.count / self.pace.rate if time is None else Fraction(time)
        self.pace.add(time)
        self.end = time + (lasts or 1 / self.pace.rate)
        tick = round(time / self._tick)
        if self._waiting is not None:
            tick = max(tick, self._waiting[1] + 1)
            self._encode(tick)
        self._waiting = frame, tick

    def finish(self) -> None:
        """Write what is waiting; nothing may follow."""
        if self._waiting is not None:
            self._encode(max(round(self.end / self._tick), self._waiting[1] + 1))
            self._mux(None)

    def _encode(self, until: int) -> None:
        frame, tick = self._waiting or (None, 0)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", threads=THREADS)
        picture.pts, picture.time_base = tick, self._tick
        self._lengths.append((tick, until - tick))
        self._mux(picture)

    def _mux(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            while self._lengths and self._lengths[0][0] < packet.pts:
                self._lengths.popleft()
            if self._lengths:
                packet.duration = self._lengths[0][1]
            self._container.mux(packet)


@contextmanager
def write_video(
    path: str | Path,
    frame_rate: Fraction | float,
    *,
    key_frames: int | None = None,
    threads: int = 0,
    comment: str = "",
) -> Iterator[Writer]:
    """Yield a function that appends one frame (H, W, 3) uint8 to a video; see `Writer`.

    Frames are encoded as they come. The file appears under its name when the block ends without an exception.

    Args:
        path: .webm becomes VP9 in WebM, anything else H.264 in mp4.
        frame_rate: frames per second, of frames that come without times; of others what is expected.
        key_frames: from one frame that can be decoded alone to the next, at most; None = as the encoder chooses.
        threads: of the encoder; 0 = as it chooses, by which its bytes differ.
        comment: goes into the container's metadata.

    Raises:
        UserError: the file cannot be written.
    """
    rate = Fraction(frame_rate).limit_denominator(60_000)
    form, codec, options = WEBM if Path(path).suffix == ".webm" else MP4
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", format=form, container_options=INDEX_FIRST.get(form)) as container,
    ):
        options = options | ({} if key_frames is None else {"g": str(key_frames)})
        if comment:
            container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        if threads:
            context.thread_count = threads
        context.time_base = Fraction(1, rate.numerator * -(-FINE // rate.numerator))  # every frame: whole ticks
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = BT709  # range: limited
        writer = Writer(container, stream, rate)
        yield writer
        writer.finish()
