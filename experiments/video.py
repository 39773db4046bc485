"""Videos and pictures in and out, a few frames at a time: any length in constant memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write

Frame = npt.NDArray[np.uint8]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FOLDER_RATE = Fraction(25)  # a folder of pictures does not tell its frame rate
# container, codec and its options; crf: constant rate factor, 0 = without loss
MP4 = "mp4", "libx264", {"crf": "16"}
WEBM = "webm", "libvpx-vp9", {"crf": "22", "b:v": "0", "deadline": "good", "cpu-used": "4"}


class Frames:
    """The frames of a video file, or of a folder of pictures in the order of their names.

    Iterating decodes one frame after the other, (H, W, 3) uint8 RGB, turned upright as the file asks.

    Attributes:
        path: what was opened.
        frame_rate: frames per second; 25 for a folder.
        length: how many frames to expect, for a progress bar (a video's header may be wrong), None if unknown.

    Raises:
        UserError: nothing is there, it is not a video, the folder holds no pictures; while iterating: damaged data.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frame_rate = FOLDER_RATE
        self.length: int | None
        if self.path.is_dir():
            self._pictures = sorted(file for file in self.path.iterdir() if file.suffix.lower() in PICTURES)
            if not self._pictures:
                raise UserError(f"{self.path}: expected a folder of pictures ({', '.join(PICTURES)}), it holds none")
            self.length = len(self._pictures)
            return
        self._pictures = []
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_rate = Fraction(stream.average_rate or stream.base_rate or FOLDER_RATE)
            self.length = stream.frames or None

    def __iter__(self) -> Iterator[Frame]:
        if self._pictures:
            yield from map(read_picture, self._pictures)
            return
        count = 0
        with self._open() as container:
            container.streams.video[0].thread_type = "AUTO"
            try:
                for frame in container.decode(video=0):
                    # the header's rotation is counter-clockwise, in degrees; older PyAV does not tell it
                    yield np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
                    count += 1
            except av.error.FFmpegError as error:
                where = f"after frame {count - 1}" if count else "from its first frame on"
                raise UserError(f"{self.path}: damaged {where} ({error.strerror})") from None
        if count == 0:
            raise UserError(f"{self.path}: expected a video, it holds no frame")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if not self.path.is_file():
            raise UserError(f"{self.path}: expected a video or a folder of pictures, found nothing")
        try:
            container = av.open(str(self.path))
        except av.error.FFmpegError as error:
            raise UserError(f"{self.path}: expected a video, it cannot be read as one ({error.strerror})") from None
        with container:
            if not container.streams.video:
                raise UserError(f"{self.path}: expected a video, it has no video stream")
            yield container


def read_picture(path: str | Path) -> Frame:
    """A still picture, (H, W, 3) uint8 RGB, upright as its EXIF says.

    Raises:
        UserError: nothing is there, or it is not a picture.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a picture, found nothing")
    try:
        return iio.imread(path, plugin="pillow", index=0, mode="RGB", rotate=True)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for unknown, truncated and malformed files
        raise UserError(f"{path}: expected a picture, it cannot be read as one") from None


def fit(frame: Frame, size: int) -> torch.Tensor:
    """The largest centred square of a frame (H, W, 3) uint8, resized to (3, size, size) float in [0, 1]."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
    image = square.permute(2, 0, 1).float() / 255  # (3, side, side)
    if side == size:
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def to_frame(image: torch.Tensor) -> Frame:
    """Turn a picture (3, H, W), float in [0, 1], into a frame (H, W, 3) uint8."""
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@contextmanager
def write_video(path: str | Path, frame_rate: Fraction | float) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that appends one frame (H, W, 3) uint8 to a video; H and W even, equal for all frames.

    Frames are encoded as they come. The file appears under its name when the block ends without an exception.

    Args:
        path: .webm becomes VP9 in WebM, anything else H.264 in mp4.
        frame_rate: frames per second.

    Raises:
        UserError: the file cannot be written.
        ValueError: a frame has odd sides or another size than the first.
    """
    rate = Fraction(frame_rate).limit_denominator(60_000)
    form, codec, options = WEBM if Path(path).suffix == ".webm" else MP4
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        shape: tuple[int, ...] = ()

        def append(frame: Frame) -> None:
            nonlocal shape
            if not shape:
                shape = frame.shape
                stream.height, stream.width = shape[:2]
            if frame.shape != shape or shape[0] % 2 or shape[1] % 2:
                raise ValueError(f"frames need equal and even sides, got {frame.shape} after {shape}")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))

        yield append
        if shape:
            container.mux(stream.encode(None))


def keep_audio(video: str | Path, original: str | Path, output: str | Path) -> bool:
    """Write `output`: the picture of `video` and the sound of `original`, both copied without encoding them again.

    Returns:
        whether there was a sound that an mp4 file can hold. If not, nothing is written.
    """
    if not Path(original).is_file():
        return False
    with av.open(str(video)) as pictures, av.open(str(original)) as sounds:
        if not sounds.streams.audio:
            return False
        picture, sound = pictures.streams.video[0], sounds.streams.audio[0]
        end = float(picture.duration * picture.time_base) if picture.duration and picture.time_base else float("inf")
        try:
            with atomic_write(output) as temporary, av.open(str(temporary), "w", format="mp4") as container:
                # older PyAV knows add_stream(template=…) instead
                add = getattr(container, "add_stream_from_template", None) or _template(container)
                targets = {0: add(picture), 1: add(sound)}
                streams = (_packets(pictures, picture, 0), _packets(sounds, sound, 1))
                for time, kind, packet in heapq.merge(*streams, key=lambda item: item[:2]):
                    if time < end:
                        packet.stream = targets[kind]
                        container.mux(packet)
        except (av.error.FFmpegError, ValueError):  # a codec that mp4 does not know, such as raw PCM
            return False
    return True


def _template(container: Any) -> Callable[[Any], Any]:
    return lambda stream: container.add_stream(template=stream)


def _packets(container: Any, stream: Any, kind: int) -> Iterable[tuple[float, int, Any]]:
    for packet in container.demux(stream):
        if packet.dts is not None:  # the last, empty packet only flushes a decoder
            yield float(packet.dts * packet.time_base), kind, packet
