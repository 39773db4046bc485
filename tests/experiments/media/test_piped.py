"""A video through a pipe: the very frames, times and sound of its file, read once, as far as it comes."""

import contextlib
import io
import os
import re
import signal
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from memcomp.experiments.errors import UserError
from memcomp.experiments.video import BrokenOff, Frames, Piped, is_pipe, keep_audio, open_frames
from memcomp.experiments.video.decoding import Decoding
from memcomp.experiments.video.piped import FORMS as SAID
from memcomp.experiments.video.sound import SoundAside

COUNT, PART = 50, 5
FORMS = ("a.ts", "a.mkv", "a.mp4", "fragments.mp4", "a.nut")


def numbered(count=COUNT):
    frames = np.random.default_rng(0).integers(60, 190, (count, 32, 32, 1), np.uint8).repeat(3, 3)
    for i, frame in enumerate(frames):
        frame[:16, :16] = 12 + 4 * i
    return list(frames)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, media):
    """Files of 50 frames with sound that need no seeking, and one that has its index at the end."""
    folder = tmp_path_factory.mktemp("whole")
    sound = (np.sin(np.arange(96_000) / 9) * 9000).astype(np.int16)
    for name, codec in (("a.ts", "aac"), ("a.mkv", "libopus"), ("a.nut", "pcm_s16le"), ("end.mp4", "aac")):
        path = folder / name
        heard = (codec, sound, Fraction(1, 5))
        media.write(path, numbered(), form="mpegts" if name == "a.ts" else None, options={"g": "10"}, sound=heard)
    media.write(folder / "a.avi", numbered(), codec="mpeg4")
    for name, flags in (("a.mp4", "faststart"), ("fragments.mp4", "frag_keyframe+empty_moov")):
        with (
            av.open(str(folder / "end.mp4")) as given,
            av.open(str(folder / name), "w", options={"movflags": flags}) as made,
        ):
            targets = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = targets[packet.stream_index]
                    made.mux(packet)
    return folder


@pytest.fixture
def piped(tmp_path):
    """`piped(data)`: a named pipe into which somebody writes bytes, and then ends unless told to stay."""
    stay, threads = threading.Event(), []

    def write(path, data, ends):
        with contextlib.suppress(BrokenPipeError), open(path, "wb", buffering=0) as file:
            file.write(data[:PART])  # less than the head of a container
            time.sleep(0.02)
            file.write(data[PART:])
            if not ends:
                stay.wait(60)

    def make(data, ends=True):
        path = tmp_path / f"pipe{len(threads)}"
        os.mkfifo(path)
        threads.append(threading.Thread(target=write, args=(path, data, ends), daemon=True))
        threads[-1].start()
        return path

    yield make
    stay.set()
    for thread in threads:
        thread.join(60)


@pytest.mark.parametrize("name", FORMS)
def test_frames_times_and_sound_are_those_of_the_file(name, whole, piped, tmp_path, media):
    frames = open_frames(piped((whole / name).read_bytes()))
    assert isinstance(frames, Piped)
    first = frames.first()
    shown, expected = list(frames.timed()), list(Frames(whole / name).timed())
    assert len(shown) == COUNT and np.array_equal(first, shown[0].picture)
    for one, other in zip(shown, expected, strict=True):
        assert np.array_equal(one.picture, other.picture) and one[1:] == other[1:]
    with pytest.raises(UserError, match="expected to be read once, a pipe shows each frame one time"):
        next(frames.timed())
    media.write(tmp_path / "video.mp4", numbered(), options={"bf": "0"})
    heard, later = frames.sound()
    found = {}
    for way, original, start in (("file", whole / name, Fraction(0)), ("pipe", heard, later)):
        output = tmp_path / f"{way}.mp4"
        assert keep_audio(tmp_path / "video.mp4", original, output, start + shown[0].time)
        with av.open(str(output)) as container:
            packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
            picture = container.streams.video[0]
            begins = min(packet.pts * packet.time_base for packet in packets) - picture.start_time * picture.time_base
            found[way] = [bytes(packet) for packet in packets], float(begins)
    if name != "a.nut":  # whose sound no mp4 takes as it is: encoded anew
        assert found["file"][0] == found["pipe"][0]
    assert abs(found["file"][1] - found["pipe"][1]) < 0.005


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_one_that_breaks_off_says_so(name, whole, piped):
    data = (whole / name).read_bytes()
    frames, seen = Piped(piped(data[: len(data) * 6 // 10 // 188 * 188 + 94])), []
    with pytest.raises(BrokenOff, match=r"pipe0: damaged after frame \d+, \d+ of \d+ frames"):
        seen.extend(frames.timed())
    assert 20 <= len(seen) < COUNT


def test_an_avi_that_was_written_into_a_pipe_is_whole(whole, piped, tmp_path):
    written = io.BytesIO()  # without seek, as a pipe
    with (
        av.open(str(whole / "a.avi")) as given,
        av.open(SimpleNamespace(write=written.write), "w", format="avi") as made,
    ):
        target = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = target
                made.mux(packet)
    (tmp_path / "live.avi").write_bytes(written.getvalue())
    with av.open(str(tmp_path / "live.avi")) as container:
        assert container.streams.video[0].frames == 1 << 30
    for frames in (Frames(tmp_path / "live.avi"), Piped(piped(written.getvalue()))):
        assert frames.length is None and len(list(frames)) == COUNT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"pipe0: expected a video through the pipe, nothing came"),
        (b"\x93\x01" * 999, r"pipe0: expected a video that can be read from front to end \(mpegts, Matroska"),
        (b"a text is no video\n" * 50, r"pipe0: expected a video"),
        ("end.mp4", r"pipe0: expected .* \(mpegts, .*\): its index is at its end: write it with -movflags faststart"),
    ],
)
def test_what_is_no_video_or_cannot_be_read_from_front_to_end_is_refused(data, said, whole, piped):
    data = (whole / data).read_bytes() if isinstance(data, str) else data
    with pytest.raises(UserError, match=said):
        list(Piped(piped(data)))


def with_sound_as(codec, given, output):
    """Write a file's pictures and a second of noise as a codec's."""
    flags = {"movflags": "faststart"} if output.suffix == ".mov" else {}
    with av.open(str(given)) as pictures, av.open(str(output), "w", options=flags) as made:
        picture = made.add_stream_from_template(pictures.streams.video[0])
        sound = made.add_stream(codec, rate=48_000, layout="stereo")
        form = sound.codec_context.codec.audio_formats[0].name
        for packet in pictures.demux(pictures.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                made.mux(packet)
        noise = np.random.default_rng(0).integers(-9000, 9000, (2, 48_000)).astype(np.int16)
        part = av.AudioFrame.from_ndarray(noise, format="s16p", layout="stereo")
        part.sample_rate, part.pts = 48_000, 0
        size = sound.codec_context.frame_size or 1024
        for frame in av.AudioResampler(form, "stereo", 48_000, frame_size=size).resample(part):
            made.mux(sound.encode(frame))
        made.mux(sound.encode(None))


@pytest.mark.parametrize(("codec", "form", "kept"), [("alac", "mkv", True), ("adpcm_ima_qt", "mov", False)])
def test_sound_that_cannot_be_kept_is_said_and_the_pictures_come(codec, form, kept, whole, piped, tmp_path, media):
    with_sound_as(codec, whole / "a.mp4", tmp_path / f"a.{form}")
    said = []
    frames = Piped(piped((tmp_path / f"a.{form}").read_bytes()), said.append)
    assert len(list(frames)) == COUNT
    heard, later = frames.sound()
    media.write(tmp_path / "video.mp4", numbered(), options={"bf": "0"})
    assert keep_audio(tmp_path / "video.mp4", heard, tmp_path / "out.mp4", later) == kept
    assert [text.split(": ")[1] for text in said] == ([] if kept else [f"its sound cannot be kept ({codec})"])


def test_sound_goes_on_where_the_clock_goes_back(whole, piped, tmp_path, media):
    media.write(tmp_path / "video.mp4", numbered() * 2, options={"bf": "0"})
    (tmp_path / "twice.ts").write_bytes((whole / "a.ts").read_bytes() * 2)
    said, sounds = [], []
    frames = Piped(piped((tmp_path / "twice.ts").read_bytes()), said.append)
    start, *_ = (shown.time for shown in frames.timed())
    heard, later = frames.sound()
    for original, ahead in ((heard, later), (tmp_path / "twice.ts", 0)):
        assert keep_audio(tmp_path / "video.mp4", original, tmp_path / "out.mp4", start + ahead)
        with av.open(str(tmp_path / "out.mp4")) as container:
            sounds.append([bytes(one) for one in container.demux(container.streams.audio[0]) if one.size])
    assert sounds[0] == sounds[1] and len(sounds[0]) > 180 and not said


def test_sound_that_says_no_times_follows_the_sound_before(whole, piped, monkeypatch):
    given = SoundAside.add

    def add(self, packet):
        if packet.dts is not None and packet.dts * packet.time_base > 2:
            packet.dts = packet.pts = None
        given(self, packet)

    times = []
    for way in (given, add):
        monkeypatch.setattr(SoundAside, "add", way)
        frames = Piped(piped((whole / "a.ts").read_bytes()))
        list(frames)
        with av.open(str(frames.sound()[0])) as container:
            times.append([float(one.dts * one.time_base) for one in container.demux() if one.size])
    assert len(times[0]) > 90 and np.allclose(*times, atol=0.001)


def test_sound_that_is_lost_on_the_way_is_said(whole, piped):
    said = []
    frames = Piped(piped((whole / "a.ts").read_bytes()), said.append)
    aside = frames._sound._container

    def mux(packet):
        if packet.dts * packet.time_base > 12:
            raise av.error.OSError(28, "No space left on device")
        aside.mux(packet)

    frames._sound._container = SimpleNamespace(mux=mux, close=aside.close)
    assert len(list(frames)) == COUNT
    heard, _ = frames.sound()
    frames.sound()
    with av.open(str(heard)) as container:
        assert 20 < sum(bool(packet.size) for packet in container.demux()) < 90
    assert len(said) == 1 and re.search(r"its sound cannot be kept from 2\.0\d s on \(No space left", said[0])


def test_sound_that_is_not_wanted_is_not_laid_aside(whole, piped, monkeypatch):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    frames = open_frames(piped((whole / "a.ts").read_bytes()), sounding=False)
    assert len(list(frames)) == COUNT and frames.sound() == (None, 0)


def test_nobody_waits_for_frames_that_are_no_longer_wanted(whole, piped, monkeypatch):
    stop = []
    frames = Piped(piped((whole / "a.ts").read_bytes(), ends=False))
    frames.heed(stop)
    seen = []
    for frame in frames:  # a decoder gives those that it holds when it knows that no more come
        seen.append(frame)
        if len(seen) == 20:
            threading.Timer(0.3, stop.append, [2]).start()
    assert 20 < len(seen) <= COUNT
    monkeypatch.setattr(Decoding, "__iter__", lambda self: iter(()))  # not one was there
    with pytest.raises(KeyboardInterrupt):
        waiting = Piped(piped((whole / "a.ts").read_bytes(), ends=False))
        waiting.close()
        list(waiting)


@pytest.fixture
def heeds_interrupts():
    """As on a terminal: a background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("end", [b"ftyp", b"mdat"])
def test_an_interrupt_before_the_first_header_or_frame_is_raised(end, whole, piped):
    data = (whole / "a.mp4").read_bytes()
    pipe = piped(data[: data.index(end)], ends=False)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        Piped(pipe).first()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_between_frames_is_raised(whole, piped):
    frames = Piped(piped((whole / "a.ts").read_bytes(), ends=False))
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    seen = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(frames)


def test_the_forms_in_the_message_are_those_of_the_readme():
    assert f"({SAID}, as memcomp writes it)" in (Path(__file__).parents[3] / "README.md").read_text()


def test_what_is_a_pipe(whole, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert is_pipe(Path("-")) and is_pipe(fifo) and not is_pipe(whole / "a.ts") and not is_pipe(whole)
    own, other = os.openpty()
    try:
        with pytest.raises(UserError, match="expected a video through a pipe, it is a terminal"):
            Piped(Path(os.ttyname(other)))
    finally:
        os.close(own)
        os.close(other)
