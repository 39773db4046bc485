"""The check of the face metrics, on clips of procedural heads."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("dlib")

from memcomp.experiments.data.heads import Identity, Poses, render
from memcomp.experiments.errors import UserError
from memcomp.experiments.studies import face_backends as check
from memcomp.experiments.video import write_video


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Short clips of two heads at 256 px."""
    folder = tmp_path_factory.mktemp("heads")
    for name, seed in (("a", 5003), ("b", 5004)):
        frames = render(Identity.sample(seed), Poses.make(yaw=np.linspace(-6, 6, 4).tolist()), 256).image
        with write_video(folder / f"{name}.mp4", 25) as append:
            for frame in (frames * 255).round().byte().permute(0, 2, 3, 1).numpy():
                append(frame)
    return folder


def test_the_check_finds_the_move_and_the_people(heads, tmp_path, monkeypatch, capsys):
    file = tmp_path / "check.json"
    monkeypatch.setattr(sys, "argv", ["check", "--clips", str(heads), "--people", "4", "--json", str(file)])
    check.main()
    found = json.loads(file.read_text())
    akd = found["landmarks"]["AKD"]
    assert found["landmarks"]["frames"] == 8 and akd["itself"] == {"paper": 0, "standard": 0}
    assert akd["moved"]["paper"] == pytest.approx(3, abs=0.6)
    assert akd["moved"]["standard"] == pytest.approx(3 * 2**0.5, abs=0.8)
    assert 0 < akd["encoded again (H.264)"]["paper"] < 3
    assert found["identity"]["people"] == 2 and found["identity"]["AED same"] < found["identity"]["AED different"]
    assert found["pose"]["true landmarks"]["yaw"]["r"] > 0.99
    assert list(found["pose"]["found by |yaw|"]) == ["0-15", "15-30", "30-45", "45-60"]
    printed = capsys.readouterr().out
    assert "AKD: moved: paper" in printed and "found by |yaw|: 0-15" in printed


def test_clips_without_faces_are_refused(clips_root, monkeypatch):
    monkeypatch.setattr(check, "RUN", 3)
    monkeypatch.setattr(sys, "argv", ["check", "--clips", str(clips_root)])
    with pytest.raises(UserError, match=r"in no clip dlib .* finds one face"):
        check.main()
