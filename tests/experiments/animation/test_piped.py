"""`ffmpeg … | memcomp animate --driving -`: the same pictures as of a file, what is given up is said."""

import os
import re
import signal
import subprocess
import sys
import time

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from memcomp.adapters import Keypoints
from memcomp.experiments.animation import AnimationOptions
from memcomp.experiments.animation.track import CausalSmoother
from memcomp.experiments.cli import main
from memcomp.experiments.video import Frames
from memcomp.experiments.video.sound import SoundAside

PROGRAM = [sys.executable, "-m", "memcomp.experiments.cli"]


@pytest.fixture
def stream(clips_root, sounding, tmp_path):
    """A driving video of 9 frames with sound, as a transport stream."""
    sounding(clips_root / "test" / "a_1.mp4", tmp_path / "sounding.mp4", seconds=0.9)
    with av.open(str(tmp_path / "sounding.mp4")) as given, av.open(str(tmp_path / "stream.ts"), "w") as made:
        targets = {one.index: made.add_stream_from_template(one) for one in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = targets[packet.stream_index]
                made.mux(packet)
    return tmp_path / "stream.ts"


@pytest.fixture
def words(small_run, clips_root, tmp_path):
    iio.imwrite(tmp_path / "face.png", next(iter(Frames(clips_root / "test" / "b_1.mp4"))))
    return ["animate", "--checkpoint", str(small_run), "--source", str(tmp_path / "face.png"), "--batch", "2"]


@pytest.fixture
def through(tmp_path):
    """`through(path)`: a named pipe into which `cat` writes a file."""
    others = []

    def make(path):
        pipe = tmp_path / f"pipe{len(others)}"
        os.mkfifo(pipe)
        others.append(subprocess.Popen(["sh", "-c", 'exec cat "$0" > "$1"', str(path), str(pipe)]))
        return str(pipe)

    yield make
    for other in others:
        other.kill()
        other.wait()


def shown(path):
    return np.stack(list(Frames(path))).astype(int)


def test_a_pipe_gives_the_pictures_times_and_sound_of_the_file(words, stream, tmp_path, capsys):
    command = [*words, "--output", str(tmp_path / "piped.mp4"), "--driving", "-"]
    cat = subprocess.Popen(["cat", str(stream)], stdout=subprocess.PIPE)
    run = subprocess.run([*PROGRAM, *command], stdin=cat.stdout, capture_output=True, text=True)
    cat.stdout.close()
    cat.wait()
    assert run.returncode == 0, run.stderr
    assert "piped.mp4: 9 frames of 32×32 at 10 per second, with its sound" in run.stdout
    assert "motion counts from" not in run.stdout and "warning" not in run.stderr
    assert main([*words, "--output", str(tmp_path / "file.mp4"), "--driving", str(stream), "--no-best-frame"]) == 0
    assert np.array_equal(shown(tmp_path / "piped.mp4"), shown(tmp_path / "file.mp4"))
    times = [[one[1:] for one in Frames(tmp_path / name).timed()] for name in ("piped.mp4", "file.mp4")]
    assert times[0] == times[1]
    sounds = []
    for name in ("piped.mp4", "file.mp4"):
        with av.open(str(tmp_path / name)) as container:
            sounds.append([bytes(one) for one in container.demux(container.streams.audio[0]) if one.size])
    assert sounds[0] == sounds[1] and sounds[0]


def test_what_a_pipe_cannot_have_is_said(words, stream, through, tmp_path, capsys, monkeypatch):
    output = str(tmp_path / "out")
    monkeypatch.setattr(SoundAside, "__init__", None)  # PNG has no sound
    assert main([*words, "--driving", through(stream), "--output", output, "--best-frame", "--smooth", "0.3"]) == 0
    said = capsys.readouterr()
    assert "--best-frame: a pipe shows each frame once, so motion counts from its first frame" in said.err
    assert "--smooth 0.3: a pipe does not show what follows, so the motion comes about as late" in said.err
    assert "motion counts from" not in said.out
    calm = shown(output)
    assert main([*words, "--driving", str(stream), "--output", output + "0", "--no-best-frame"]) == 0
    plain = shown(output + "0")
    assert np.array_equal(calm[0], plain[0]) and not np.array_equal(calm[4], plain[4])
    for more in (["--driving", "-", str(stream)], ["--driving", "-", "--source", *[words[4]] * 2]):
        assert main([*words, *more, "--output", output + "1"]) == 2
        assert "--driving: expected a pipe alone, with one --source or --grid" in capsys.readouterr().err
    assert main([*words, "--driving", str(stream), "--output", "-"]) == 2
    assert "--output -: expected a file or a folder" in capsys.readouterr().err
    grid = ["--source", *[words[4]] * 2, "--grid", "--crop-driving", "0,0,48"]
    assert main([*words, "--driving", through(stream), "--output", output + "1", *grid]) == 0
    assert shown(output + "1").shape == (9, 64, 96, 3)


def test_broken_and_empty_streams(words, stream, through, tmp_path, capsys):
    data = stream.read_bytes()
    for name, part in (("half", data[: len(data) * 6 // 10 // 188 * 188 + 94]), ("none", b"")):
        (tmp_path / name).write_bytes(part)
    output = tmp_path / "out.webm"
    assert main([*words, "--driving", through(tmp_path / "none"), "--output", str(output)]) == 2
    assert "pipe0: expected a video through the pipe, nothing came" in capsys.readouterr().err
    assert not output.exists()
    assert main([*words, "--driving", through(tmp_path / "half"), "--output", str(output)]) == 3
    said = capsys.readouterr().err
    assert "out.webm: written, but incomplete: " in said and "pipe1: damaged after frame" in said
    assert 1 <= len(shown(output)) < 9


def test_interrupted_while_nothing_comes_the_file_is_whole(words, clip_writer, tmp_path):
    output, stream = tmp_path / "out.mp4", clip_writer(tmp_path / "long.webm", 0, 200, 32)
    command = [*PROGRAM, *words, "--driving", "-", "--output", str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as run:
        run.stdin.write(stream.read_bytes())  # and then nothing, without an end
        run.stdin.flush()
        progress = b""
        while not re.search(rb"[1-9]\d*(/\d+| frames) \[", progress):  # the first frames are made
            progress += (chunk := os.read(run.stderr.fileno(), 4096))
            assert chunk, progress.decode()
        run.send_signal(signal.SIGINT)
        progress += run.stderr.read()
        assert run.wait(60) == 130, progress.decode()
    count = len(shown(output))
    assert 1 <= count <= 200 and re.search(rf"out.mp4 holds {count} (of 200 )?frames", progress.decode())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_interrupted_before_the_header_nothing_is_written(words, tmp_path):
    output, pipe = tmp_path / "out.mp4", tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [*PROGRAM, *words, "--driving", str(pipe), "--output", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        with open(pipe, "wb", buffering=0) as file:  # waits for the reader
            file.write(b"\x1a\x45")
            time.sleep(0.3)
            run.send_signal(signal.SIGINT)
            said = run.stderr.read()
        assert run.wait(60) == 130, said
    assert said == "memcomp: interrupted\n" and not output.exists()


def test_a_pipe_stays_one_when_its_writer_takes_its_name_away(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    options = AnimationOptions("demo", (tmp_path / "a.png",), (tmp_path / "pipe",), tmp_path / "a.mp4", smooth=1)
    assert options.piped
    (tmp_path / "pipe").unlink()
    assert options.piped and not options.wants_best_frame and not options.wants_track


def test_smoothing_as_frames_come_goes_by_their_times():
    even, times = CausalSmoother(0.2, 25), [0.0, 0.04, 0.08, 0.4]
    uneven = CausalSmoother(0.2, 1)
    values = Keypoints(torch.tensor([0.0, 1, 1, 1])[:, None, None].expand(-1, 1, 2))
    first, second = even(values).value[:3], uneven(values, times).value
    assert np.allclose(first, second[:3]) and np.allclose(1 - second[3], (1 - second[2]) * np.exp(-0.32 / 0.2))
