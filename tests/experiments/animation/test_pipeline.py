"""Threads around the host: order, bounds and errors; an interruption leaves a whole file."""

import base64
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


def interrupt(monkeypatch, number):
    """Let a signal come while the fourth frame is made."""
    shown, whole = [], layout.to_frame

    def interrupting(image):
        shown.append(1)
        if len(shown) == 4:
            signal.raise_signal(number)
        return whole(image)

    monkeypatch.setattr(layout, "to_frame", interrupting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_half_way_the_file_is_whole(number, command, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    interrupt(monkeypatch, number)
    assert main(command) == 130
    assert signal.getsignal(number) == before
    assert "interrupted: " in (said := capsys.readouterr().err) and "out.mp4 holds 4 of 9 frames" in said
    frames = list(Frames(tmp_path / "out.mp4").timed())  # raises if the file breaks off
    assert len(frames) == 4 and np.allclose([float(frame.time) for frame in frames], [0, 0.1, 0.2, 0.3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "out.mp4"]


# which of some pictures a browser shows early in the time of each, then late, as soon as it shows the right one, which
# is never the one before; and the lengths of the video and of its sound
SECOND_LOOK = """async ([address, pictures]) => {
  const minute = Date.now() + 60_000;
  const video = document.createElement("video"), canvas = document.createElement("canvas");
  video.muted = true;
  video.src = address;
  await new Promise((done, failed) => {
    video.oncanplaythrough = done;
    video.onerror = () => failed(new Error(video.error.message));
  });
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const nearest = () => {
    context.drawImage(video, 0, 0);
    const shown = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const away = pictures.map((one) => one.reduce((sum, green, i) => sum + Math.abs(green - shown[4 * i + 1]), 0));
    return away.indexOf(Math.min(...away));
  };
  const seen = [];
  for (const part of [0.2, 0.8]) {
    for (let frame = 0; frame < pictures.length; frame += 1) {
      video.currentTime = 0.1 * (frame + part);
      while (nearest() !== frame && Date.now() < minute) await new Promise((done) => setTimeout(done, 10));
      seen.push(nearest());
    }
  }
  const file = await (await fetch(address)).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, 16_000).decodeAudioData(file);
  const loudest = Math.max(...sound.getChannelData(0).map(Math.abs));
  return { seen, length: video.duration, sound: sound.duration, loudest };
}"""


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_a_browser_plays_what_an_interruption_left(form, command, browser, clips_root, sounding, tmp_path, monkeypatch):
    page = browser.new_page()
    h264 = "document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64001f\"')"
    if form == "mp4" and not page.evaluate(h264):
        pytest.skip("this Chromium cannot play H.264")
    driving, output = tmp_path / "loud.mp4", tmp_path / f"out.{form}"
    sounding(clips_root / "test" / "a_1.mp4", driving, seconds=0.9)
    interrupt(monkeypatch, signal.SIGTERM)
    assert main([*command, "--side-by-side", "--driving", str(driving), "--output", str(output)]) == 130
    address = f"data:video/{form};base64,{base64.b64encode(output.read_bytes()).decode()}"
    pictures = [frame[..., 1].flatten().tolist() for frame in Frames(output)]
    found = page.evaluate(SECOND_LOOK, [address, pictures])
    page.close()
    assert found["seen"] == [0, 1, 2, 3, 0, 1, 2, 3] and found["length"] == pytest.approx(0.4, abs=0.07)
    assert 0.3 < found["sound"] < 0.5 and found["loudest"] > 0.5  # as long as its frames, to a packet


def test_interrupted_before_the_first_frame_nothing_is_written(command, tmp_path, monkeypatch):
    found = files.Animator.detect

    def interrupting(self, poses):
        signal.raise_signal(signal.SIGTERM)
        return found(self, poses)

    monkeypatch.setattr(files.Animator, "detect", interrupting)
    assert main(command) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]
