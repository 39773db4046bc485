"""Each frame is shown at its own time, and in step with the sound: white frames against beeps."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from memcomp.experiments.video import Frames, Timetable, keep_audio, write_video
from memcomp.experiments.video.timing import Clock, Pace

EVEN = [Fraction(i, 25) for i in range(20)]
SLOWING = [Fraction(i, 25) if i < 12 else Fraction(12, 25) + Fraction(i - 12, 5) for i in range(20)]  # a phone at dusk
UNEVEN = [Fraction(int(t), 1000) for t in np.cumsum(np.r_[0, np.random.default_rng(0).integers(20, 90, 19)])]
LATER = [time + Fraction(3, 2) for time in SLOWING]


def moved(path, output):
    """What `animate` does, with a host that gives the driving frames back; returns how even they were."""
    times = Timetable()
    frames = Frames(path)
    with write_video(output, frames.frame_rate) as append:
        for picture in times.pictures(frames.timed()):
            append(picture, *times.next())
    assert keep_audio(output, path, output, times.start)
    return str(append.pace)


@pytest.mark.parametrize(
    ("name", "times", "options"),
    [
        ("phone.mp4", SLOWING, {"sound": "aac"}),
        ("b_frames.mp4", EVEN, {"sound": "aac", "options": {"bf": "3", "g": "20"}}),
        ("late.mkv", LATER, {"sound": "libopus"}),
        ("screen.mkv", SLOWING, {"sound": "flac"}),
        ("browser.webm", UNEVEN, {"sound": "libopus", "codec": "libvpx", "rate": 1000}),
        ("late.ts", LATER, {"sound": "aac", "form": "mpegts"}),
        ("camera.avi", EVEN, {"sound": "pcm_s16le", "codec": "mjpeg", "pix": "yuvj420p"}),
        ("reordered.avi", EVEN, {"sound": "mp3", "options": {"bf": "2"}, "tick": Fraction(1, 25)}),
        ("gaps.mp4", UNEVEN, {"sound": "aac", "options": {"bf": "0"}}),
    ],
)
def test_frames_and_beeps_stay_together(tmp_path, media, name, times, options):
    length = times[-1] - times[0] + Fraction(2, 5)
    frames, samples = media.claps(times, length)
    sound = (options.pop("sound"), samples, times[0])
    path = media.write(tmp_path / name, frames, times, sound=sound, **options)
    shown = [shown.time for shown in Frames(path).timed()]
    assert np.allclose(np.array(shown, float) - float(shown[0]), [float(t - times[0]) for t in times], atol=0.0011)
    assert Frames(path).times() == shown

    pace = moved(path, tmp_path / "out.mp4")
    assert pace == "at 25 per second" if times is EVEN else "at their own times" in pace
    out = np.array(media.frame_times(tmp_path / "out.mp4"))
    assert np.allclose(out - out[0], [float(t - times[0]) for t in times], atol=0.0011)
    seen, heard, heard_length = media.seen_and_heard(tmp_path / "out.mp4")
    assert len(seen) == len(heard) == 4
    assert np.abs(np.array(seen) - heard).max() < 0.04, (seen, heard)
    assert abs(heard_length - float(length)) < 0.06  # whole: codecs fill up their last block


@pytest.mark.parametrize("begin", [Fraction(-1, 4), Fraction(1, 4)])
def test_sound_that_begins_before_or_after_the_picture_stays_where_it_is(tmp_path, media, begin):
    start = max(Fraction(0), -begin)
    times = [time + start for time in EVEN]
    frames, samples = media.claps(times, Fraction(4, 5))
    path = media.write(tmp_path / "a.mkv", frames, times, sound=("libopus", samples, start + begin))
    moved(path, tmp_path / "out.mp4")
    seen, heard, length = media.seen_and_heard(tmp_path / "out.mp4")
    assert np.abs(np.array(heard) - seen - float(begin)).max() < 0.04
    assert abs(length - 0.8) < 0.06


@pytest.mark.parametrize("length", [Fraction(1, 2), Fraction(2)])
def test_sound_shorter_or_longer_than_the_picture_keeps_its_length(tmp_path, media, length):
    frames, samples = media.claps(EVEN, 2)
    path = media.write(tmp_path / "a.mp4", frames, EVEN, sound=("aac", samples[: int(length * 48_000)], 0))
    moved(path, tmp_path / "out.mp4")
    assert abs(media.seen_and_heard(tmp_path / "out.mp4")[2] - float(length)) < 0.06


def test_an_uneven_gif_and_an_animated_webp_keep_their_times(tmp_path):
    pictures = [Image.new("RGB", (32, 32), (60 * i, 0, 0)) for i in range(4)]
    for name in ("a.gif", "a.webp"):
        pictures[0].save(
            tmp_path / name, save_all=True, append_images=pictures[1:], duration=[100, 300, 50, 200], loop=0
        )
        shown = list(Frames(tmp_path / name).timed())
        assert [frame.time for frame in shown] == [0, Fraction(1, 10), Fraction(4, 10), Fraction(45, 100)]
        assert shown[-1].lasts == Fraction(1, 5)
        assert [round(frame.picture[..., 0].mean() / 60) for frame in shown] == [0, 1, 2, 3]


def test_the_last_frame_lasts_as_long_as_it_did(tmp_path, media):
    path = tmp_path / "a.mp4"
    with write_video(path, 25) as append:
        for time, lasts in ((0, 0.04), (0.04, 0.5), (0.54, 0.3)):
            append(np.zeros((32, 32, 3), np.uint8), Fraction(time), Fraction(lasts))
    assert float(list(Frames(path).timed())[-1].lasts) == pytest.approx(0.3, abs=0.001)
    assert np.allclose(media.frame_times(path), [0, 0.04, 0.54], atol=0.001)


def test_a_clock_only_goes_forward():
    clock = Clock(Fraction(1, 25))
    placed = [clock.place(None if t is None else Fraction(t)) for t in (5, None, "5.08", "5.08", 0, "0.04")]
    assert placed == [5, Fraction("5.04"), Fraction("5.08"), Fraction("5.081"), Fraction("5.121"), Fraction("5.161")]


def test_milliseconds_of_a_container_are_no_uneven_pace():
    pace = Pace(Fraction(30))
    for i in range(31):
        pace.add(Fraction(round(i * 1000 / 30), 1000))
    assert str(pace) == "at 30 per second"
