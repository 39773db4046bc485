"""The studies of prepare, on clips whose heads and people anybody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memcomp.experiments.data.clips import Clips
from memcomp.experiments.studies import raw_clips
from memcomp.experiments.studies.same_person import agreement
from memcomp.experiments.video import Frames, write_video


def test_agreement_counts_names_and_people():
    people = ["a", "a", "b", "c", "c"]
    codes = [[0.0], [0.1], [0.15], [1.0], [3.0]]
    found = agreement(people, codes, 0.5)
    assert found == {"distance": 0.5, "names": 3, "names of several people": 1, "people with several names": 1}


def test_raw_videos_show_what_is_said_and_manifests_are_compared_with_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(raw_clips, "FRAMES", 4)
    monkeypatch.setattr(raw_clips, "ALONE", 2)
    monkeypatch.setattr(raw_clips, "BESIDE", 2)
    for number, name in enumerate(("anna_1", "bert_1", "cleo_1")):
        with write_video(tmp_path / "clips" / f"{name}.mp4", 25) as append:
            for _ in range(4):
                append(np.full((256, 256, 3), 60 * number + 60, np.uint8))
    clips = Clips(tmp_path / "clips", 256)
    truth = raw_clips.make_videos(clips, tmp_path / "raw", 3)
    for name, frames in truth.items():
        for picture, shown in zip(Frames(tmp_path / "raw" / name), frames, strict=True):
            for clip, left, top, _ in shown.clips:
                middle = picture[top + 100 : top + 156, left + 100 : left + 156]
                assert abs(middle.mean() - (60 * clip + 60)) < 4
    assert [len(frame.clips) for frame in truth["video002.mp4"]] == [1, 1, 1, 1, 0, 0, 1, 1, 2, 2]
    lines = ["input,first,last,outcome,person", "video000.mp4,0,3,written,p1", "video000.mp4,6,9,written,p1"]
    lines += ["video002.mp4,4,5,left out,", "video002.mp4,6,9,written,p2"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    numbers = raw_clips.told_apart(clips, truth, tmp_path / "manifest.csv")
    assert numbers["segments with more than one person"] == 1 and numbers["names given to more than one person"] == 2
    assert numbers["share of frames with one person that are in a clip"] == pytest.approx(12 / 22)
