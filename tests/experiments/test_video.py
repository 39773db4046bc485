"""Reading and writing videos: frame rate, order, orientation, sound, damage."""

import gc
import os
import signal
import time
from fractions import Fraction

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from memcomp.experiments.errors import UserError
from memcomp.experiments.video import Frames, fit, keep_audio, read_picture, to_frame, write_video


def numbered(count, height=32, width=48):
    """Frames whose grey level tells their number, with a white upper left corner."""
    frames = np.full((count, height, width, 3), 0, np.uint8)
    for i in range(count):
        frames[i] = 20 + 10 * i
        frames[i, : height // 2, : width // 2] = 255
    return frames


def write(path, frames, rate=Fraction(25)):
    with write_video(path, rate) as append:
        for frame in frames:
            append(frame)
    return path


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30_000, 1001), Fraction(10)])
def test_frames_come_back_in_order_with_their_rate(tmp_path, rate):
    path = write(tmp_path / "a.mp4", numbered(12), rate)
    frames = Frames(path)
    assert (frames.frame_rate, frames.length) == (rate, 12)
    levels = [frame[-1, -1].mean() for frame in frames]
    assert np.allclose(levels, [20 + 10 * i for i in range(12)], atol=3)
    assert len(list(frames)) == 12  # a second pass starts at the beginning


def test_a_folder_of_pictures_is_a_video_in_the_order_of_names(tmp_path):
    for i in (2, 0, 1):
        iio.imwrite(tmp_path / f"{i:03d}.png", numbered(3)[i])
    (tmp_path / "notes.txt").write_text("not a picture")
    frames = Frames(tmp_path)
    assert (frames.frame_rate, frames.length) == (25, 3)
    assert [int(frame[-1, -1, 0]) for frame in frames] == [20, 30, 40]


def test_a_rotated_video_is_turned_upright(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(3))
    data = path.read_bytes()
    unit = (1 << 16).to_bytes(4, "big")
    zero, minus, last = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), (1 << 30).to_bytes(4, "big")
    upright = unit + zero * 3 + unit + zero * 3 + last
    # x' = -y, y' = x with y pointing down: the picture is to be shown turned clockwise by 90°
    clockwise = zero + unit + zero + minus + zero * 4 + last
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + clockwise + data[at + 36 :])
    frame = next(iter(Frames(path)))
    assert frame.shape == (48, 32, 3)
    assert frame[:10, -6:].min() > 240 and frame[:10, :6].max() < 40  # upper left went to the upper right


def test_sound_is_copied_whole_unless_an_end_is_named(tmp_path, sounding):
    original = sounding(write(tmp_path / "a.mp4", numbered(20)), tmp_path / "b.mp4", seconds=3)
    video = write(tmp_path / "c.mp4", 255 - numbered(10))
    for end, least, most in ((None, 2.99, 3.1), (Fraction(2, 5), 0.3, 0.5)):
        assert keep_audio(video, original, tmp_path / "d.mp4", end=end)
        with av.open(str(tmp_path / "d.mp4")) as result:
            sound = result.streams.audio[0]
            assert sound.codec_context.name == "aac"
            assert least < float(sound.duration * sound.time_base) <= most
    assert [int(f[-1, -1, 0]) for f in Frames(tmp_path / "d.mp4")] == [int(f[-1, -1, 0]) for f in Frames(video)]


def test_without_a_sound_nothing_is_written(tmp_path):
    silent = write(tmp_path / "a.mp4", numbered(3))
    assert not keep_audio(silent, silent, tmp_path / "out.mp4")
    assert not keep_audio(silent, tmp_path, tmp_path / "out.mp4")
    assert list(tmp_path.glob("out*")) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), write_video(tmp_path / "a.mp4", 25) as append:
        append(numbered(1)[0])
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="even sides"):
        write(tmp_path / "a.mp4", np.zeros((1, 31, 32, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "expected a video or a folder of pictures, found nothing"),
        (lambda path: path.write_text("hello"), "cannot be read as one"),
        (lambda path: path.write_bytes(b""), "cannot be read as one"),
        (lambda path: path.mkdir(), "expected a folder of pictures .* holds none"),
        (lambda path: write(path, numbered(0)), "no frame|no video stream|cannot be read"),
    ],
)
def test_what_is_not_a_video_is_named(tmp_path, make, message):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(UserError, match=f"clip.mp4: .*({message})"):
        list(Frames(path))


def test_damage_in_the_middle_is_named(tmp_path):
    path = write(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = (start + len(data)) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"clip.mp4: damaged after frame \d+"):
        list(Frames(path))


def test_pictures(tmp_path):
    image = np.zeros((6, 10, 4), np.uint8)
    image[..., 0], image[..., 3] = 200, 255
    iio.imwrite(tmp_path / "a.png", image)
    assert read_picture(tmp_path / "a.png").shape == (6, 10, 3)
    iio.imwrite(tmp_path / "moving.gif", np.zeros((3, 6, 10, 3), np.uint8), plugin="pillow")
    assert read_picture(tmp_path / "moving.gif").shape == (6, 10, 3)  # its first frame
    for name, mode in (("grey.png", np.uint8), ("grey16.png", np.uint16)):
        iio.imwrite(tmp_path / name, np.full((7, 9), 90, mode))
        assert read_picture(tmp_path / name).shape == (7, 9, 3)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name, message in (("b.png", "cannot be read"), ("c.png", "found nothing")):
        with pytest.raises(UserError, match=f"{name}: expected a picture.*{message}"):
            read_picture(tmp_path / name)


def test_fit_takes_the_centred_square():
    frame = np.zeros((8, 20, 3), np.uint8)
    frame[:, 6:14] = np.arange(8, dtype=np.uint8)[None, :, None] * 30
    assert torch.equal(fit(frame, 8) * 255, torch.from_numpy(frame[:, 6:14]).permute(2, 0, 1).float())
    assert fit(frame, 4).shape == (3, 4, 4)
    assert fit(frame, 4).mean().item() == pytest.approx(frame[:, 6:14].mean() / 255, abs=0.01)
    assert np.array_equal(to_frame(fit(frame, 8)), frame[:, 6:14])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_a_forked_process_lets_go_of_a_decoder_that_was_in_use(tmp_path):
    with write_video(tmp_path / "clip.mp4", 25) as append:
        for _ in range(4):
            append(np.zeros((64, 64, 3), np.uint8))
    frames = Frames(tmp_path / "clip.mp4").timed()
    next(frames)
    child = os.fork()
    if child == 0:
        del frames
        gc.collect()
        os._exit(0)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("it waits for threads that are not there")
    assert status == 0
