"""Threads around the host: order, bounds and errors; an interruption leaves a whole file."""

import signal
import threading
import time

import imageio.v3 as iio
import numpy as np
import pytest

from memcomp.experiments.animation import files, layout
from memcomp.experiments.animation.pipeline import read_ahead, write_behind
from memcomp.experiments.cli import main
from memcomp.experiments.video import Frames


def test_read_ahead_keeps_order_and_its_bound():
    made = []

    def items():
        for number in range(50):
            made.append(number)
            yield number

    reading = read_ahead(items(), 3)
    assert next(reading) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # given, waiting, and the one that finds no place
    assert list(reading) == list(range(1, 50))


def test_an_error_comes_after_what_was_read_and_the_thread_ends():
    def items():
        yield from range(3)
        raise ValueError("no more")

    seen = []
    with pytest.raises(ValueError, match="no more"):
        seen += [seen.append(item) for item in read_ahead(items(), 8)]
    assert seen == [0, 1, 2]
    endless = read_ahead(iter(int, 1), 2)
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def test_write_behind_keeps_order_and_raises_what_writing_raises():
    written = []
    with write_behind(lambda *frame: written.append(frame), 2) as later:
        for number in range(20):
            later(number, -number)
    assert written == [(number, -number) for number in range(20)]

    def refuse(number):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), write_behind(refuse, 2) as later:
        for number in range(20):
            later(number)
    with pytest.raises(KeyError), write_behind(refuse, 2) as later:  # the first error counts
        later(1)
        raise KeyError


@pytest.fixture
def command(small_run, clips_root, tmp_path):
    iio.imwrite(tmp_path / "face.png", next(iter(Frames(clips_root / "test" / "b_1.mp4"))))
    words = ["animate", "--checkpoint", str(small_run), "--source", str(tmp_path / "face.png"), "--batch", "2"]
    return [*words, "--driving", str(clips_root / "test" / "a_1.mp4"), "--output", str(tmp_path / "out.mp4")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_half_way_the_file_is_whole(number, command, tmp_path, monkeypatch, capsys):
    shown, whole = [], layout.to_frame

    def interrupting(image):
        shown.append(1)
        if len(shown) == 4:
            signal.raise_signal(number)
        return whole(image)

    before = signal.getsignal(number)
    monkeypatch.setattr(layout, "to_frame", interrupting)
    assert main(command) == 130
    assert signal.getsignal(number) == before
    assert "interrupted: " in (said := capsys.readouterr().err) and "out.mp4 holds 4 of 9 frames" in said
    frames = list(Frames(tmp_path / "out.mp4").timed())  # raises if the file breaks off
    assert len(frames) == 4 and np.allclose([float(frame.time) for frame in frames], [0, 0.1, 0.2, 0.3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "out.mp4"]


def test_interrupted_before_the_first_frame_nothing_is_written(command, tmp_path, monkeypatch):
    found = files.Animator.detect

    def interrupting(self, poses):
        signal.raise_signal(signal.SIGTERM)
        return found(self, poses)

    monkeypatch.setattr(files.Animator, "detect", interrupting)
    assert main(command) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]
