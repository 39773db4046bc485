"""What is shown against what the header says: edit lists, files that break off, and what the command makes of them."""

from fractions import Fraction

import numpy as np
import pytest

from memcomp.experiments.cli import main
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.data.pairs import DamagedClip
from memcomp.experiments.errors import UserError
from memcomp.experiments.video import BrokenOff, Frames

FINE = {"crf": "12"}


def numbered(count, height=96, width=96):
    """Noise, with a grey square in the upper left whose level tells the frame's number, below 60."""
    frames = np.random.default_rng(0).integers(60, 190, (count, height, width, 1), np.uint8).repeat(3, 3)
    for i, frame in enumerate(frames):
        frame[: height // 2, : width // 2] = 12 + 4 * i
    return list(frames)


def number(picture):
    side = len(picture)
    return round((float(picture[side // 8 : side * 3 // 8, side // 8 : side * 3 // 8].mean()) - 12) / 4)


@pytest.fixture(scope="module")
def long(tmp_path_factory, media):
    """60 frames behind a single key frame, without and with frames that refer to later ones."""
    folder = tmp_path_factory.mktemp("long")
    for name, options in (("plain", {"g": "100", "bf": "0", **FINE}), ("b_frames", {"g": "100", "bf": "2", **FINE})):
        media.write(folder / f"{name}.mp4", numbered(60), options=options)
    return folder


@pytest.mark.parametrize("name", ["plain", "b_frames"])
@pytest.mark.parametrize("at", [10, 40])
def test_a_cut_without_encoding_shows_what_players_show(tmp_path, media, long, name, at):
    cut = media.copied(
        long / f"{name}.mp4", tmp_path / "anna_1.mp4", shift=Fraction(at, 25), avoid_negative_ts="disabled"
    )
    frames = Frames(cut)
    shown = list(frames.timed())
    assert [number(frame.picture) for frame in shown] == list(range(at, 60))
    assert frames.times() == [frame.time for frame in shown] and frames.length == 60 - at
    for cache in (None, tmp_path / "cache"):
        clips = Clips(tmp_path, 32, cache=cache)
        assert clips.count(0) == 60 - at
        assert [number(frame) for frame in clips.read(0, [0, 59 - at]).permute(0, 2, 3, 1).numpy()] == [at, 59]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, media):
    """Files of 50 frames that hold their index before the data, or need none."""
    folder = tmp_path_factory.mktemp("whole")
    media.write(folder / "end.mp4", numbered(50), options=FINE)
    media.copied(folder / "end.mp4", folder / "a.mp4", movflags="faststart")
    media.copied(folder / "end.mp4", folder / "fragments.mp4", movflags="frag_every_frame+empty_moov")
    media.write(folder / "a.mkv", numbered(50), options=FINE)
    media.write(folder / "a.webm", numbered(50), codec="libvpx", options={"b": "4000000", "qmax": "8"})
    media.write(folder / "a.avi", numbered(50), codec="mpeg4", options={"flags": "+qscale", "global_quality": "236"})
    media.write(folder / "a.ts", numbered(50), form="mpegts", options=FINE)
    return folder


BREAKING = ("a.mp4", "fragments.mp4", "a.mkv", "a.webm", "a.avi", "a.ts")


@pytest.mark.parametrize("name", BREAKING)
def test_a_file_that_breaks_off_says_so_with_both_numbers(tmp_path, whole, name):
    assert [number(frame) for frame in Frames(whole / name)] == list(range(50))
    data = (whole / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) * 6 // 10])
    seen = []
    with pytest.raises(BrokenOff, match=rf"{name}: damaged after frame \d+, \d+ of \d+ frames") as caught:
        seen.extend(number(frame) for frame in Frames(path))
    assert caught.value.shown == len(seen) and 20 <= len(seen) < caught.value.promised
    assert seen == sorted(set(seen)) and seen[:20] == list(
        range(20)
    )  # in order; a frame that needs lost ones is left out
    if name not in ("a.ts", "fragments.mp4"):  # which do not say how many they hold
        assert caught.value.promised == 50
        with pytest.raises(BrokenOff):
            Frames(path).times()
    else:
        assert "or more" in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_clip_is_damaged_unless_nearly_all_of_it_is_there(tmp_path, whole, name):
    data = (whole / name).read_bytes()
    for share, damaged in ((0.6, True), (0.97, False)):
        for cache in (None, tmp_path / "cache"):
            (tmp_path / name).write_bytes(data[: int(len(data) * share)])
            clips = Clips(tmp_path, 32, cache=cache)
            if damaged:
                with pytest.raises(DamagedClip, match=rf"{name}: damaged after frame \d+, \d+ of 50 frames"):
                    clips.read(0, [0])
            else:
                assert 45 <= clips.count(0) < 50
                assert clips.read(0, [0, clips.count(0) - 1]).shape == (2, 3, 32, 32)


def test_a_file_without_its_index_is_refused_with_the_reason(tmp_path, whole):
    data = (whole / "end.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.mp4: expected a video, .*breaks off before its index"):
        Frames(tmp_path / "a.mp4")
    (tmp_path / "b.txt").write_text("a text is no video\n" * 50)
    with pytest.raises(UserError, match=r"has no video stream|cannot be read"):
        Frames(tmp_path / "b.txt")


def test_the_command_writes_what_there_is_and_says_that_it_is_not_all(small_run, whole, tmp_path, media, capsys):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "face.png", numbered(1)[0])
    data = (whole / "a.mp4").read_bytes()
    (tmp_path / "driving.mp4").write_bytes(data[: len(data) * 6 // 10])
    output = tmp_path / "out.mp4"
    command = ["animate", "--checkpoint", str(small_run), "--source", str(tmp_path / "face.png")]
    command += ["--driving", str(tmp_path / "driving.mp4"), "--output", str(output), "--motion", "absolute"]
    assert main(command) == 3
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "memcomp: " in line]
    written = len(media.frame_times(output))
    assert f"{written} of 50 frames" in line and "out.mp4: written, but incomplete" in line
    assert f"{written} frames of 32×32" in said.out

    (tmp_path / "driving.mp4").write_bytes(data[: data.index(b"mdat") + 100])  # nothing that could be shown
    output.unlink()
    assert main(command) == 2
    assert not output.exists()


def test_a_recording_that_begins_between_key_frames_is_read_from_the_first(tmp_path, media):
    path = media.write(
        tmp_path / "a.ts", numbered(40), form="mpegts", options={"g": "10", "bf": "0", "sc_threshold": "0", **FINE}
    )
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 8 // 188 * 188 :])
    seen = [number(frame) for frame in Frames(path)]
    assert seen[0] % 10 == 0 and seen == list(range(seen[0], 40))


def test_frames_decoded_by_another_version_are_not_served(tmp_path, whole, monkeypatch):
    (tmp_path / "a.webm").write_bytes((whole / "a.webm").read_bytes())
    cache = tmp_path / "cache"
    first = Clips(tmp_path, 32, cache=cache).read(0, [7])
    (file,) = cache.iterdir()
    file.write_bytes(bytes(file.stat().st_size))  # as if decoded wrongly
    assert Clips(tmp_path, 32, cache=cache).read(0, [7]).sum() == 0
    monkeypatch.setattr("memcomp.experiments.data.clips.DECODER_VERSION", 99)
    assert (Clips(tmp_path, 32, cache=cache).read(0, [7]) == first).all()
