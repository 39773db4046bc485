"""A video's sound beside other pictures, in step with them."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from memcomp.experiments.files import atomic_write
from memcomp.experiments.video.opening import open_media
from memcomp.experiments.video.timing import JUMP
from memcomp.experiments.video.writing import INDEX_FIRST

# container → codecs that its players know, and the one that others become
COPIED = {"mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus"), "webm": ("opus", "vorbis")}
ENCODED = {"mp4": "aac", "webm": "libopus"}
RATE, SLACK = 48_000, 960  # of sound that is encoded anew, and by how many samples its clock may be off
ASIDE = "nut", "matroska"  # containers that need not keep it for players: any clock; more codecs, clock of 1 ms
Timed = tuple[float, int, Any]  # seconds, number of the stream, packet


def keep_audio(
    video: str | Path,
    original: str | Path | None,
    output: str | Path,
    start: Fraction = Fraction(0),
    end: Fraction | None = None,
) -> bool:
    """Write `output`: the picture of `video` and the sound of `original`, in step and whole.

    The picture is copied without encoding it again; so is the sound if players know its codec in that container, else
    it becomes AAC in mp4, Opus in WebM. Of several sounds it is the one that a player would choose.

    Args:
        video: its first frame has time 0.
        original: has the sound; None = there is none.
        output: mp4 or WebM file to write, as `video` is; may be `video` itself.
        start: the time of that frame on the clock of `original`.
        end: seconds after the first frame at which the sound is cut; None = whole.

    Returns:
        whether sound was written. If not, nothing is.
    """
    if original is None or not Path(original).is_file():
        return False
    for encode in (False, True):
        try:
            if _joined(str(video), str(original), output, start, end, encode):
                return True
        except (av.error.FFmpegError, ValueError):  # a codec that the container does not know, or damaged data
            continue
    return False


class SoundAside:
    """Lays the sound of a container that can be read only once into a temporary file, while its pictures are decoded.

    Attributes:
        stream: the sound in that container.
        lost: what of it cannot be laid aside, as a person would say it; empty if nothing is lost.
    """

    later = Fraction(10)
    """Seconds by which the file's clock is ahead of the container's: a file has no negative times."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.lost = stream, ""
        self._file = tempfile.NamedTemporaryFile(prefix="memcomp-")  # noqa: SIM115 (kept while this is)
        self._container: Any = None
        self._clock = _Forward(stream, self.later)
        for form in ASIDE:
            container = av.open(self._file.name, "w", format=form)
            try:
                self._target = container.add_stream_from_template(stream)
            except (av.error.FFmpegError, ValueError):  # a codec that the container does not know
                container.close()
                continue
            self._container = container
            return
        self.lost = f"its sound cannot be kept ({stream.codec_context.name})"

    def add(self, packet: Any) -> None:
        """Take the next packet of the sound."""
        if self.lost or not self._clock.place(packet):
            return
        time = float(packet.dts * packet.time_base - self.later)
        packet.stream = self._target
        try:
            self._container.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            self.lost = f"its sound cannot be kept from {time:.2f} s on ({getattr(error, 'strerror', error)})"

    def finished(self) -> Path | None:
        """The file, once nothing follows, which `keep_audio` reads; None if there is none."""
        if self._container is None:
            return None
        with suppress(av.error.FFmpegError):  # what is lost is said
            self._container.close()
        return Path(self._file.name)


class _Forward:
    """A clock of a stream's packets that only goes forward, `shift` seconds later than theirs."""

    def __init__(self, stream: Any, shift: Fraction) -> None:
        self._base = stream.time_base
        self._offset = round(shift / self._base)
        self._next = stream.start_time or 0  # of a packet that does not say
        self._last: int | None = None

    def place(self, packet: Any) -> bool:
        """Set a packet's times; returns whether it has a place, which damaged ones and small steps back have not."""
        if not packet.size or packet.is_corrupt:
            return False  # the last, empty packet only flushes a decoder
        if packet.dts is None:
            packet.dts = self._next
        self._next = packet.dts + (packet.duration or 1)
        dts, last = packet.dts + self._offset, self._last
        if last is not None and dts <= last:
            if (last - dts) * self._base < JUMP:
                return False
            self._offset += last + (packet.duration or 1) - dts  # recordings put one behind the other
            dts = packet.dts + self._offset
        if not packet.duration and last is not None:  # NUT does not tell; a last packet of no length is left out
            packet.duration = dts - last
        packet.pts, packet.dts = (packet.dts if packet.pts is None else packet.pts) + self._offset, dts
        self._last = dts
        return True


class _Nothing(Exception):
    """There was no sound to write."""


def _joined(video: str, original: str, output: str | Path, start: Fraction, end: Fraction | None, encode: bool) -> bool:
    form = "webm" if Path(output).suffix.lower() == ".webm" else "mp4"
    with av.open(video) as pictures, open_media(original) as sounds:
        sound: Any = sounds.streams.best("audio")
        if sound is None or (not encode and sound.codec_context.name not in COPIED[form]):
            return False
        begin = start if sound.start_time is None else sound.start_time * sound.time_base
        first = min(start, begin)  # time 0 of the output: nothing lies before it
        until = None if end is None else start + end - first
        try:
            index = INDEX_FIRST.get(form)
            with (
                atomic_write(output) as temporary,
                av.open(str(temporary), "w", format=form, container_options=index) as container,
            ):
                about = {key.lower(): value for key, value in pictures.metadata.items()}
                container.metadata.update({key: about[key] for key in ("comment",) if key in about})
                picture = pictures.streams.video[0]
                targets: list[Any] = [container.add_stream_from_template(picture)]
                if encode:
                    mono = sound.codec_context.layout.nb_channels == 1
                    targets.append(container.add_stream(ENCODED[form], rate=RATE, layout="mono" if mono else "stereo"))
                    packets = _encoded(sounds, sound, targets[1], first)
                else:
                    targets.append(container.add_stream_from_template(sound))
                    packets = _packets(sounds, sound, 1, -first)
                count = 0
                both = heapq.merge(_packets(pictures, picture, 0, start - first), packets, key=lambda item: item[:2])
                for time, kind, packet in both:
                    if kind and until is not None and time >= until:
                        continue
                    packet.stream = targets[kind]
                    container.mux(packet)
                    count += kind
                if count == 0:
                    raise _Nothing
        except _Nothing:
            return False
    return True


def _packets(container: Any, stream: Any, kind: int, shift: Fraction) -> Iterator[Timed]:
    """The packets of a stream, `shift` seconds later, with a clock that only goes forward."""
    clock = _Forward(stream, shift)
    try:
        for packet in container.demux(stream):
            if clock.place(packet):
                yield float(packet.dts * packet.time_base), kind, packet
    except av.error.FFmpegError:  # the sound breaks off; what there is of it is kept
        return


def _encoded(container: Any, stream: Any, target: Any, first: Fraction) -> Iterator[Timed]:
    """The sound of a stream as AAC; silence where it has none, by its clock."""
    layout = target.codec_context.layout.name
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=RATE)
    size = target.codec_context.frame_size or 1024
    buffer, done = np.zeros((target.codec_context.layout.nb_channels, 0), np.float32), 0

    def encode(frame: Any) -> Iterable[Timed]:
        for packet in target.encode(frame):
            yield float(packet.dts * packet.time_base), 1, packet

    for samples, time in _samples(container, stream, resampler):
        place = done + buffer.shape[1]
        late = place if time is None else round((time - first) * RATE)
        if late > place + SLACK or (place == 0 and late > 0):
            buffer = np.pad(buffer, ((0, 0), (0, late - place)))
        elif late < place - SLACK:
            samples = samples[:, place - late :]
        buffer = np.concatenate([buffer, samples], axis=1)
        while buffer.shape[1] >= size:
            yield from encode(_audio_frame(buffer[:, :size], layout, done))
            buffer, done = buffer[:, size:], done + size
    if buffer.shape[1]:
        yield from encode(_audio_frame(buffer, layout, done))
    yield from encode(None)


def _samples(container: Any, stream: Any, resampler: Any) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    """Decoded sound, (channels, samples) float, and when it begins; damaged packets are left out."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode() if packet.size or packet.dts is None else []
        except av.error.FFmpegError:
            continue
        for frame in frames:
            time = None if frame.pts is None else frame.pts * frame.time_base
            for part in resampler.resample(frame):
                yield part.to_ndarray(), time
                time = None
    for part in resampler.resample(None):
        yield part.to_ndarray(), None


def _audio_frame(samples: np.ndarray, layout: str, place: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = RATE, place, Fraction(1, RATE)
    return frame
