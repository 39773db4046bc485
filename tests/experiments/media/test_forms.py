"""Every form of output: its pictures, times, sound and the word that says that it is synthetic."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, form_of, keep_audio, write_frames

TIMES = [Fraction(0), Fraction(1, 25), Fraction(3, 25), Fraction(1, 2), Fraction(27, 50)]
WORD = "synthetic: a test"


def pictures():
    ramp = np.zeros((len(TIMES), 32, 48, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 48)
    ramp[..., 1] = 50 * np.arange(len(TIMES))[:, None, None]
    ramp[..., 2] = np.linspace(0, 200, 32)[:, None]
    return ramp


def said(path):
    if path.is_dir():
        return Image.open(path / "frame_000000.png").text["Comment"]
    if path.suffix == ".gif":
        return WORD if WORD.encode() in path.read_bytes() else ""
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}.get("comment", "")


@pytest.mark.parametrize(("name", "most"), [("a.mp4", 9), ("a.webm", 9), ("a.gif", 9), ("frames", 0)])
def test_pictures_times_and_the_word(name, most, tmp_path):
    path = tmp_path / name
    with write_frames(path, Fraction(25), WORD) as append:
        for picture, time in zip(pictures(), TIMES, strict=True):
            append(picture, time, Fraction(1, 25))
        assert not path.exists()
        assert "at their own times" in str(append.pace) and append.end == Fraction(29, 50)
    shown = list(Frames(path).timed())
    assert np.abs(np.stack([one.picture for one in shown]).astype(int) - pictures()).mean() <= most
    if path.is_dir():
        assert [one.name for one in sorted(path.iterdir())] == [f"frame_{i:06d}.png" for i in range(len(TIMES))]
    else:
        assert np.allclose([float(one.time) for one in shown], [float(time) for time in TIMES], atol=0.0051)
    assert said(path) == WORD and [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "codec", "pix"), [("a.mp4", "h264", "yuv420p"), ("a.webm", "vp9", "yuv420p"), ("a.gif", "gif", "bgra")]
)
@pytest.mark.parametrize("sound", [False, True])
def test_videos_are_what_browsers_play(name, codec, pix, sound, tmp_path, media):
    path = tmp_path / name
    with write_frames(path, Fraction(25), WORD) as append:
        for picture, time in zip(pictures(), TIMES, strict=True):
            append(picture, time, Fraction(1, 25))
    if sound and name != "a.gif":
        beep = (np.sin(np.arange(24_000) / 9) * 9000).astype(np.int16)
        media.write(tmp_path / "b.mkv", list(pictures()), sound=("aac", beep, 0))
        assert keep_audio(path, tmp_path / "b.mkv", path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, pix)
    data = path.read_bytes()
    if name == "a.mp4":
        assert data.index(b"moov") < data.index(b"mdat")  # playing begins before all of it is there
    if name == "a.gif":
        assert data[:6] == b"GIF89a" and b"NETSCAPE2.0\x03\x01\x00\x00" in data  # which repeats for ever


@pytest.mark.parametrize("name", ["a.gif", "frames"])
def test_what_fails_half_way_is_not_there(name, tmp_path):
    with pytest.raises(KeyError), write_frames(tmp_path / name, Fraction(25)) as append:
        append(pictures()[0])
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_names_and_folders_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.avi: expected an output name that ends in \.mp4, \.webm, \.gif, or none"):
        form_of(tmp_path / "a.avi")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full: expected a new or an empty folder"), write_frames(tmp_path / "full", 25):
        pass
    (tmp_path / "empty").mkdir()
    with write_frames(tmp_path / "empty", Fraction(25)) as append:
        append(pictures()[0])
    assert len(list((tmp_path / "empty").iterdir())) == 1


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_sound_in_webm_is_opus_in_step_and_the_word_stays(codec, tmp_path, media):
    times = [Fraction(i, 25) for i in range(20)]
    frames, samples = media.claps(times, Fraction(4, 5))
    path = media.write(tmp_path / "a.mkv", frames, times, sound=(codec, samples, Fraction(0)))
    with write_frames(tmp_path / "out.webm", Fraction(25), WORD) as append:
        for frame, time in zip(Frames(path), times, strict=True):
            append(frame, time)
    assert keep_audio(tmp_path / "out.webm", path, tmp_path / "out.webm")
    with av.open(str(tmp_path / "out.webm")) as container:
        assert (
            container.format.name.startswith("matroska") and container.streams.audio[0].codec_context.name in "libopus"
        )
    seen, heard, length = media.seen_and_heard(tmp_path / "out.webm")
    assert len(seen) == 4 and np.abs(np.array(seen) - heard).max() < 0.04 and abs(length - 0.8) < 0.06
    assert said(tmp_path / "out.webm") == WORD


def test_the_command_keeps_the_sound_in_webm(small_run, media, tmp_path):
    times = [Fraction(i, 25) for i in range(20)]
    frames, samples = media.claps(times, Fraction(4, 5))
    driving = media.write(tmp_path / "loud.mkv", frames, times, sound=("libopus", samples, Fraction(0)))
    Image.fromarray(frames[0]).save(tmp_path / "face.png")
    words = ["--source", str(tmp_path / "face.png"), "--driving", str(driving), "--output", str(tmp_path / "o.webm")]
    assert main(["animate", "--checkpoint", str(small_run), *words]) == 0
    with av.open(str(tmp_path / "o.webm")) as container:
        assert len(container.streams.audio) == 1
    assert said(tmp_path / "o.webm").startswith("synthetic")
