"""VoxCeleb-style metadata: parts cut by their rows, videos fetched by yt-dlp (a stand-in), several processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memcomp.experiments import cli
from memcomp.experiments.errors import UserError
from memcomp.experiments.prepare.metadata import read_metadata
from memcomp.experiments.video import Frames, write_video

HEAD = "video_id,start,end,bbox,fps,width,height,partition,person_id\n"
ROWS = [
    "first,0,10,20-10-60-50,25,120,80,train,id1",
    "first,5,12,70-10-110-50,25,120,80,train,id2",  # at the same time, somewhere else
    "second,30,50,40-20-120-100,50,240,160,test,id3",  # of a video twice as fast and twice as large
    "second,0,4,40-20-120-100,50,240,160,test,id3",
    "third,0,10,20-10-60-50,25,120,80,train,id4",
]
OPTIONS = ["--size", "16", "--min-frames", "4", "--workers", "0"]
STAND_IN = """#!{python}
import pathlib, shutil, sys
name, url = sys.argv[sys.argv.index("-o") + 1], sys.argv[-1]
if url != "https://www.youtube.com/watch?v=third":
    sys.exit("ERROR: Video unavailable")
shutil.copy(pathlib.Path(name).parent / "first.mp4", name.replace("%(ext)s", "mp4"))
"""


def draw(path: Path, frames: int, rate: int) -> None:
    """Left half red, right half green, both a little brighter in each frame."""
    with write_video(path, rate) as append:
        for number in range(frames):
            picture = np.zeros((80, 120, 3), np.uint8)
            picture[:, :60, 0] = picture[:, 60:, 1] = 60 + 4 * number
            append(picture)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "first.mp4", 16, 25)
    draw(tmp_path / "second.mp4", 40, 50)
    (tmp_path / "vox.csv").write_text(HEAD + "\n".join(ROWS) + "\n")
    return tmp_path


def manifest(output: Path) -> list[tuple[str, str, str, str]]:
    with (output / "manifest.csv").open(newline="") as file:
        return [(one["input"], one["first"], one["outcome"], one["reason"]) for one in csv.DictReader(file)]


def test_rows_become_clips(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(folder))  # no yt-dlp
    output = folder / "clips"
    assert cli.main(["prepare", str(folder / "vox.csv"), "--output", str(output), *OPTIONS]) == 3
    assert "1 of 3 inputs are missing or could not be read" in capsys.readouterr().err
    clips = sorted(str(path.relative_to(output)) for path in output.rglob("*.mp4"))
    assert clips == [
        "test/id3/id3#second#000015#000025.mp4",
        "train/id1/id1#first#000000#000010.mp4",
        "train/id2/id2#first#000005#000012.mp4",
    ]
    for clip, channel, first, step in ((clips[1], 0, 0, 1), (clips[2], 1, 5, 1), (clips[0], 0, 30, 2)):
        colours = np.array([picture.mean((0, 1)) for picture in Frames(output / clip)])
        wanted = 60 + 4 * (first + step * np.arange(len(colours)))
        assert np.abs(colours[:, channel] - wanted).max() < 5 and colours[:, 2 - 2 * (channel == 2)].min() >= 0
    lines = manifest(output)
    assert ("second", "0", "left out", "shorter than 4 frames, line 5") in lines
    assert ("second", "15", "written", "line 4, which ends at 25: the video has 20 frames") in lines
    (third,) = [line for line in lines if line[0] == "third"]
    assert third[2] == "missing" and "yt-dlp on the path" in third[3]


@pytest.mark.parametrize("second", ["test,id2", "train,id2", "train,id1"])
def test_people_at_the_same_time_keep_a_clip_each(folder: Path, second: str):
    rows = ["first,0,10,20-10-60-50,25,120,80,train,id1", f"first,0,10,70-10-110-50,25,120,80,{second}"]
    (folder / "two.csv").write_text(HEAD + "\n".join(rows) + "\n")
    assert cli.main(["prepare", str(folder / "two.csv"), "--output", str(folder / "clips"), *OPTIONS]) == 0
    with (folder / "clips" / "manifest.csv").open(newline="") as file:
        places = [line["clip"] for line in csv.DictReader(file) if line["outcome"] == "written"]
    assert len(set(places)) == 2
    colours = [next(iter(Frames(folder / "clips" / place))).mean((0, 1)).argmax() for place in places]
    assert colours == [0, 1]  # what each row shows is in its own clip


def test_a_person_of_both_sides_is_left_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Codes take both videos for one person, whose parts the metadata put into train and test."""
    monkeypatch.setattr("memcomp.experiments.prepare.prepare.clusters", lambda codes, distance: [1] * len(codes))
    monkeypatch.setattr("memcomp.experiments.prepare.workers.create_backend", lambda *_: Constant())
    rows = ["first,0,10,20-10-60-50,25,120,80,train,", "second,0,20,40-20-120-100,50,240,160,test,"]
    (folder / "who.csv").write_text(HEAD + "\n".join(rows) + "\n")
    call = ["prepare", str(folder / "who.csv"), "--output", str(folder / "clips"), *OPTIONS]
    assert cli.main(call) == 3
    assert "1 of 1 people would be in train/ and in test/" in (said := capsys.readouterr().err)
    assert "--shared-people takes them" in said and not list((folder / "clips").glob("t*/*/*.mp4"))
    assert [line[2:] for line in manifest(folder / "clips") if line[1]] == [
        ("left out", "the person would be in train/ and in test/")
    ] * 2
    assert cli.main([*call, "--shared-people"]) == 0
    assert len(list((folder / "clips").glob("t*/*/*.mp4"))) == 2
    assert cli.main(call) == 3 and not list((folder / "clips").glob("t*/*/*.mp4"))  # and back


class Constant:
    """An identity backend to whom all are one."""

    about = "constant"

    def __call__(self, pictures):
        return [np.zeros(2) for _ in pictures]


def test_yt_dlp_fetches_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tools = folder / "tools"
    tools.mkdir()
    (tools / "yt-dlp").write_text(STAND_IN.format(python=sys.executable))
    (tools / "yt-dlp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    table = folder / "vox.csv"
    table.write_text(table.read_text() + "fourth,0,10,20-10-60-50,25,120,80,train,id5\n")
    output = folder / "clips"
    call = ["prepare", str(table), "--output", str(output), *OPTIONS]
    assert cli.main(call) == 3
    assert (output / "train" / "id4" / "id4#third#000000#000010.mp4").is_file() and (folder / "third.mp4").is_file()
    assert [line[2:] for line in manifest(output) if line[0] == "fourth"] == [
        ("missing", "fourth: yt-dlp did not download it (ERROR: Video unavailable)")
    ]
    (folder / "third.mp4").unlink()  # its clips are made
    before = (output / "manifest.csv").read_bytes()
    assert cli.main(call) == 3
    assert (output / "manifest.csv").read_bytes() == before and not (folder / "third.mp4").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("video_id,start\na,1\n", "it lacks end, bbox, fps, width, height"),
        (HEAD, "expected rows"),
        (HEAD + "a,0,10,20-10-60,25,120,80,train,id1", "line 2: bbox '20-10-60': expected left-top-right-bottom"),
        (HEAD + "a,10,0,20-10-60-50,25,120,80,train,id1", "line 2: expected left < right"),
        (HEAD + "a,0,ten,20-10-60-50,25,120,80,train,id1", "line 2: Invalid literal"),
        (HEAD + "a,0,10,20-10-60-50,25,120,80,dev,id1", "partition 'dev': expected train or test"),
        (HEAD + "a,0", "line 2: "),
        (HEAD + f"{ROWS[0]}\na,0,9,20-10-60-50,25,120,80,test,id1", "in train and in test: id1; --shared-people"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_written(content, said, tmp_path, capsys):
    (tmp_path / "vox.csv").write_text(content)
    assert cli.main(["prepare", str(tmp_path / "vox.csv"), "--output", str(tmp_path / "clips")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "clips").exists()


def test_a_person_may_be_named_before_the_video(tmp_path):
    (tmp_path / "vox.csv").write_text("video_id,start,end,bbox,fps,width,height\nid7#abc,0,10,0-0-9-9,25,9,9\n")
    (video,) = read_metadata(tmp_path / "vox.csv", False).items()
    assert video[0] == "abc" and video[1][0].person == "id7" and video[1][0].partition is None


def test_shared_people_can_be_allowed(folder: Path):
    table = folder / "vox.csv"
    table.write_text(HEAD + ROWS[0] + "\n" + "second,0,40,40-20-120-100,50,240,160,test,id1\n")
    with pytest.raises(UserError):
        read_metadata(table, False)
    output = folder / "clips"
    assert cli.main(["prepare", str(table), "--output", str(output), *OPTIONS, "--shared-people"]) == 0
    assert sorted(path.parent.parent.name for path in output.rglob("*.mp4")) == ["test", "train"]


def test_several_processes_and_none_outlives_the_first(folder: Path):
    """Killed, it takes its workers along; done again, it ends as one process does."""
    ids = ("a", "b", "c")
    for name in ids:
        (folder / f"{name}.mp4").write_bytes((folder / "first.mp4").read_bytes())
    rows = [f"{name},0,10,20-10-60-50,25,120,80,,id{name}" for name in ids]
    (folder / "vox.csv").write_text(HEAD + "\n".join(rows) + "\n")
    module = [sys.executable, "-m", "memcomp.experiments.cli", "prepare", str(folder / "vox.csv"), *OPTIONS[:-1], "2"]
    marked = {**os.environ, "MEMCOMP_TEST_MARK": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*module, "--output", str(folder / "many")], env=marked, stderr=subprocess.DEVNULL)
    while len(running(folder)) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(600):
        if not running(folder):
            break
        time.sleep(0.1)
    assert not running(folder)
    assert subprocess.run([*module, "--output", str(folder / "many")], env=marked, check=False).returncode == 0
    assert cli.main(["prepare", str(folder / "vox.csv"), "--output", str(folder / "one"), *OPTIONS]) == 0
    many, one = ({p.name: p.read_bytes() for p in (folder / name).rglob("*.mp4")} for name in ("many", "one"))
    assert many == one and len(one) == 3


def running(folder: Path) -> list[int]:
    """Processes that were started with the mark of the test in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"MEMCOMP_TEST_MARK={folder}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found
