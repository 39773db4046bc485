"""Raw videos of rendered heads, prepared by the offline detector: everything that can be known of them is compared."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from memcomp.experiments import cli
from memcomp.experiments.prepare.boxes import Square, iou
from memcomp.experiments.prepare.inputs import Input
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.work import Result, prepare_input
from memcomp.experiments.prepare.workers import Task, Worker
from memcomp.experiments.video import ClipFolder, Frames

SIZE = 64
OPTIONS = ["--size", str(SIZE), "--least-head", "200", "--min-frames", "6", "--same-person", "0.4", "--workers", "0"]


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory):
    """The output folder, and what each worked-through input gave, boxes included."""
    output, seen = tmp_path_factory.mktemp("prepared") / "clips", {}

    def noted(one: Input, path: Path, folder: Path, options: PrepareOptions, tools: object) -> Result:
        seen[one.name] = prepare_input(one, path, folder, options, tools)
        return seen[one.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memcomp.experiments.prepare.workers.prepare_input", noted)
        status = cli.main(["prepare", str(raw.folder), "--output", str(output), *OPTIONS])
    return output, seen, status


@pytest.fixture(scope="session")
def lines(prepared):
    """The manifest's lines by input: the input's own, then its stretches'."""
    found: dict[str, list[dict[str, str]]] = {}
    with (prepared[0] / "manifest.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["input"], []).append(line)
    return found


def test_boxes_are_where_the_heads_are(raw, prepared):
    overlaps = [
        iou(box, raw.truth[name][piece.first + place][0][1])
        for name, result in prepared[1].items()
        for piece in result.pieces
        for place, box in enumerate(piece.boxes)
    ]
    assert len(overlaps) > 100
    assert np.mean(np.array(overlaps) >= 0.75) >= 0.9


def test_squares_hold_the_boxes(prepared):
    pieces = [piece for result in prepared[1].values() for piece in result.pieces if piece.square]
    assert len(pieces) == 8
    for x, y, side in (piece.square for piece in pieces):
        assert x >= 0 and x + side <= 1280 and y >= 0 and y + side <= 720
    for piece in pieces:
        assert len(piece.boxes) == piece.end - piece.first
        for box in piece.boxes:
            x, y, side = piece.square
            assert x <= box.left and box.right <= x + side and y <= box.top and box.bottom <= y + side


def test_each_stretch_and_why(lines):
    def of(name: str) -> list[tuple[int, int, str, str]]:
        return [(int(one["first"]), int(one["last"]), one["outcome"], one["reason"]) for one in lines[name][1:]]

    assert of("alone.mp4") == of("turned.mp4") == [(0, 15, "written", "ended by: end of the video")]
    assert of("uneven.mp4") == [(0, 11, "written", "ended by: end of the video")]
    assert of("cut.mp4") == [(0, 11, "written", "ended by: cut"), (12, 23, "written", "ended by: end of the video")]
    first, none, second = of("away.mp4")
    assert first == (0, 11, "written", "ended by: no-face") and none[2:] == ("left out", "no-face")
    assert none[0] == 12 and second[0] == none[1] + 1 and 20 <= second[0] < 25 and second[2] == "written"
    one, two = of("second.mp4")
    assert 8 <= one[1] <= 11 and one[3] == "ended by: two-faces"  # seen by the next look at the whole picture
    assert two == (one[1] + 1, 19, "left out", "two-faces")
    assert of("wall.mp4") == [(0, 5, "left out", "no-face")]


def test_damaged_and_empty_files_stop_nothing(prepared, lines, capsys):
    assert prepared[2] == 3
    for name in ("damaged.mp4", "empty.mp4"):
        (line,) = lines[name]
        assert line["outcome"] == "failed" and name in line["reason"]
    assert {name for name, found in lines.items() if found[0]["outcome"] != "done"} == {"damaged.mp4", "empty.mp4"}


def test_people_are_told_apart(raw, lines):
    """Clips of one person carry one name, those of others another, and it is said what told them apart."""
    who: dict[str, set[str]] = {}
    for name, found in lines.items():
        for line in found[1:]:
            if line["outcome"] == "written":
                (actor,) = {actor for actor, _ in raw.truth[name][int(line["first"])]}
                who.setdefault(actor, set()).add(line["person"])
                assert "dlib" in line["told_by"]
    assert sorted(map(len, who.values())) == [1, 1, 1]
    assert len(set.union(*who.values())) == 3


def test_clips_show_what_the_square_holds(raw, prepared, lines):
    """Size, rate, number and pixels of a clip; key frames come often; no person is on both sides."""
    output = prepared[0]
    sides = {side: ClipFolder.of(output / side) for side in ("train", "test")}
    people = {side: {clip.parent.name for clip in found.clips} for side, found in sides.items()}
    assert people["train"] and people["test"] and not people["train"] & people["test"]
    assert sum(len(found.clips) for found in sides.values()) == 8
    line = lines["alone.mp4"][1]
    clip = Frames(output / line["clip"])
    assert Path(line["clip"]).name == f"{line['person']}#alone#000000#000015.mp4"
    assert clip.times() == [number / clip.frame_rate for number in range(16)] and clip.frame_rate == 25
    x, y, side = Square(*(int(line[key]) for key in ("x", "y", "side")))
    for crop, picture in zip(clip, Frames(raw.folder / "alone.mp4"), strict=True):
        assert crop.shape == (SIZE, SIZE, 3)
        square = picture[y : y + side, x : x + side].mean((0, 1))
        assert np.abs(crop.mean((0, 1)) - square).max() < 3


def test_again_nothing_is_done_again(raw, prepared, monkeypatch):
    output, _, _ = prepared
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    manifest = (output / "manifest.csv").read_bytes()

    def refuse(worker: Worker, one: Input) -> str:
        raise AssertionError(f"{one.name} is done again")

    monkeypatch.setattr(Worker, "__call__", refuse)
    monkeypatch.setattr(Task, "tools", refuse)
    assert cli.main(["prepare", str(raw.folder), "--output", str(output), *OPTIONS]) == 3
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")} == before
    assert (output / "manifest.csv").read_bytes() == manifest


def test_other_options_want_another_folder(raw, prepared, capsys):
    assert cli.main(["prepare", str(raw.folder), "--output", str(prepared[0]), *OPTIONS, "--increase", "0.2"]) == 2
    assert "increase = 0.1" in capsys.readouterr().err


def test_there_is_a_contact_sheet(prepared):
    from memcomp.experiments.video import read_picture

    picture = read_picture(prepared[0] / "sheet.png")
    assert picture.std() > 20  # not blank
