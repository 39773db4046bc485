"""The study of best frames, on clips in which anybody can tell them."""

import csv
import json

import pytest
import torch

from memcomp.experiments.backends import choose
from memcomp.experiments.data.heads import Identity, Poses, render
from memcomp.experiments.errors import UserError
from memcomp.experiments.studies import best_frames
from memcomp.experiments.video import to_frame, write_video


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Two clips of heads that turn from left to right, and a list that names the frame of the same pose."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("anna", "bert"):
        shown = render(Identity.sample(len(name) + ord(name[0])), Poses.make(yaw=torch.tensor([-40.0, 0, 40])), 64)
        with write_video(folder / f"{name}.mp4", 25) as append:
            for picture in shown.image:
                append(to_frame(picture))
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = [[f"anna.mp4#{k}", "bert.mp4#1", f"bert.mp4#{k}"] for k in range(3)]
        csv.writer(file).writerows([["source", "driving", "best_frame"], *rows])
    return folder / "pairs.csv"


def test_the_frame_of_the_same_pose_is_nearest(listed, tmp_path, capsys, monkeypatch):
    reader = choose.create_backend("landmarks", {"landmarks": "heads"}, heads=64)
    monkeypatch.setattr(best_frames, "create_backend", lambda *_: reader)
    best_frames.main([str(listed), "demo", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == found["rows"] == 3 and "3 of 3 pairs" in capsys.readouterr().out
    distance = found["distance"]
    assert distance["of the list"] < distance["first frame"] and distance["chosen"] <= distance["first frame"]


def test_a_list_without_best_frames_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("source,driving\na#0,b#0\n")
    with pytest.raises(UserError, match="expected columns source,driving,best_frame and a row"):
        best_frames.main([str(tmp_path / "pairs.csv"), "demo"])
