"""What can be prepared: one video, folders of videos, of people, of frames; and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from memcomp.experiments import cli
from memcomp.experiments.prepare import workers
from memcomp.experiments.prepare.inputs import fit_for_names
from memcomp.experiments.video import Frames, write_video

OPTIONS = ["--size", "16", "--min-frames", "4", "--least-head", "30", "--workers", "0"]


def pictures(frames: int = 8) -> list[np.ndarray]:
    drawn = [np.full((80, 96, 3), 20, np.uint8) for _ in range(frames)]
    for number, picture in enumerate(drawn):
        picture[20:60, 20 + number : 54 + number] = 240
    return drawn


def video(path: Path, frames: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_video(path, 25) as append:
        for picture in pictures(frames):
            append(picture)
    return path


def frames(path: Path) -> Path:
    path.mkdir(parents=True)
    for number, picture in enumerate(pictures()):
        Image.fromarray(picture).save(path / f"frame{number}.png")
    return path


def prepared(source: Path, *more: str) -> list[tuple[str, str]]:
    """Prepare, and return the clips with what told their people."""
    output = source.parent / "prepared"
    assert cli.main(["prepare", str(source), "--output", str(output), *OPTIONS, *more]) == 0
    with (output / "manifest.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["outcome"] == "written"]
    assert all((output / line["clip"]).is_file() for line in lines)
    return [(line["clip"], line["told_by"]) for line in lines]


def test_one_video(tmp_path: Path, bright: None):
    ((clip, told_by),) = prepared(video(tmp_path / "raw.mp4"))
    assert clip == "train/person00001/person00001#raw#000000#000007.mp4"
    assert told_by == "brightness, average linkage at 0.45"


def test_a_folder_of_frames(tmp_path: Path, bright: None):
    assert prepared(frames(tmp_path / "talk.1"))[0][0] == "train/person00001/person00001#talk.1#000000#000007.mp4"


def test_heads_that_are_too_small_are_said_to_be(tmp_path: Path, bright: None, capsys: pytest.CaptureFixture[str]):
    call = ["prepare", str(video(tmp_path / "a.mp4")), "--output", str(tmp_path / "out"), *OPTIONS]
    assert cli.main([*call, "--least-head", "60"]) == 0
    assert "heads of less than 60 pixels are not looked for" in capsys.readouterr().out


def test_of_a_video_that_breaks_off_the_rest_is_taken(tmp_path: Path, bright: None):
    content = video(tmp_path / "a.webm", 30).read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: len(content) * 3 // 4])
    output = tmp_path / "out"
    assert cli.main(["prepare", str(tmp_path / "a.webm"), "--output", str(output), *OPTIONS]) == 3
    with (output / "manifest.csv").open(newline="") as file:
        whole, clip = csv.DictReader(file)
    assert whole["outcome"] == "incomplete" and whole["reason"].startswith("a.webm: damaged after frame")
    assert clip["outcome"] == "written" and 4 <= int(clip["frames"]) == int(whole["frames"]) < 30
    assert len(list(Frames(output / clip["clip"]))) == int(clip["frames"])


def test_folders_name_people(tmp_path: Path, bright: None):
    for person in ("Ann B", "Bo"):
        video(tmp_path / "raw" / person / "a#1.mp4")
        frames(tmp_path / "raw" / person / "later")
    clips = prepared(tmp_path / "raw", "--test-share", "0.5")
    assert {told_by for _, told_by in clips} == {"folders"}
    assert {clip.partition("/")[2] for clip, _ in clips} == {
        f"{person}/{person}#{name}#000000#000007.mp4" for person in ("Ann B", "Bo") for name in ("a_1", "later")
    }
    assert {clip.split("/")[0] for clip, _ in clips} == {"train", "test"}


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str], bright: None):
    raw = video(tmp_path / "raw" / "a.mp4").parent

    def refused(*words: object) -> str:
        status = cli.main(["prepare", *map(str, words)])
        assert status == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    out = ("--output", tmp_path / "out")
    assert "expected a video" in refused(tmp_path / "gone", *out)
    assert "found none: it is empty" in refused(_made(tmp_path / "empty"), *out)
    assert "expected some of cut, two-faces, too-small, moved" in refused(raw, *out, "--ignore", "no-face")
    assert "--size 33: expected an even number" in refused(raw, *out, "--size", 33)
    assert "--min-frames 64: expected at most" in refused(raw, *out, "--max-frames", 10)
    assert "--increase: expected a number from 0 to 5" in refused(raw, *out, "--increase", -1)
    assert "--videos" in refused(raw, *out, "--videos", raw)
    (raw / "a.mkv").write_bytes((raw / "a.mp4").read_bytes())
    assert "expected another name than" in refused(raw, *out)


def test_a_backend_that_is_not_there_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    call = ["prepare", str(video(tmp_path / "a.mp4")), "--output", str(tmp_path / "out"), "--backend", "heads=mine"]
    assert cli.main(call) == 2
    assert "--backend heads=mine: expected dlib" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_key_frames_come_as_often_as_asked_for(tmp_path: Path, bright: None):
    ((clip, _),) = prepared(video(tmp_path / "raw.mp4"), "--key-frames", "3")
    with av.open(str(tmp_path / "prepared" / clip)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [place for place, key in enumerate(keys) if key] == [0, 3, 6]


def test_names_keep_to_what_files_may_be_called():
    assert fit_for_names("a#b/c") == "a_b_c" and fit_for_names(" Zoë ") == "Zoë" and fit_for_names("..") == "_"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_people_whose_names_fit_to_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for person in ("a_b", "a:b"):
        video(tmp_path / "raw" / person / "1.mp4")
    assert cli.main(["prepare", str(tmp_path / "raw"), "--output", str(tmp_path / "out"), *OPTIONS]) == 2
    assert "expected people whose names differ" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_an_input_no_more_leaves_the_output(tmp_path: Path, bright: None):
    for person in ("anna", "bert", "cleo"):
        video(tmp_path / "raw" / person / "1.mp4")
    assert len(prepared(tmp_path / "raw", "--test-share", "0.3")) == 3
    (tmp_path / "raw" / "anna").rename(tmp_path / "raw" / "dora")
    clips = {clip for clip, _ in prepared(tmp_path / "raw", "--test-share", "0.3")}
    output = tmp_path / "prepared"
    assert {str(file.relative_to(output)) for file in output.glob("t*/*/*.mp4")} == clips
    assert sorted(clip.split("/")[1] for clip in clips) == ["bert", "cleo", "dora"]


def test_a_failure_that_passes_is_tried_again(tmp_path: Path, bright: None, monkeypatch: pytest.MonkeyPatch):
    source, plain = video(tmp_path / "raw.mp4"), workers.prepare_input

    def failing(*args: object) -> None:
        raise MemoryError("just now")

    monkeypatch.setattr(workers, "prepare_input", failing)
    words = ["prepare", str(source), "--output", str(tmp_path / "prepared"), *OPTIONS]
    assert cli.main(words) == 3 and "MemoryError: just now" in (tmp_path / "prepared" / "manifest.csv").read_text()
    monkeypatch.setattr(workers, "prepare_input", plain)
    assert len(prepared(source)) == 1
