"""Small media of the tests' own making, and a second way to read them: by packets, or without our conversions."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

CLAPS = (0, 4, 10, 16)  # frames that are white, each with a beep


def write(
    path,
    frames,
    times=None,
    *,
    rate=25,
    codec="libx264",
    pix="yuv420p",
    options=None,
    form=None,
    sound=None,
    tick=None,
    **colours,
):
    """Frames (H, W, 3) uint8 or uint16 at `times` (seconds); `sound` = (codec, samples of 48 kHz mono, its begin)."""
    tick = tick or Fraction(1, rate if codec in ("mpeg4", "mjpeg") else 1000)
    times = [Fraction(i, rate) for i in range(len(frames))] if times is None else times
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt, (stream.height, stream.width) = pix, frames[0].shape[:2]
        stream.codec_context.time_base = tick
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        heard = container.add_stream(sound[0], rate=48_000, layout="mono") if sound else None
        for frame, time in zip(frames, times, strict=True):
            form_of = "rgba" if frame.shape[2] == 4 else "rgb24" if frame.dtype == np.uint8 else "rgb48le"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=form_of)
            picture.time_base = stream.codec_context.time_base
            picture.pts = round(time / picture.time_base)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        for start in range(0, len(sound[1]) if sound else 0, 1024):
            samples = np.ascontiguousarray(sound[1][None, start : start + 1024])
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            part.sample_rate, part.time_base, part.pts = 48_000, Fraction(1, 48_000), start + round(sound[2] * 48_000)
            container.mux(heard.encode(part))
        if heard:
            container.mux(heard.encode(None))
    return path


def claps(times, length):
    """Frames, white where `CLAPS` says so and black elsewhere, and the samples of a beep at each white one's time."""
    frames = [np.full((32, 32, 3), 255 if i in CLAPS else 0, np.uint8) for i in range(len(times))]
    samples = np.zeros(round(length * 48_000), np.int16)
    beep = (np.sin(np.arange(1920) / 8) * 20_000).astype(np.int16)
    for i in CLAPS:
        at = round((times[i] - times[0]) * 48_000)
        samples[at : at + len(beep)] = beep
    return frames, samples


def seen_and_heard(path):
    """When white frames are shown and when beeps begin, and how long the sound is; read apart from our own reader."""
    seen, heard, loud_until = [], [], -1.0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            if frame.to_ndarray(format="gray").mean() > 150:
                seen.append(float(frame.time))
    length = 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("audio")):
            samples = abs(frame.to_ndarray().astype(float)).reshape(-1, frame.samples, order="F")[0]
            samples /= 32768 if frame.format.name.startswith("s16") else 1
            for place in range(0, len(samples), 48):
                if samples[place : place + 48].max() > 0.1:
                    time = float(frame.time) + place / frame.sample_rate
                    if time - loud_until > 0.02:
                        heard.append(time)
                    loud_until = time
            length += len(samples) / frame.sample_rate
    return seen, heard, length


def frame_times(path):
    """The presentation times of the packets, in order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.size and not p.is_discard)


def with_matrix(path, a, b, c, d):
    """Patch the display matrix of an mp4's only track, which the writing API knows turns of only."""
    unit, last, layout = 1 << 16, 1 << 30, struct.Struct(">9i")
    data = path.read_bytes()
    at = data.index(layout.pack(unit, 0, 0, 0, unit, 0, 0, 0, last), data.index(b"tkhd"))
    matrix = layout.pack(a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, last)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    return path


def copied(path, output, *, shift=Fraction(0), form=None, **options):
    """The packets of the video stream, `shift` seconds earlier, as `-c copy` writes them."""
    with av.open(str(path)) as given, av.open(str(output), "w", format=form, options=options) as made:
        stream = given.streams.video[0]
        target = made.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = target
                packet.pts, packet.dts = (t - round(shift / packet.time_base) for t in (packet.pts, packet.dts))
                made.mux(packet)
    return output


def needs(codec):
    """Skip the test where this build of FFmpeg cannot write a codec."""
    try:
        av.CodecContext.create(codec, "w")
    except (av.error.FFmpegError, ValueError):
        pytest.skip(f"no encoder {codec}")


@pytest.fixture(scope="session")
def media():
    """The functions of this file."""
    return SimpleNamespace(
        write=write,
        claps=claps,
        seen_and_heard=seen_and_heard,
        frame_times=frame_times,
        with_matrix=with_matrix,
        copied=copied,
        needs=needs,
    )
